// A terminal on a device, for whoever opened it to work in and for others to watch.

import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";

import { t } from "../../text/en";
import { Badge } from "../../ui/parts";
import { open } from "./screen";
import css from "./Session.module.css";
import { connect, isEnd, type Mode, type Said } from "./stream";

export default function LiveTerminal({ session, mode }: { session: string; mode: Mode }) {
    const place = useRef<HTMLDivElement>(null);
    const [notes, setNotes] = useState<string[]>([]);
    const [end, setEnd] = useState<string>();
    const client = useQueryClient();
    useEffect(() => {
        if (!place.current) return;
        const screen = open(place.current, { isReadOnly: mode === "watch" });
        if (mode === "operate") screen.fit();
        const note = (text: string | undefined) => {
            if (text) setNotes((before) => [...before.slice(-2), text]);
        };
        // After this turn: in development an effect runs twice, and a terminal has one stream.
        let stream: ReturnType<typeof connect> | undefined;
        const beginning = setTimeout(() => {
            stream = connect(session, mode, screen.terminal, {
                said: (said) => note(isEnd(said) ? undefined : inWords(said)),
                ended: (last) => {
                    setEnd((last && inWords(last)) ?? t.session_.lost);
                    screen.terminal.options.disableStdin = true;
                    void client.invalidateQueries({ queryKey: ["support_sessions"] });
                },
            });
            if (mode === "operate") screen.terminal.focus();
        });
        const resized = new ResizeObserver(() => {
            if (mode === "operate") screen.fit();
        });
        resized.observe(place.current);
        return () => {
            clearTimeout(beginning);
            resized.disconnect();
            stream?.close();
            screen.close();
        };
    }, [session, mode, client]);
    // Leaving the page ends what was begun here.
    useEffect(() => {
        if (mode !== "operate" || end) return;
        const stay = (event: BeforeUnloadEvent) => event.preventDefault();
        addEventListener("beforeunload", stay);
        return () => removeEventListener("beforeunload", stay);
    }, [mode, end]);
    return (
        <>
            <div className={css.notes} role="status">
                {mode === "watch" && !end && <Badge>{t.session_.watching}</Badge>}
                {notes.map((note, index) => (
                    <span key={`${index} ${note}`}>{note}</span>
                ))}
            </div>
            {end && (
                <p className={css.end} role="alert">
                    {end}
                </p>
            )}
            <div ref={place} className={css.screen} />
        </>
    );
}

function inWords(said: Said): string | undefined {
    switch (said.type) {
        case "ready":
            return undefined;
        case "warning":
            return t.session_.warning(Math.max(1, Math.round(said.seconds_left / 60)));
        case "joined":
            return t.session_.joined(said.name);
        case "left":
            return t.session_.left(said.name);
        case "exit":
            return said.signal ? t.session_.killed(said.signal) : t.session_.exited(said.status ?? 0);
        case "failed":
            return said.message || said.code;
        case "closed":
            return t.session_.closed(t.sessions.ends[said.reason] ?? said.reason);
    }
}
