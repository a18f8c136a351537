// What was recorded, on a screen, as it was at some moment.

import type { Terminal } from "@xterm/xterm";

import type { Cast, Happening } from "./cast";

/** Of output that is written at once. */
const CHUNK_CHARS = 256 * 1024;
/** Clears the screen and whatever programs have set there (ECMA-48, RIS). */
const RESET = "\x1bc";

export type Playback = {
    /** Brings the screen to how it was after so many seconds. */
    seek: (to: number) => void;
    /** What happens next. */
    next: () => Happening | undefined;
};

/** A terminal takes what is written later, and a new size at once: each step waits until the one before is on the screen. */
export function playback(terminal: Terminal, { columns, rows, events }: Cast): Playback {
    let [shown, target, isBusy] = [0, 0, false];
    terminal.resize(columns, rows);

    const go = () => {
        isBusy = true;
        const last = events[shown - 1];
        if (last && last.at > target) {
            shown = 0;
            terminal.write(RESET, () => {
                terminal.resize(columns, rows);
                go();
            });
            return;
        }
        for (let event = due(); event; event = due()) {
            if (event.code === "o") {
                terminal.write(output(), go);
                return;
            }
            shown += 1;
            const [columns, rows] = event.text.split("x").map(Number);
            if (columns && rows) terminal.resize(columns, rows);
        }
        isBusy = false;
    };
    const due = () => {
        const event = events[shown];
        return event && event.at <= target ? event : undefined;
    };
    /** Until the size changes, or it is much. */
    const output = () => {
        let text = "";
        for (let event = due(); event?.code === "o" && text.length < CHUNK_CHARS; event = due()) {
            text += event.text;
            shown += 1;
        }
        return text;
    };
    const seek = (to: number) => {
        target = to;
        if (!isBusy) go();
    };
    seek(0);
    return { seek, next: () => events[shown] };
}
