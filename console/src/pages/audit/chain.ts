// The chain of an audit log: hash(n) = SHA-256(hash(n-1) || entry(n)), hash(0) = 32 zero bytes (docs/API.md).

export type Said = { seq: number; at: string; actor: string; action: string; details: Record<string, string> };
/** `broken`: the first entry that does not fit. */
export type Verdict = { entries: number; head: string; broken?: number };

type Line = { seq: number; entry: string; hash: string };

/** An entry for people. One of a later version shows what can be read of it. */
export function read(entry: string): Said {
    const { seq = 0, at = "", actor = {}, action = "", subject = {}, details = {} } = JSON.parse(entry) as {
        seq?: number;
        at?: string;
        actor?: { kind?: string; name?: string | null };
        action?: string;
        subject?: { kind?: string; id?: string };
        details?: Record<string, unknown>;
    };
    const shown = Object.entries({ [subject.kind ?? "subject"]: subject.id, ...details }).filter(([, value]) => value !== null && value !== undefined);
    return {
        seq,
        at,
        action,
        actor: actor.name ?? actor.kind ?? "",
        details: Object.fromEntries(shown.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])),
    };
}

/** Of a log as it is exported. */
export async function verify(exported: ReadableStream<Uint8Array<ArrayBuffer>>, onProgress: (checked: number) => void): Promise<Verdict> {
    const text = new TextEncoder();
    let head = new Uint8Array(32);
    let entries = 0;
    for await (const line of lines(exported)) {
        const { seq, entry, hash } = JSON.parse(line) as Line;
        const bytes = text.encode(entry);
        const joined = new Uint8Array(head.length + bytes.length);
        joined.set(head);
        joined.set(bytes, head.length);
        head = new Uint8Array(await crypto.subtle.digest("SHA-256", joined));
        entries += 1;
        if (hex(head) !== hash || seq !== entries) return { entries, head: hex(head), broken: seq };
        if (entries % 500 === 0) onProgress(entries);
    }
    return { entries, head: hex(head) };
}

async function* lines(stream: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<string> {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const parts = (rest + value).split("\n");
        rest = parts.pop() ?? "";
        yield* parts.filter((part) => part !== "");
    }
    if (rest !== "") yield rest;
}

function hex(bytes: Uint8Array): string {
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
