// Server-sent events: what may have changed is asked for anew. The browser's EventSource reconnects by itself; after each reconnect
// everything that is shown is asked for anew, as nobody knows what was missed.

import type { QueryClient } from "@tanstack/react-query";
import { useSyncExternalStore } from "react";

import { whenSignedOut } from "./client";
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
    let silence: ReturnType<typeof setTimeout> | undefined;
    let retry: ReturnType<typeof setTimeout> | undefined;

    const heard = (event: MessageEvent<string>) => {
        clearTimeout(silence);
        silence = setTimeout(() => become("stale"), SILENCE_MS);
        const said = JSON.parse(event.data) as { now: string };
        learn(said.now);
        become("live");
    };
    const open = () => {
        source = new EventSource("/api/v1/events");
        source.addEventListener("hello", (event) => {
            heard(event);
            void client.invalidateQueries();
        });
        source.addEventListener("beat", heard);
        source.addEventListener("changed", (event) => {
            const { kinds } = JSON.parse(event.data) as { kinds: string[] };
            // What is being asked for is not asked for anew: a slow answer would never come.
            for (const kind of kinds) void client.invalidateQueries({ queryKey: [kind] }, { cancelRefetch: false });
        });
        source.onerror = () => {
            become("stale");
            if (source?.readyState !== EventSource.CLOSED) return;
            // It does not say why: perhaps the session is over.
            clearTimeout(retry);
            retry = setTimeout(open, RETRY_MS);
            void client.refetchQueries({ queryKey: ["me"] });
        };
    };
    const stop = () => {
        clearTimeout(silence);
        clearTimeout(retry);
        source?.close();
    };
    // Nobody is let in any more: to go on asking would count as failed attempts of everybody at this address.
    const forget = whenSignedOut(() => {
        stop();
        become("stale");
    });
    open();
    return () => {
        forget();
        stop();
    };
}
