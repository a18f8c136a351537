// The server's time: what is open until when must not depend on this computer's clock.

import { useSyncExternalStore } from "react";

/** An answer may have been on its way for a moment. */
const ROUGH_MS = 5_000;

let offsetMs = 0;
let shown = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;
const listeners = new Set<() => void>();

/** Takes in what the server says is the time. */
export function learn(serverTime: string) {
    const now = Date.parse(serverTime);
    if (!Number.isNaN(now)) offsetMs = now - Date.now();
}

/** From the `Date` of an answer, in whole seconds: until more is known, and when this computer's clock was set. */
export function learnRoughly(date: string | null) {
    const at = Date.parse(date ?? "");
    if (Math.abs(at - now()) > ROUGH_MS) learn(new Date(at).toISOString());
}

export function now(): number {
    return Date.now() + offsetMs;
}

function subscribe(listener: () => void) {
    listeners.add(listener);
    timer ??= setInterval(() => {
        shown = now();
        listeners.forEach((each) => each());
    }, 1000);
    return () => {
        listeners.delete(listener);
        if (listeners.size === 0) {
            clearInterval(timer);
            timer = undefined;
        }
    };
}

/** The time, anew each second. One timer serves all that count down. */
export function useNow(): number {
    return useSyncExternalStore(subscribe, () => {
        if (Math.abs(now() - shown) > 1500) shown = now();
        return shown;
    });
}
