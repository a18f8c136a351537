import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useMemo, useState } from "react";
import { Link, useParams } from "react-router";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useNames } from "../../session/names";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Asked, Badge, Card, CardBody, Countdown, Empty, Fact, PageHead, Skeleton } from "../../ui/parts";
import ui from "../../ui/ui.module.css";
import page from "../pages.module.css";
import { digest, parse } from "./cast";
import css from "./Session.module.css";

const LiveTerminal = lazy(() => import("./Terminal"));
const Player = lazy(() => import("./Player"));

type Session = Schemas["SupportSession"];

/** Those that were begun on this page: another page may not take the one stream of a terminal. */
const begun = new Map<string, boolean>();

export default function SessionPage() {
    const { id = "" } = useParams();
    const session = useQuery(queries.supportSession(id));
    return <Asked of={session}>{(session) => <Shown key={session.id} session={session} />}</Asked>;
}

function Shown({ session }: { session: Session }) {
    const me = useMe();
    const name = useNames();
    const device = useQuery(queries.deviceName(session.device_id)).data ?? session.device_id.slice(0, 8);
    const isMine = session.opened_by === me.id;
    if (!begun.has(session.id)) begun.set(session.id, isMine && session.state === "waiting");
    const mode = begun.get(session.id) ? "operate" : "watch";
    // What was seen live stays on the screen when it is over. Nobody watches what has not begun.
    const isOn = mode === "operate" ? !session.ended_at : session.state === "live";
    const [wasOn, setWasOn] = useState(isOn);
    if (isOn && !wasOn) setWasOn(true);
    const isTerminal = session.kind === "terminal" && me.role !== "admin";
    const what = t.sessions.said(name(session.opened_by), t.sessions.kinds[session.kind], device);
    return (
        <>
            <p>
                <Link to={`/devices/${session.device_id}`}>{device}</Link>
            </p>
            <PageHead title={t.session_.title(t.sessions.kinds[session.kind], device)} lead={session.reason}>
                <div className={page.actions}>
                    {!session.ended_at && (
                        <Badge tone="warn">
                            <Countdown until={session.expires_at} /> {t.access.endsIn}
                        </Badge>
                    )}
                    {!session.ended_at && (isMine || me.role === "tenant") && <Close id={session.id} />}
                </div>
            </PageHead>
            <div className={page.stack}>
                {isTerminal && session.state === "waiting" && mode === "watch" && <Empty>{t.session_.notYet}</Empty>}
                {isTerminal && wasOn && (
                    <Card title={what} aside={<Badge>{t.session_.recorded}</Badge>}>
                        <Suspense fallback={<Skeleton />}>
                            <LiveTerminal session={session.id} mode={mode} what={what} />
                        </Suspense>
                    </Card>
                )}
                {session.ended_at && <Ended session={session} name={name} />}
                {session.ended_at && <Recording session={session} />}
            </div>
        </>
    );
}

function Close({ id }: { id: string }) {
    const client = useQueryClient();
    const close = useMutation({
        mutationFn: () => body(api.POST("/api/v1/support-sessions/{id}/close", { params: { path: { id } } })),
        onSettled: () => client.invalidateQueries({ queryKey: ["support_sessions"] }),
    });
    return (
        <Button look="danger" isDisabled={close.isPending} onPress={() => close.mutate()}>
            {t.session_.close}
        </Button>
    );
}

function Ended({ session, name }: { session: Session; name: (id: string) => string }) {
    const facts: [string, string][] = [
        [t.session_.opened, absolute(session.created_at)],
        [t.session_.by, name(session.opened_by)],
        [t.session_.ended, session.ended_at ? absolute(session.ended_at) : t.devices.direct],
        [t.session_.why, t.sessions.ends[session.end_reason ?? ""] ?? session.end_reason ?? t.devices.direct],
    ];
    if (session.guests.length > 0) facts.push([t.session_.guests, session.guests.map((guest) => name(guest.person_id)).join(", ")]);
    if (session.cut_off_ms !== null && session.cut_off_ms !== undefined) facts.push([t.session_.cutOff, t.session_.milliseconds(session.cut_off_ms)]);
    return (
        <Card title={t.session_.over}>
            <dl className={page.facts}>
                {facts.map(([term, value]) => (
                    <Fact key={term} name={term} value={value} />
                ))}
            </dl>
        </Card>
    );
}

const FORMAT = "asciicast-v2";

function Recording({ session }: { session: Session }) {
    const recording = useQuery(queries.recording(session.id));
    return (
        <Asked of={recording}>
            {(recording) => (
                <Card
                    title={t.player.title}
                    aside={
                        recording.state !== "deleted" && (
                            <a className={ui.button} href={contentOf(session.id)} download={`${session.id}.${recording.format === FORMAT ? "cast" : "ndjson"}`}>
                                {t.player.download}
                            </a>
                        )
                    }
                >
                    {recording.state === "finished" || recording.state === "cut_short" ? (
                        <Content recording={recording} />
                    ) : (
                        <Empty>{t.player.states[recording.state]}</Empty>
                    )}
                </Card>
            )}
        </Asked>
    );
}

function Content({ recording }: { recording: Schemas["Recording"] }) {
    // Each reading is written to the audit log, so it is asked for once.
    const content = useQuery(queries.recordingContent(recording.session_id));
    return <Asked of={content}>{(text) => <Told recording={recording} text={text} />}</Asked>;
}

function Told({ recording, text }: { recording: Schemas["Recording"]; text: string }) {
    const cast = useMemo(() => (recording.format === FORMAT ? parse(text) : undefined), [recording.format, text]);
    return (
        <>
            <CardBody>
                <Verdict expected={recording.digest} text={text} /> {cast?.isTorn && <Badge tone="warn">{t.player.torn}</Badge>}{" "}
                <span className={page.soft}>{t.player.keptUntil(absolute(recording.keep_until))}</span>
            </CardBody>
            {cast ? (
                <Suspense fallback={<Skeleton />}>
                    <Player cast={cast} />
                </Suspense>
            ) : (
                <pre className={css.text} tabIndex={0}>
                    {text}
                </pre>
            )}
        </>
    );
}

function contentOf(id: string) {
    return `/api/v1/support-sessions/${id}/recording/content`;
}

/** Without a digest there is nothing to compare with: a part of it cannot be read. */
function Verdict({ expected, text }: { expected: string | null | undefined; text: string }) {
    const [actual, setActual] = useState<string>();
    useEffect(() => void digest(text).then(setActual), [text]);
    if (!expected) return <Badge tone="warn">{t.player.unchecked}</Badge>;
    if (actual === undefined) return <Badge>{t.app.loading}</Badge>;
    return actual === expected ? <Badge tone="good">{t.player.genuine}</Badge> : <Badge tone="bad">{t.player.forged}</Badge>;
}
