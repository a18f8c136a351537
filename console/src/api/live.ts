// Server-sent events: what may have changed is asked for anew. The browser's EventSource reconnects by itself; after each reconnect
// everything that is shown is asked for anew, as nobody knows what was missed.

import type { Query, QueryClient } from "@tanstack/react-query";
import { useSyncExternalStore } from "react";

import { learn } from "../time/clock";

export type Liveness = { state: "connecting" | "live" | "stale"; since: number };

/** Without a beat for so long, what is shown may be old: the server sends one every 10 s. */
const SILENCE_MS = 25_000;
/** How soon a connection that the server refused is tried again: EventSource gives up on those. */
const RETRY_MS = 5_000;

let liveness: Liveness = { state: "connecting", since: Date.now() };
const listeners = new Set<() => void>();

function become(state: Liveness["state"]) {
    if (liveness.state === state) return;
    liveness = { state, since: Date.now() };
    listeners.forEach((listener) => listener());
}

export function useLiveness(): Liveness {
    return useSyncExternalStore(
        (listener) => {
            listeners.add(listener);
            return () => listeners.delete(listener);
        },
        () => liveness,
    );
}

/** Follows the server until the returned function is called. */
export function follow(client: QueryClient): () => void {
    let source: EventSource | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const askAgain = refresher(client);

    const again = (after: number) => {
        clearTimeout(timer);
        timer = setTimeout(() => {
            become("stale");
            open();
        }, after);
    };
    const heard = (event: MessageEvent<string>) => {
        again(SILENCE_MS);
        const said = JSON.parse(event.data) as { now: string };
        learn(said.now);
        become("live");
    };
    const open = () => {
        // A connection that is dead without knowing stays open for ever.
        source?.close();
        again(SILENCE_MS);
        source = new EventSource("/api/v1/events");
        source.addEventListener("hello", (event) => {
            heard(event);
            askAgain("everything");
        });
        source.addEventListener("beat", heard);
        source.addEventListener("changed", (event) => askAgain((JSON.parse(event.data) as { kinds: string[] }).kinds));
        source.onerror = () => {
            become("stale");
            if (source?.readyState !== EventSource.CLOSED) return;
            // It does not say why: perhaps the session is over.
            again(RETRY_MS);
            void client.refetchQueries({ queryKey: ["me"] });
        };
    };
    open();
    return () => {
        clearTimeout(timer);
        source?.close();
        become("stale");
    };
}

/** Asks anew for what is shown of some kinds, one round after the other: what comes meanwhile waits, so that slow answers come and do not pile up. */
function refresher(client: QueryClient): (kinds: string[] | "everything") => void {
    const waiting = new Set<unknown>();
    let isBusy = false;
    const work = async () => {
        while (waiting.size > 0) {
            const kinds = new Set(waiting);
            waiting.clear();
            const predicate = ({ meta, queryKey }: Query) => !meta?.once && (kinds.has("everything") || kinds.has(queryKey[0]));
            const underWay = client.getQueryCache().findAll({ predicate, fetchStatus: "fetching" });
            await client.invalidateQueries({ predicate }, { cancelRefetch: false });
            // Their answers may be of before.
            await client.refetchQueries({ type: "active", predicate: (query) => underWay.includes(query) }, { cancelRefetch: false });
        }
    };
    return (kinds) => {
        for (const kind of kinds === "everything" ? [kinds] : kinds) waiting.add(kind);
        if (isBusy) return;
        isBusy = true;
        void work().finally(() => {
            isBusy = false;
        });
    };
}
