// Letting somebody in, in three steps: who and where, what, until when.

import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { useNavigate, useSearchParams } from "react-router";

import { api, body } from "../../api/client";
import { queries } from "../../api/queries";
import { useWhole } from "../../api/whole";
import { t } from "../../text/en";
import { useNow } from "../../time/clock";
import { absolute, isZone } from "../../time/format";
import { Button } from "../../ui/Button";
import { Card, CardBody, Failure, PageHead } from "../../ui/parts";
import ui from "../../ui/ui.module.css";
import { useSaid } from "../access/said";
import page from "../pages.module.css";
import { type Draft, useDraft } from "./draft";
import css from "./NewGrant.module.css";

/** The label that names the time zone of a device, as in rollouts. */
const ZONE = "timezone";

type Step = { fields: (props: Props) => ReactNode; fault: (draft: Draft) => string | undefined };
type Props = { draft: Draft; set: (change: Partial<Draft>) => void };

const STEPS: Step[] = [
    { fields: Who, fault: (draft) => (draft.deviceId || draft.selector.trim() ? undefined : t.grant.needWhere) },
    { fields: What, fault: (draft) => (draft.scopes.length > 0 ? undefined : t.grant.needScope) },
    { fields: Until, fault: (draft) => (draft.reason.trim() ? undefined : t.grant.needReason) },
];

export default function NewGrant() {
    const [params] = useSearchParams();
    const device = params.get("device");
    const { draft, set, forget } = useDraft(device ? { deviceId: device, selector: "" } : {});
    const [place, setPlace] = useState(0);
    const [fault, setFault] = useState<string>();
    const navigate = useNavigate();
    const client = useQueryClient();
    const create = useMutation({
        mutationFn: () => body(api.POST("/api/v1/grants", { body: asked(draft) })),
        onSuccess: async () => {
            forget();
            await client.invalidateQueries({ queryKey: ["grants"] });
            await navigate("/access");
        },
    });
    const step = STEPS[place] ?? STEPS[0];
    if (!step) return null;
    const isLast = place === STEPS.length - 1;
    const next = () => {
        const fault = step.fault(draft);
        setFault(fault);
        if (fault) return;
        if (isLast) create.mutate();
        else setPlace(place + 1);
    };
    return (
        <>
            <PageHead title={t.grant.title} />
            <ol className={css.steps}>
                {t.grant.steps.map((title, index) => (
                    <li key={title} aria-current={index === place ? "step" : undefined}>
                        {title}
                    </li>
                ))}
            </ol>
            <form
                className={css.form}
                onSubmit={(event) => {
                    event.preventDefault();
                    next();
                }}
            >
                <Card title={t.grant.steps[place] ?? ""}>
                    <CardBody>
                        <div className={page.stack}>
                            <step.fields draft={draft} set={set} />
                            {isLast && <Summary draft={draft} />}
                            {fault && (
                                <p className={ui.fault} role="alert">
                                    {fault}
                                </p>
                            )}
                            {create.error && <Failure error={create.error} />}
                        </div>
                    </CardBody>
                </Card>
                <div className={ui.actions}>
                    {place > 0 && <Button onPress={() => setPlace(place - 1)}>{t.grant.back}</Button>}
                    <Button type="submit" look="primary" large isDisabled={create.isPending}>
                        {isLast ? t.grant.confirm : t.grant.next}
                    </Button>
                </div>
            </form>
        </>
    );
}

function asked(draft: Draft) {
    return {
        scopes: draft.scopes,
        reason: draft.reason.trim(),
        duration_seconds: draft.seconds,
        ...(draft.deviceId ? { device_ids: [draft.deviceId] } : { selector: draft.selector.trim() }),
        ...(draft.operatorId && { operator_ids: [draft.operatorId] }),
    };
}

function Who({ draft, set }: Props) {
    const device = useQuery({ ...queries.device(draft.deviceId), enabled: draft.deviceId !== "" });
    const people = useWhole(useInfiniteQuery(queries.people()));
    const operators = people.filter((person) => person.role === "operator" && person.active);
    return (
        <>
            <label className={ui.field}>
                <span className={ui.legend}>{t.grant.who}</span>
                <select className={ui.input} value={draft.operatorId} onChange={(event) => set({ operatorId: event.target.value })}>
                    <option value="">{t.grant.everyOperator}</option>
                    {operators.map((operator) => (
                        <option key={operator.id} value={operator.id}>
                            {operator.name}
                        </option>
                    ))}
                </select>
            </label>
            {draft.deviceId ? (
                <div className={page.actions}>
                    <span>
                        {t.grant.byDevice}: <strong>{device.data?.name ?? draft.deviceId}</strong>
                    </span>
                    <Button onPress={() => set({ deviceId: "" })}>{t.grant.bySelector}</Button>
                </div>
            ) : (
                <label className={ui.field}>
                    <span className={ui.legend}>{t.grant.bySelector}</span>
                    <input className={ui.input} value={draft.selector} onChange={(event) => set({ selector: event.target.value })} />
                    <span className={ui.hint}>{t.grant.selectorHint}</span>
                </label>
            )}
        </>
    );
}

function What({ draft, set }: Props) {
    const toggle = (scope: string, isOn: boolean) =>
        set({ scopes: isOn ? [...draft.scopes, scope] : draft.scopes.filter((each) => each !== scope) });
    return (
        <fieldset className={css.choices}>
            <legend className={ui.legend}>{t.grant.what}</legend>
            {Object.entries(t.scopes).map(([scope, meaning]) => (
                <label key={scope}>
                    <input type="checkbox" checked={draft.scopes.includes(scope)} onChange={(event) => toggle(scope, event.target.checked)} />
                    <span>{meaning}</span>
                </label>
            ))}
        </fieldset>
    );
}

function Until({ draft, set }: Props) {
    return (
        <>
            <fieldset className={css.choices}>
                <legend className={ui.legend}>{t.grant.until}</legend>
                {Object.entries(t.grant.durations).map(([seconds, meaning]) => (
                    <label key={seconds}>
                        <input type="radio" name="seconds" checked={draft.seconds === Number(seconds)} onChange={() => set({ seconds: Number(seconds) })} />
                        <span>{meaning}</span>
                    </label>
                ))}
            </fieldset>
            <label className={ui.field}>
                <span className={ui.legend}>{t.grant.reason}</span>
                <input className={ui.input} value={draft.reason} maxLength={1024} onChange={(event) => set({ reason: event.target.value })} />
                <span className={ui.hint}>{t.grant.reasonHint}</span>
            </label>
        </>
    );
}

function Summary({ draft }: { draft: Draft }) {
    const device = useQuery({ ...queries.device(draft.deviceId), enabled: draft.deviceId !== "" });
    const zone = device.data?.labels[ZONE];
    const until = new Date(useNow() + draft.seconds * 1000).toISOString();
    const access = {
        scopes: draft.scopes,
        operator_ids: draft.operatorId ? [draft.operatorId] : null,
        device_ids: draft.deviceId ? [draft.deviceId] : null,
        selector_text: draft.selector,
        until,
    };
    return (
        <div className={css.summary}>
            <strong>{useSaid(access)}</strong>
            <span>{zone && isZone(zone) ? t.grant.zones(absolute(until), absolute(until, zone)) : t.grant.ends(absolute(until))}</span>
        </div>
    );
}
