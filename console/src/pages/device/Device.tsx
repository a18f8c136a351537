import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link, useParams } from "react-router";

import type { Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { ButtonLink } from "../../ui/Button";
import { Listing } from "../../ui/Listing";
import { Asked, Badge, Card, Empty, Fact, PageHead, When } from "../../ui/parts";
import { Grants, Requests } from "../access/Access";
import { kindInWords } from "../commands";
import { Contact, type Device, provenAt } from "../devices/contact";
import { Labels } from "../devices/DeviceTable";
import page from "../pages.module.css";
import { SessionRow } from "../sessions/SessionRow";
import { Actions } from "./Actions";
import { Metrics } from "./Metrics";

/** From which on a device's clock is worth a word. */
const CLOCK_OFF_MS = 2000;

export default function DevicePage() {
    const { id = "" } = useParams();
    const device = useQuery(queries.device(id));
    return (
        <>
            <p>
                <Link to="/devices">{t.device.back}</Link>
            </p>
            <Asked of={device}>{(device) => <Shown device={device} />}</Asked>
        </>
    );
}

function Shown({ device }: { device: Device }) {
    const me = useMe();
    return (
        <>
            <PageHead title={device.name}>
                {me.role === "tenant" && device.state === "active" && (
                    <ButtonLink to={`/access/new?device=${device.id}`} look="primary">
                        {t.device.allow}
                    </ButtonLink>
                )}
            </PageHead>
            <div className={page.stack}>
                <div className={page.columns}>
                    <Status device={device} />
                    <Boots id={device.id} />
                </div>
                {me.role === "operator" && <Actions device={device} />}
                <Card title={t.device.access}>
                    <Grants state="in_force" device={device.id} />
                </Card>
                {me.role === "tenant" && (
                    <Card title={t.home.requests}>
                        <Requests device={device.id} />
                    </Card>
                )}
                {me.role !== "admin" && <Metrics id={device.id} />}
                <Commands id={device.id} />
                <Sessions id={device.id} />
            </div>
        </>
    );
}

function Status({ device }: { device: Device }) {
    const proven = provenAt(device);
    const about = device.link ?? device.poll;
    const off = about?.clock_offset_ms ?? 0;
    const facts: [string, React.ReactNode][] = [];
    if (proven) facts.push([t.device.lastProven, <When key="proven" time={proven} />]);
    if (device.link?.state === "live") facts.push([t.device.since, absolute(device.link.connected_at)]);
    if (device.transport) facts.push([t.device.transport, device.transport]);
    if (device.transport_failures.length > 0) {
        facts.push([t.device.why, device.transport_failures.map((each) => `${each.transport}: ${each.stage} ${each.code}`).join(", ")]);
    }
    if (about) {
        facts.push([t.device.system, about.os], [t.device.agent, about.agent], [t.device.address, about.remote_address]);
        if (Math.abs(off) >= CLOCK_OFF_MS) facts.push([t.device.clock, t.device.clockOff((off / 1000).toFixed(0))]);
    }
    return (
        <Card title={t.device.status} aside={<Contact device={device} />}>
            <dl className={page.facts}>
                {facts.map(([name, value]) => (
                    <Fact key={name} name={name} value={value} />
                ))}
                {Object.keys(device.labels).length > 0 && <Fact name={t.devices.columns.labels} value={<Labels labels={device.labels} />} />}
            </dl>
            <Notes device={device} />
        </Card>
    );
}

/** What somebody should know before asking anything of it. */
function Notes({ device }: { device: Device }) {
    const notes = [
        device.busy_lock && t.device.busy(device.busy_lock.reason, absolute(device.busy_lock.until)),
        device.quarantine && t.device.quarantine(device.quarantine.reason),
        device.poll?.next_poll_by && t.device.nextPoll(absolute(device.poll.next_poll_by)),
    ].filter((note) => typeof note === "string");
    if (notes.length === 0) return null;
    return (
        <ul className={page.rows}>
            {notes.map((note) => (
                <li key={note}>{note}</li>
            ))}
        </ul>
    );
}

function Boots({ id }: { id: string }) {
    const boots = useQuery(queries.boots(id));
    return (
        <Card title={t.device.boots}>
            <Asked of={boots}>
                {({ boots, missing }) => (
                    <>
                        {missing && <Empty>{t.device.missing}</Empty>}
                        {boots.length === 0 ? (
                            <Empty>{t.device.noBoots}</Empty>
                        ) : (
                            <ul className={page.rows}>
                                {boots.slice(0, 6).map((boot) => (
                                    <li key={boot.boot_id}>
                                        <span>{absolute(boot.seen_at)}</span>
                                        <Badge tone={boot.cause === "power_loss" || boot.cause === "watchdog" ? "bad" : "plain"}>
                                            {t.device.bootCauses[boot.cause]}
                                        </Badge>
                                    </li>
                                ))}
                            </ul>
                        )}
                    </>
                )}
            </Asked>
        </Card>
    );
}

function Commands({ id }: { id: string }) {
    const commands = useInfiniteQuery(queries.commands(id));
    return (
        <Card title={t.device.commands}>
            <Listing of={commands} empty={t.device.noCommands}>
                {(command) => <CommandRow key={command.id} command={command} />}
            </Listing>
        </Card>
    );
}

function Sessions({ id }: { id: string }) {
    const sessions = useInfiniteQuery(queries.supportSessions({ device_id: id }));
    return (
        <Card title={t.sessions.title}>
            <Listing of={sessions} empty={t.sessions.noneHere}>
                {(session) => <SessionRow key={session.id} session={session} />}
            </Listing>
        </Card>
    );
}

const TONES: Partial<Record<Schemas["Command"]["state"], "good" | "bad">> = {
    succeeded: "good",
    failed: "bad",
    refused: "bad",
    unconfirmed: "bad",
    expired: "bad",
};

function CommandRow({ command }: { command: Schemas["Command"] }) {
    const state = t.device.states[command.state];
    return (
        <li>
            <div className={page.grow}>
                <strong>{kindInWords(command.kind)}</strong>
                <span className={page.soft}>
                    {command.reason} · {absolute(command.created_at)}
                    {command.runs_by && ` · ${t.device.runsBy(absolute(command.runs_by))}`}
                </span>
                {command.message && <span className={page.soft}>{command.message}</span>}
            </div>
            <Badge tone={TONES[command.state] ?? "plain"}>
                {command.code ? t.device.because(state, command.code) : command.state === "running" && command.percent ? t.device.percent(state, command.percent) : state}
            </Badge>
        </li>
    );
}
