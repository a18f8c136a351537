import { useRef } from "react";

/** The key under which the server does the same request once: another one for another request, and after one that was answered. */
export function useIdempotencyKey(): { of: (request: unknown) => string; answered: () => void } {
    const last = useRef<{ request: string; key: string }>(undefined);
    return {
        of: (request) => {
            const text = JSON.stringify(request);
            if (last.current?.request !== text) last.current = { request: text, key: crypto.randomUUID() };
            return last.current.key;
        },
        answered: () => {
            last.current = undefined;
        },
    };
}
