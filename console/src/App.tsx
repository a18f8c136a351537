import { Suspense } from "react";
import { createBrowserRouter, RouterProvider, useRouteError } from "react-router";

import { pages } from "./routes";
import { useMe } from "./session/session";
import { t } from "./text/en";
import { Button, ButtonLink } from "./ui/Button";
import { Empty, PageHead, Skeleton } from "./ui/parts";
import { Shell } from "./ui/Shell";

const router = createBrowserRouter([
    {
        element: <Shell />,
        children: [
            ...pages.map((page) => ({
                path: page.path,
                errorElement: <Broken />,
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

/** A page that failed, or whose code did not come. The menu is still there. */
function Broken() {
    const error = useRouteError();
    return (
        <>
            <PageHead title={t.broken.title} lead={t.broken.lead} />
            <Empty>
                <code>{String(error)}</code>
            </Empty>
            <Button look="primary" onPress={() => location.reload()}>
                {t.broken.again}
            </Button>
        </>
    );
}
