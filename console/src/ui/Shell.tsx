// What is around every page: the menu, who is here, and whether what is shown is live.

import { useEffect, useRef } from "react";
import { NavLink, Outlet, ScrollRestoration, useLocation } from "react-router";

import { useLiveness } from "../api/live";
import { pages } from "../routes";
import { useMe } from "../session/session";
import { t } from "../text/en";
import { absolute } from "../time/format";
import { icons } from "./icons";
import { Badge } from "./parts";
import css from "./Shell.module.css";

export function Shell() {
    const me = useMe();
    const content = useRef<HTMLElement>(null);
    const { pathname } = useLocation();
    const shown = useRef(pathname);
    useEffect(() => {
        // Whoever cannot see that the page is another one is told, and goes on from its beginning.
        if (shown.current !== pathname) content.current?.focus({ preventScroll: true });
        shown.current = pathname;
    }, [pathname]);
    const items = pages.flatMap((page) => (page.menu && page.roles.includes(me.role) ? [{ ...page.menu, path: page.path }] : []));
    return (
        <div className={css.shell}>
            <a className={css.skip} href="#content">
                {t.app.skip}
            </a>
            <nav className={css.nav} aria-label={t.app.menu}>
                <span className={css.brand}>
                    <img src="/icon.svg" alt="" width="24" height="24" />
                    {t.app.name}
                </span>
                <ul>
                    {items.map((item) => (
                        <li key={item.path}>
                            <NavLink to={item.path} end={item.path === "/"}>
                                {icons[item.icon]}
                                <span>{item.title}</span>
                            </NavLink>
                        </li>
                    ))}
                </ul>
                <div className={css.who}>
                    <Live />
                    <span>{t.session.signedInAs(me.name, t.roles[me.role])}</span>
                </div>
            </nav>
            <main ref={content} className={css.main} id="content" tabIndex={-1}>
                <Stale />
                <Outlet />
            </main>
            <ScrollRestoration />
        </div>
    );
}

function Live() {
    const { state } = useLiveness();
    if (state === "live") return <Badge tone="good">{t.live.live}</Badge>;
    return <Badge tone={state === "stale" ? "warn" : "plain"}>{t.live.connecting}</Badge>;
}

function Stale() {
    const { state, since } = useLiveness();
    if (state !== "stale") return null;
    return (
        <p className={css.stale} role="status">
            {t.live.stale(absolute(new Date(since).toISOString()))}
        </p>
    );
}
