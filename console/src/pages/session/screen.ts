// The screen of a terminal, live or played.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";

import { allowStyles } from "./styles";

const SCROLLBACK_LINES = 5000;

export type Size = { columns: number; rows: number };
export type Screen = {
    terminal: Terminal;
    /** How much would fit into its place. */
    room: () => Size | undefined;
    close: () => void;
};

/** A window on a device is dark in either theme: what programs write there is made for that. */
const COLOURS = { background: "#10141a", foreground: "#e9edf3", cursor: "#8aadff", selectionBackground: "#33466e" };

export function open(place: HTMLElement, options: { isReadOnly: boolean }): Screen {
    const forbidStyles = allowStyles();
    const terminal = new Terminal({
        disableStdin: options.isReadOnly,
        cursorBlink: false,
        fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
        fontSize: 13,
        scrollback: SCROLLBACK_LINES,
        screenReaderMode: true,
        theme: COLOURS,
    });
    const fitting = new FitAddon();
    terminal.loadAddon(fitting);
    terminal.open(place);
    terminal.attachCustomKeyEventHandler((event) => {
        // It takes every key, and somebody without a mouse has to get out again (WCAG 2.1.2).
        if (options.isReadOnly) return event.key !== "Tab";
        if (!(event.ctrlKey && event.shiftKey && event.code === "KeyM")) return true;
        event.preventDefault();
        terminal.blur();
        return false;
    });
    const room = () => {
        const found = fitting.proposeDimensions();
        return found && found.cols > 0 && found.rows > 0 ? { columns: found.cols, rows: found.rows } : undefined;
    };
    const close = () => {
        terminal.dispose();
        forbidStyles();
    };
    return { terminal, room, close };
}
