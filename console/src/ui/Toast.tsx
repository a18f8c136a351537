// A word about what was done, and the way back for as long as it is shown.

import { createContext, type ReactNode, useContext, useEffect, useState } from "react";

import { t } from "../text/en";
import { Button } from "./Button";
import css from "./ui.module.css";

/** Long enough to read it and to change one's mind (WCAG 2.2.1 asks for no more: what it offers is elsewhere as well). */
const SHOWN_MS = 15_000;

type Said = { text: string; undo: () => void };

const Toasts = createContext<(said: Said) => void>(() => undefined);

/** Says something about what was done, with a way back. */
export function useToast(): (said: Said) => void {
    return useContext(Toasts);
}

export function WithToast({ children }: { children: ReactNode }) {
    const [said, setSaid] = useState<Said>();
    // Not while somebody is about to press it.
    const [isHeld, setHeld] = useState(false);
    useEffect(() => {
        if (!said || isHeld) return;
        const timer = setTimeout(() => setSaid(undefined), SHOWN_MS);
        return () => clearTimeout(timer);
    }, [said, isHeld]);
    const undo = () => {
        said?.undo();
        setHeld(false);
        setSaid(undefined);
    };
    return (
        <Toasts value={setSaid}>
            {children}
            <div role="status">
                {said && (
                    <div
                        className={css.toast}
                        onMouseEnter={() => setHeld(true)}
                        onMouseLeave={() => setHeld(false)}
                        onFocus={() => setHeld(true)}
                        onBlur={() => setHeld(false)}
                    >
                        {said.text} <Button onPress={undo}>{t.app.undo}</Button>
                    </div>
                )}
            </div>
        </Toasts>
    );
}
