// What an operator can do with a device: what no grant covers is there, says so, and can be asked for.

import { useInfiniteQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "react-router";

import { api, body, type Schemas } from "../../api/client";
import { useIdempotencyKey } from "../../api/idempotency";
import { queries } from "../../api/queries";
import { useWhole } from "../../api/whole";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { type Field, FormDialog } from "../../ui/FormDialog";
import { Asked, Card } from "../../ui/parts";
import { argumentsOf, COMMAND_FIELDS } from "../commands";
import page from "../pages.module.css";
import type { Device } from "../devices/contact";

type Action = {
    /** Of a command, or `terminal`. */
    kind: string;
    scope: string;
    fields?: Field[] | undefined;
    isDangerous?: boolean;
    /** Not while the device asks to be left alone. */
    disturbs?: boolean;
    /** A device that polls takes it with its next poll. */
    canWait?: boolean;
};

const ACTIONS: Action[] = [
    { kind: "terminal", scope: "shell:open" },
    { kind: "metrics.collect", scope: "metrics:read", canWait: true },
    { kind: "service.restart", scope: "service:restart", fields: COMMAND_FIELDS["service.restart"], disturbs: true },
    { kind: "device.reboot", scope: "device:reboot", isDangerous: true, disturbs: true },
    { kind: "device.shutdown", scope: "device:shutdown", isDangerous: true, disturbs: true },
    { kind: "container.update", scope: "container:update", fields: COMMAND_FIELDS["container.update"], disturbs: true, canWait: true },
    { kind: "os.update", scope: "os:update", fields: COMMAND_FIELDS["os.update"], isDangerous: true, disturbs: true, canWait: true },
    { kind: "agent.update", scope: "agent:update", fields: COMMAND_FIELDS["agent.update"], canWait: true },
];
/** Allows what disturbs while the device asks to be left alone. */
const OVERRIDE = "busy:override";
/** How long what can wait waits for a poll. */
const QUEUE_SECONDS = 3600;
const ACCESS_SECONDS: Record<string, string> = { "3600": t.grant.durations[3600], "14400": t.grant.durations[14400], "86400": t.grant.durations[86400] };

export function Actions({ device }: { device: Device }) {
    const grants = useInfiniteQuery(queries.grants("in_force", device.id));
    const inForce = useWhole(grants);
    const requests = useWhole(useInfiniteQuery(queries.requests("open", device.id)));
    return (
        <Card title={t.actions.title}>
            <Asked of={grants}>
                {() => (
                    <ul className={page.rows}>
                        {ACTIONS.map((action) => (
                            <ActionRow
                                key={action.kind}
                                action={action}
                                device={device}
                                grants={inForce}
                                requests={requests}
                            />
                        ))}
                    </ul>
                )}
            </Asked>
        </Card>
    );
}

function ActionRow(props: { action: Action; device: Device; grants: Schemas["Grant"][]; requests: Schemas["AccessRequest"][] }) {
    const { action, device, grants, requests } = props;
    const me = useMe();
    const words = t.actions.kinds[action.kind];
    // The server decides. This is what it would say, so that nobody has to try.
    const allowing = grants
        .filter((grant) => grant.scopes.includes(action.scope) && (!grant.operator_ids || grant.operator_ids.includes(me.id)))
        .sort((one, other) => other.ends_at.localeCompare(one.ends_at));
    const isBusy = action.disturbs === true && device.busy_lock !== null && device.busy_lock !== undefined;
    const overriding = isBusy ? allowing.find((grant) => grant.scopes.includes(OVERRIDE)) : undefined;
    const covering = overriding ?? allowing[0];
    const asked = requests.find((request) => request.requested_by === me.id && request.scopes.includes(action.scope));
    const reason = !covering ? t.actions.noGrant : unreachable(action, device, isBusy && !overriding);
    const until = covering && absolute(covering.ends_at);
    return (
        <li>
            <div className={page.grow}>
                <strong>{words?.title ?? action.kind}</strong>
                <span className={page.soft}>{reason ?? (until && (overriding ? t.actions.busyOverridden(until) : t.actions.until(until)))}</span>
            </div>
            <div className={page.actions}>
                {!covering && (asked ? <span className={page.soft}>{t.actions.asked(absolute(asked.answer_by))}</span> : <Ask action={action} device={device} />)}
                <Do action={action} device={device} under={overriding?.id} isDisabled={reason !== undefined} />
            </div>
        </li>
    );
}

function unreachable(action: Action, device: Device, isBusy: boolean): string | undefined {
    if (device.state === "revoked") return t.actions.revoked;
    if (device.quarantine) return t.actions.quarantined;
    if (device.busy_lock && isBusy) return t.device.busy(device.busy_lock.reason, absolute(device.busy_lock.until));
    if (device.link?.state === "live") return undefined;
    if (device.poll?.next_poll_by) return action.canWait ? undefined : t.actions.polls;
    return t.actions.silent;
}

/** `under`: a grant that allows to disturb it. The dialog stays while somebody types, whatever becomes of the device meanwhile: the server decides. */
function Do({ action, device, under, isDisabled }: { action: Action; device: Device; under: string | undefined; isDisabled: boolean }) {
    const client = useQueryClient();
    const navigate = useNavigate();
    const key = useIdempotencyKey();
    const words = t.actions.kinds[action.kind];
    const fields = action.fields ?? [];
    const act = async ({ reason = "", ...given }: Record<string, string>) => {
        if (action.kind === "terminal") {
            const path = { id: device.id };
            const session = await body(api.POST("/api/v1/devices/{id}/support-sessions", { params: { path }, body: { kind: "terminal", reason } }));
            await navigate(`/sessions/${session.id}`);
            return;
        }
        const isLinked = device.link?.state === "live";
        const command = {
            kind: action.kind,
            reason,
            ...(fields.length > 0 && { arguments: argumentsOf(given) }),
            ...(!isLinked && { queue_for_seconds: QUEUE_SECONDS }),
            ...(under && { grant_id: under, override_busy: true }),
        };
        // When the answer is lost and somebody presses again, the device restarts once.
        const params = { path: { id: device.id }, header: { "Idempotency-Key": key.of(command) } };
        await body(api.POST("/api/v1/devices/{id}/commands", { params, body: command }));
        key.answered();
        await client.invalidateQueries({ queryKey: ["commands"] });
    };
    return (
        <FormDialog
            trigger={
                <Button look={action.isDangerous ? "danger" : "plain"} isDisabled={isDisabled}>
                    {words?.act ?? action.kind}
                </Button>
            }
            title={t.actions.of(words?.title ?? action.kind, device.name)}
            fields={[...fields, { name: "reason", label: t.grant.reason, hint: t.grant.reasonHint }]}
            act={words?.act ?? action.kind}
            look={action.isDangerous ? "danger" : "primary"}
            onAct={act}
        >
            {words?.warning && <p>{words.warning(device.name)}</p>}
            {under && device.busy_lock && <p>{t.device.busy(device.busy_lock.reason, absolute(device.busy_lock.until))}</p>}
        </FormDialog>
    );
}

function Ask({ action, device }: { action: Action; device: Device }) {
    const client = useQueryClient();
    const ask = async ({ reason = "", seconds = "" }: Record<string, string>) => {
        const asked = { device_ids: [device.id], scopes: [action.scope], reason, access_seconds: Number(seconds) };
        await body(api.POST("/api/v1/access-requests", { body: asked }));
        await client.invalidateQueries({ queryKey: ["access_requests"] });
        await client.invalidateQueries({ queryKey: ["grants"] });
    };
    return (
        <FormDialog
            trigger={<Button>{t.actions.ask}</Button>}
            title={t.actions.askTitle(device.name)}
            fields={[
                { name: "reason", label: t.grant.reason, hint: t.grant.reasonHint },
                { name: "seconds", label: t.actions.howLong, options: ACCESS_SECONDS },
            ]}
            act={t.actions.send}
            onAct={ask}
        >
            <p>{t.actions.askText(t.scopes[action.scope] ?? action.scope)}</p>
        </FormDialog>
    );
}
