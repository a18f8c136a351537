// Recordings of terminals: asciicast v2.

/** `isTorn`: it does not go on to its end. */
export type Cast = { columns: number; rows: number; seconds: number; events: Happening[]; marks: Mark[]; isTorn: boolean };
export type Happening = { at: number; code: "o" | "r"; text: string };
export type Mark = { at: number; text: string };

export function parse(text: string): Cast {
    const [head, ...lines] = text.split("\n").filter((line) => line !== "");
    const { width, height } = (read(head) ?? {}) as { width?: number; height?: number };
    const events: Happening[] = [];
    const marks: Mark[] = [];
    let seconds = 0;
    let isTorn = width === undefined;
    for (const line of lines) {
        const event = read(line) as [number, string, string] | undefined;
        if (!event) {
            isTorn = true;
            break;
        }
        const [at, code, text] = event;
        seconds = Math.max(seconds, at);
        if (code === "o" || code === "r") events.push({ at, code, text });
        if (code === "m") marks.push({ at, text });
    }
    return { columns: width ?? 80, rows: height ?? 24, seconds, events, marks, isTorn };
}

/** Nothing, where it breaks off. */
function read(line: string | undefined): unknown {
    try {
        return JSON.parse(line ?? "");
    } catch {
        return undefined;
    }
}

/** The digest of a text as the server tells it. */
export async function digest(text: string): Promise<string> {
    const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
