import { useInfiniteQuery } from "@tanstack/react-query";
import { Link, useNavigate } from "react-router";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useWhole } from "../../api/whole";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { FormDialog } from "../../ui/FormDialog";
import { Listing } from "../../ui/Listing";
import { Badge, Card, PageHead, type Tone } from "../../ui/parts";
import { argumentsOf, COMMAND_FIELDS, kindInWords } from "../commands";
import page from "../pages.module.css";

const TONES: Partial<Record<Schemas["RolloutState"], Tone>> = { running: "warn", paused: "warn", halted: "bad", finished: "good" };

const KINDS = Object.fromEntries(
    ["metrics.collect", "container.update", "os.update", "agent.update", "service.restart", "device.reboot"].map((kind) => [kind, kindInWords(kind)]),
);
const FIRST = "metrics.collect";

export default function Rollouts() {
    const me = useMe();
    const rollouts = useInfiniteQuery(queries.rollouts());
    return (
        <>
            <PageHead title={t.rollouts.title} lead={t.rollouts.lead}>
                {me.role === "operator" && <Plan />}
            </PageHead>
            <Card title={t.rollouts.title}>
                <Listing of={rollouts} empty={t.rollouts.none}>
                    {(rollout) => (
                        <li key={rollout.id}>
                            <div className={page.grow}>
                                <Link to={`/rollouts/${rollout.id}`}>
                                    <strong>{t.rollouts.said(kindInWords(rollout.kind), rollout.selector)}</strong>
                                </Link>
                                <span className={page.soft}>
                                    {rollout.reason} · {absolute(rollout.created_at)}
                                </span>
                            </div>
                            <State state={rollout.state} />
                        </li>
                    )}
                </Listing>
            </Card>
        </>
    );
}

export function State({ state }: { state: Schemas["RolloutState"] }) {
    return <Badge tone={TONES[state] ?? "plain"}>{t.rollouts.states[state]}</Badge>;
}

/** A plan does nothing yet: it freezes which devices are meant, and shows them. */
function Plan() {
    const me = useMe();
    const navigate = useNavigate();
    const own = useWhole(useInfiniteQuery(queries.grants("in_force"))).filter((grant) => !grant.operator_ids || grant.operator_ids.includes(me.id));
    const options = Object.fromEntries(own.map((grant) => [grant.id, t.rollouts.grant(grant.reason, absolute(grant.ends_at))]));
    const plan = async (given: Record<string, string>) => {
        const { grant_id = "", kind = "", selector = "", canaries, batch, rate, reason = "", ...rest } = given;
        const asked = {
            grant_id,
            kind,
            selector,
            reason,
            canaries: Number(canaries),
            batch: Number(batch),
            rate_per_minute: Number(rate),
            ...(kind in COMMAND_FIELDS && { arguments: argumentsOf(rest) }),
        };
        const made = await body(api.POST("/api/v1/rollouts", { body: asked }));
        await navigate(`/rollouts/${made.id}`);
    };
    // The dialog stays while somebody types, even if the last grant ends meanwhile.
    return (
        <div className={page.actions}>
            {own.length === 0 && <span className={page.soft}>{t.rollouts.noGrant}</span>}
            <FormDialog
                trigger={
                    <Button look="primary" isDisabled={own.length === 0}>
                        {t.rollouts.plan}
                    </Button>
                }
                title={t.rollouts.plan}
                fields={({ kind = FIRST }) => [
                    { name: "grant_id", label: t.rollouts.under, options },
                    { name: "kind", label: t.rollouts.kind, options: KINDS },
                    ...(COMMAND_FIELDS[kind] ?? []),
                    { name: "selector", label: t.devices.filter, hint: t.grant.selectorHint },
                    { name: "canaries", label: t.rollouts.canaries, value: "1" },
                    { name: "batch", label: t.rollouts.batch, value: "10" },
                    { name: "rate", label: t.rollouts.rate, value: "600" },
                    { name: "reason", label: t.grant.reason, hint: t.grant.reasonHint },
                ]}
                act={t.rollouts.plan}
                onAct={plan}
            >
                <p>{t.rollouts.planText}</p>
            </FormDialog>
        </div>
    );
}
