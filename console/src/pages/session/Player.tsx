// Plays what was recorded of a terminal. Pauses in which nothing happened are cut short.

import { useEffect, useRef, useState } from "react";

import { t } from "../../text/en";
import { left } from "../../time/format";
import { Button } from "../../ui/Button";
import ui from "../../ui/ui.module.css";
import type { Cast } from "./cast";
import { type Playback, playback } from "./playback";
import { open } from "./screen";
import css from "./Session.module.css";

const TICK_MS = 50;
/** Nothing happens for longer than this. */
const IDLE_SECONDS_MAX = 2;
const SPEEDS = [1, 2, 4, 8];

export default function Player({ cast }: { cast: Cast }) {
    const place = useRef<HTMLDivElement>(null);
    const played = useRef<Playback>(undefined);
    const [at, setAt] = useState(0);
    const [isPlaying, setPlaying] = useState(false);
    const [speed, setSpeed] = useState(1);

    useEffect(() => {
        if (!place.current) return;
        const opened = open(place.current, { isReadOnly: true });
        played.current = playback(opened.terminal, cast);
        return () => opened.close();
    }, [cast]);

    const position = useRef(0);
    const seek = (to: number) => {
        played.current?.seek(to);
        position.current = to;
        setAt(to);
    };
    useEffect(() => {
        if (!isPlaying) return;
        const timer = setInterval(() => {
            const before = position.current;
            const next = played.current?.next();
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
                    step="any"
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
