// A terminal on a device, for whoever opened it to work in and for others to watch.

import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { useBlocker } from "react-router";

import { t } from "../../text/en";
import { Asking } from "../../ui/Confirm";
import { Badge } from "../../ui/parts";
import { open } from "./screen";
import css from "./Session.module.css";
import { connect, isEnd, type Mode, type Said } from "./stream";

/** `what`: the session in words. */
export default function LiveTerminal({ session, mode, what }: { session: string; mode: Mode; what: string }) {
    const place = useRef<HTMLDivElement>(null);
    const [notes, setNotes] = useState<string[]>([]);
    const [isOpen, setOpen] = useState(false);
    const [end, setEnd] = useState<string>();
    const client = useQueryClient();
    useEffect(() => {
        if (!place.current) return;
        const screen = open(place.current, { isReadOnly: mode === "watch" });
        const room = screen.room();
        if (mode === "operate" && room) screen.terminal.resize(room.columns, room.rows);
        // The server lets it through when the device is there. What is typed before would be lost.
        screen.terminal.options.disableStdin = true;
        const note = (text: string | undefined) => {
            if (text) setNotes((before) => [...before.slice(-2), text]);
        };
        // After this turn: in development an effect runs twice, and a terminal has one stream.
        let stream: ReturnType<typeof connect> | undefined;
        const beginning = setTimeout(() => {
            stream = connect(session, mode, screen.terminal, {
                opened: () => {
                    setOpen(true);
                    screen.terminal.options.disableStdin = mode === "watch";
                    fit();
                    if (mode === "operate") screen.terminal.focus();
                },
                said: (said) => note(isEnd(said) ? undefined : inWords(said)),
                ended: (last) => {
                    setEnd((last && inWords(last)) ?? t.session_.lost);
                    screen.terminal.options.disableStdin = true;
                    void client.invalidateQueries({ queryKey: ["support_sessions"] });
                },
            });
        });
        const fit = () => {
            const room = screen.room();
            if (room) stream?.resize(room);
        };
        const resized = new ResizeObserver(fit);
        resized.observe(place.current);
        return () => {
            clearTimeout(beginning);
            resized.disconnect();
            stream?.close();
            screen.close();
        };
    }, [session, mode, client]);
    // Leaving the page ends what was begun here.
    const isWorking = mode === "operate" && !end;
    const leaving = useBlocker(({ currentLocation, nextLocation }) => isWorking && currentLocation.pathname !== nextLocation.pathname);
    useEffect(() => {
        if (!isWorking) return;
        const stay = (event: BeforeUnloadEvent) => event.preventDefault();
        addEventListener("beforeunload", stay);
        return () => removeEventListener("beforeunload", stay);
    }, [isWorking]);
    return (
        <>
            <div className={css.notes} role="status">
                {!isOpen && !end && t.session_.connecting}
                {isOpen && mode === "watch" && !end && <Badge>{t.session_.watching}</Badge>}
                {isOpen && isWorking && t.session_.leaveKey}
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
            {leaving.state === "blocked" && (
                <Asking title={t.session_.leaveTitle} keep={t.session_.stay} act={t.session_.close} onKeep={leaving.reset} onAct={leaving.proceed}>
                    {t.session_.leaveText(what)}
                </Asking>
            )}
        </>
    );
}

function inWords(said: Said): string | undefined {
    switch (said.type) {
        case "ready":
        case "screen":
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
