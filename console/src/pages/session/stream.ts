// The stream of a terminal: bytes both ways, and control messages as in docs/API.md.

import type { Terminal } from "@xterm/xterm";

import type { Size } from "./screen";

const PROTOCOL = "cloudlink.stream.v1";
/** Of one message: a quarter of what the server takes. */
const TYPED_BYTES_MAX = 16 * 1024;

export type Mode = "operate" | "watch";
/** What the server or the device says beside the bytes. */
export type Said =
    | { type: "ready" }
    | ({ type: "screen" } & Size)
    | { type: "warning"; seconds_left: number }
    | { type: "joined" | "left"; name: string }
    | { type: "exit"; status: number | null; signal: string | null }
    | { type: "failed"; code: string; message: string }
    | { type: "closed"; reason: string; message: string };

export type Stream = {
    /** How much would fit into the window. The server says how large the terminal is then. */
    resize: (size: Size) => void;
    close: () => void;
};

/** Connects a screen with a device. `onEnd` comes once; the reason is what was said last, if anything was. */
export function connect(
    session: string,
    mode: Mode,
    terminal: Terminal,
    on: { opened: () => void; said: (said: Said) => void; ended: (last: Said | undefined) => void },
): Stream {
    const address = new URL(`/api/v1/support-sessions/${session}/stream`, location.href);
    address.protocol = "wss:";
    address.search = new URLSearchParams({ mode, columns: String(terminal.cols), rows: String(terminal.rows), term: "xterm-256color" }).toString();
    const socket = new WebSocket(address, PROTOCOL);
    socket.binaryType = "arraybuffer";
    let last: Said | undefined;

    socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
        if (typeof data !== "string") {
            terminal.write(new Uint8Array(data));
            return;
        }
        const said = JSON.parse(data) as Said;
        // Others may have smaller windows, and what a program shows is made for one size.
        if (said.type === "screen") terminal.resize(said.columns, said.rows);
        if (isEnd(said)) last = said;
        on.said(said);
    };
    socket.onclose = () => on.ended(last);

    const send = (data: string | Uint8Array<ArrayBuffer>) => {
        if (socket.readyState === WebSocket.OPEN) socket.send(data);
    };
    // What is pasted may be long.
    const type = (bytes: Uint8Array<ArrayBuffer>) => {
        for (let at = 0; at < bytes.length; at += TYPED_BYTES_MAX) send(bytes.slice(at, at + TYPED_BYTES_MAX));
    };
    const text = new TextEncoder();
    const listeners =
        mode === "operate"
            ? [
                  terminal.onData((typed) => type(text.encode(typed))),
                  terminal.onBinary((typed) => type(Uint8Array.from(typed, (character) => character.charCodeAt(0)))),
              ]
            : [];
    let told: Size = { columns: terminal.cols, rows: terminal.rows };
    const resize = (size: Size) => {
        if (mode === "watch" || (size.columns === told.columns && size.rows === told.rows) || socket.readyState !== WebSocket.OPEN) return;
        told = size;
        send(JSON.stringify({ type: "resize", ...size }));
    };
    socket.onopen = on.opened;
    return {
        resize,
        close: () => {
            listeners.forEach((listener) => listener.dispose());
            socket.onclose = null;
            socket.close();
        },
    };
}

/** Nothing comes after it. */
export function isEnd({ type }: Said): boolean {
    return type === "exit" || type === "failed" || type === "closed";
}
