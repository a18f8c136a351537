// The screen of a terminal, live or played.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";

import { allowStyles } from "./styles";

const SCROLLBACK_LINES = 5000;

export type Screen = { terminal: Terminal; fit: () => void; close: () => void };

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
    const close = () => {
        terminal.dispose();
        forbidStyles();
    };
    return { terminal, fit: () => fitting.fit(), close };
}
