// Light or dark: as the system is, unless somebody chose. The choice is all that is kept in the browser.

import { useSyncExternalStore } from "react";

export type Theme = "system" | "light" | "dark";
const KEY = "theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set<() => void>();

function chosen(): Theme {
    const kept = localStorage.getItem(KEY);
    return kept === "light" || kept === "dark" ? kept : "system";
}

function show() {
    const theme = chosen();
    document.documentElement.dataset.theme = theme === "system" ? (system.matches ? "dark" : "light") : theme;
}

export function begin() {
    show();
    system.addEventListener("change", show);
}

export function choose(theme: Theme) {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
    show();
    listeners.forEach((listener) => listener());
}

export function useTheme(): Theme {
    return useSyncExternalStore((listener) => {
        listeners.add(listener);
        return () => listeners.delete(listener);
    }, chosen);
}

/** Light or dark, as it is shown: also when the system changes it. */
export function useShown(): string {
    return useSyncExternalStore(
        (listener) => {
            const observer = new MutationObserver(listener);
            observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
            return () => observer.disconnect();
        },
        () => document.documentElement.dataset.theme ?? "light",
    );
}
