// Views of one page. Which one is in the address.

import { useSearchParams } from "react-router";

import { ButtonLink } from "./Button";
import css from "./ui.module.css";

/** The view that the address names, or the first. */
export function useView<View extends string>(views: Record<View, string>): View {
    const [params] = useSearchParams();
    const names = Object.keys(views) as View[];
    return names.find((name) => name === params.get("view")) ?? (names[0] as View);
}

export function Tabs<View extends string>({ label, views }: { label: string; views: Record<View, string> }) {
    const view = useView(views);
    return (
        <nav className={css.tabs} aria-label={label}>
            {Object.entries<string>(views).map(([name, title]) => (
                <ButtonLink key={name} to={`?view=${name}`} replace aria-current={name === view ? "page" : undefined}>
                    {title}
                </ButtonLink>
            ))}
        </nav>
    );
}
