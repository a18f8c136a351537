// What has been chosen so far. It outlives a reload and the end of a session, and holds nothing secret.

import { useEffect, useState } from "react";

export type Draft = {
    operatorId: string;
    deviceId: string;
    selector: string;
    scopes: string[];
    seconds: number;
    reason: string;
};

const KEY = "new-grant";
const EMPTY: Draft = { operatorId: "", deviceId: "", selector: "", scopes: [], seconds: 3600, reason: "" };

export function useDraft(given: Partial<Draft>) {
    const [draft, setDraft] = useState<Draft>(() => ({ ...EMPTY, ...kept(), ...given }));
    useEffect(() => sessionStorage.setItem(KEY, JSON.stringify(draft)), [draft]);
    const set = (change: Partial<Draft>) => setDraft((before) => ({ ...before, ...change }));
    return { draft, set, forget: () => sessionStorage.removeItem(KEY) };
}

function kept(): Partial<Draft> {
    try {
        const kept: unknown = JSON.parse(sessionStorage.getItem(KEY) ?? "{}");
        return typeof kept === "object" && kept !== null ? kept : {};
    } catch {
        return {};
    }
}
