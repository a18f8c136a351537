import { Suspense } from "react";
import { createBrowserRouter, RouterProvider } from "react-router";

import { pages } from "./routes";
import { useMe } from "./session/session";
import { t } from "./text/en";
import { ButtonLink } from "./ui/Button";
import { Empty, PageHead, Skeleton } from "./ui/parts";
import { Shell } from "./ui/Shell";

const router = createBrowserRouter([
    {
        element: <Shell />,
        children: [
            ...pages.map((page) => ({
                path: page.path,
                element: (
                    <Suspense fallback={<Skeleton />}>
                        <ForRoles roles={page.roles}>
                            <page.component />
                        </ForRoles>
                    </Suspense>
                ),
            })),
            { path: "*", element: <NotFound /> },
        ],
    },
]);

export function App() {
    return <RouterProvider router={router} />;
}

/** What somebody may not see is not there, as in the API. */
function ForRoles({ roles, children }: { roles: string[]; children: React.ReactNode }) {
    return roles.includes(useMe().role) ? children : <NotFound />;
}

function NotFound() {
    return (
        <>
            <PageHead title={t.notFound.title} />
            <Empty>
                <ButtonLink to="/">{t.notFound.home}</ButtonLink>
            </Empty>
        </>
    );
}
