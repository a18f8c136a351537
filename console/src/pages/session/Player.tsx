// Plays what was recorded of a terminal. Pauses in which nothing happened are cut short.

import { useEffect, useRef, useState } from "react";

import { t } from "../../text/en";
import { left } from "../../time/format";
import { Button } from "../../ui/Button";
import ui from "../../ui/ui.module.css";
import type { Cast } from "./cast";
import { open, type Screen } from "./screen";
import css from "./Session.module.css";

const TICK_MS = 50;
/** Nothing happens for longer than this. */
const IDLE_SECONDS_MAX = 2;
const SPEEDS = [1, 2, 4, 8];

export default function Player({ cast }: { cast: Cast }) {
    const place = useRef<HTMLDivElement>(null);
    const screen = useRef<Screen>(undefined);
    const shown = useRef(0);
    const [at, setAt] = useState(0);
    const [isPlaying, setPlaying] = useState(false);
    const [speed, setSpeed] = useState(1);

    useEffect(() => {
        if (!place.current) return;
        const opened = open(place.current, { isReadOnly: true });
        opened.terminal.resize(cast.columns, cast.rows);
        screen.current = opened;
        shown.current = 0;
        show(opened, cast, shown, 0);
        return () => opened.close();
    }, [cast]);

    const position = useRef(0);
    const seek = (to: number) => {
        if (screen.current) show(screen.current, cast, shown, to);
        position.current = to;
        setAt(to);
    };
    useEffect(() => {
        if (!isPlaying) return;
        const timer = setInterval(() => {
            const before = position.current;
            const next = cast.events[shown.current];
            const idle = next ? next.at - before : 0;
            const skipped = idle > IDLE_SECONDS_MAX ? idle - IDLE_SECONDS_MAX : 0;
            const to = Math.min(cast.seconds, before + skipped + (TICK_MS / 1000) * speed);
            seek(to);
            if (to >= cast.seconds) setPlaying(false);
        }, TICK_MS);
        return () => clearInterval(timer);
    }, [isPlaying, speed, cast]);

    const toggle = () => {
        if (!isPlaying && at >= cast.seconds) seek(0);
        setPlaying(!isPlaying);
    };
    return (
        <>
            <div className={css.controls}>
                <Button look="primary" onPress={toggle}>
                    {isPlaying ? t.player.pause : t.player.play}
                </Button>
                <input
                    type="range"
                    aria-label={t.player.place}
                    min={0}
                    max={cast.seconds}
                    step={0.1}
                    value={at}
                    onChange={(event) => seek(Number(event.target.value))}
                />
                <span className={css.clock}>
                    {left(at * 1000)} / {left(cast.seconds * 1000)}
                </span>
                <label>
                    <span className={ui.hidden}>{t.player.speed}</span>
                    <select className={ui.input} value={speed} onChange={(event) => setSpeed(Number(event.target.value))}>
                        {SPEEDS.map((each) => (
                            <option key={each} value={each}>
                                {t.player.times(each)}
                            </option>
                        ))}
                    </select>
                </label>
            </div>
            {cast.marks.length > 0 && (
                <ul className={css.marks}>
                    {cast.marks.map((mark) => (
                        <li key={`${mark.at} ${mark.text}`}>
                            <Button onPress={() => seek(mark.at)}>
                                {left(mark.at * 1000)} {mark.text}
                            </Button>
                        </li>
                    ))}
                </ul>
            )}
            <div ref={place} className={css.screen} />
        </>
    );
}

/** Brings the screen to how it was then: on from where it is, or anew from the beginning. */
function show({ terminal }: Screen, cast: Cast, shown: { current: number }, to: number) {
    const before = cast.events[shown.current - 1];
    if (before && before.at > to) {
        shown.current = 0;
        terminal.reset();
        terminal.resize(cast.columns, cast.rows);
    }
    for (let event = cast.events[shown.current]; event && event.at <= to; event = cast.events[shown.current]) {
        shown.current += 1;
        if (event.code === "o") terminal.write(event.text);
        else {
            const [columns, rows] = event.text.split("x").map(Number);
            if (columns && rows) terminal.resize(columns, rows);
        }
    }
}
