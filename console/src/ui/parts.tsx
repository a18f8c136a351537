// The small parts that every page is made of.

import { type ReactNode, useEffect, useState } from "react";

import { ApiError, InputError } from "../api/client";
import { t } from "../text/en";
import { now, useNow } from "../time/clock";
import { absolute, left, relative } from "../time/format";
import { Button } from "./Button";
import css from "./ui.module.css";

export type Tone = "plain" | "good" | "warn" | "bad";

/** State, always with a word: colour alone says nothing to some. */
export function Badge({ tone = "plain", children }: { tone?: Tone; children: ReactNode }) {
    return <span className={`${css.badge} ${tone === "plain" ? "" : css[tone]}`}>{children}</span>;
}

export function PageHead({ title, lead, children }: { title: string; lead?: string; children?: ReactNode }) {
    useEffect(() => {
        document.title = `${title} · ${t.app.name}`;
    }, [title]);
    return (
        <header className={css.pageHead}>
            <div>
                <h1>{title}</h1>
                {lead && <p className={css.lead}>{lead}</p>}
            </div>
            {children}
        </header>
    );
}

export function Card({ title, aside, children }: { title: string; aside?: ReactNode; children: ReactNode }) {
    return (
        <section className={css.card} aria-label={title}>
            <div className={css.cardHead}>
                <h2>{title}</h2>
                {aside}
            </div>
            {children}
        </section>
    );
}

export function CardBody({ children }: { children: ReactNode }) {
    return <div className={css.cardBody}>{children}</div>;
}

/** A line of a list of facts (`dl`). */
export function Fact({ name, value }: { name: string; value: ReactNode }) {
    return (
        <>
            <dt>{name}</dt>
            <dd>{value}</dd>
        </>
    );
}

export function Empty({ children }: { children: ReactNode }) {
    return <p className={css.empty}>{children}</p>;
}

export function Skeleton({ rows = 3 }: { rows?: number }) {
    return (
        <div role="status" aria-label={t.app.loading}>
            {Array.from({ length: rows }, (_, row) => (
                <div key={row} className={css.skeleton} />
            ))}
        </div>
    );
}

/** What went wrong, in the server's words, and how to go on. */
export function Failure({ error, again }: { error: Error; again?: () => void }) {
    const isOurs = error instanceof ApiError;
    const isInput = error instanceof InputError;
    return (
        <div className={css.failure} role="alert">
            <strong>{isOurs ? error.title : t.failure.title}</strong>
            <p>{isOurs ? error.detail : isInput ? error.message : t.failure.offline}</p>
            {isOurs && error.requestId && <code className={css.soft}>{t.failure.request(error.requestId)}</code>}
            {again && <Button onPress={again}>{t.failure.again}</Button>}
        </div>
    );
}

/** What is asked for: while it is on its way, when it did not come, and when it is here. */
export function Asked<T>({
    of,
    children,
}: {
    of: { data: T | undefined; error: Error | null; refetch: () => unknown };
    children: (data: T) => ReactNode;
}) {
    if (of.data !== undefined) return children(of.data);
    if (of.error) return <Failure error={of.error} again={() => void of.refetch()} />;
    return <Skeleton />;
}

/** How long ago or how far off, with the moment itself for whoever points at it. */
export function When({ time }: { time: string }) {
    const shown = useNow();
    return (
        <time dateTime={time} title={absolute(time)}>
            {relative(time, shown)}
        </time>
    );
}

/** What is left until then. Says nothing to screen readers each second. */
export function Countdown({ until }: { until: string }) {
    useNow();
    return (
        <span className={css.countdown} role="timer" aria-live="off" title={absolute(until)}>
            {left(Date.parse(until) - now())}
        </span>
    );
}

export function Id({ id }: { id: string }) {
    const [isCopied, setCopied] = useState(false);
    const copy = () => void navigator.clipboard.writeText(id).then(() => setCopied(true));
    return (
        <span>
            <code title={id}>{id.slice(0, 8)}</code>{" "}
            <Button aria-label={`${t.copy.copy} ${id}`} onPress={copy}>
                {isCopied ? t.copy.copied : t.copy.copy}
            </Button>
        </span>
    );
}
