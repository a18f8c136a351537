import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useParams } from "react-router";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Confirm } from "../../ui/Confirm";
import { Listing } from "../../ui/Listing";
import { Asked, Badge, Card, CardBody, Fact, Failure, PageHead, type Tone } from "../../ui/parts";
import { kindInWords } from "../commands";
import page from "../pages.module.css";
import css from "./Rollout.module.css";
import { State } from "./Rollouts";

type Shown = Schemas["RolloutShown"];
type Step = "pause" | "resume" | "cancel";

export default function RolloutPage() {
    const { id = "" } = useParams();
    const rollout = useQuery(queries.rollout(id));
    return (
        <>
            <p>
                <Link to="/rollouts">{t.rollouts.all}</Link>
            </p>
            <Asked of={rollout}>{(rollout) => <Whole rollout={rollout} />}</Asked>
        </>
    );
}

function Whole({ rollout }: { rollout: Shown }) {
    const executions = useInfiniteQuery(queries.executions(rollout));
    return (
        <>
            <PageHead title={t.rollouts.said(kindInWords(rollout.kind), rollout.selector)} lead={rollout.reason}>
                <Steps rollout={rollout} />
            </PageHead>
            <div className={page.stack}>
                <div className={page.columns}>
                    <Progress rollout={rollout} />
                    <Plan rollout={rollout} />
                </div>
                <Card title={t.rollouts.devices}>
                    <Listing of={executions} empty={t.rollouts.noDevices}>
                        {(execution) => <ExecutionRow key={execution.device_id} execution={execution} />}
                    </Listing>
                </Card>
            </div>
        </>
    );
}

function Progress({ rollout }: { rollout: Shown }) {
    const { totals } = rollout;
    const whole = Object.values(totals).reduce((sum, count) => sum + count, 0);
    const parts = [
        ["succeeded", totals.succeeded],
        ["failed", totals.failed],
        ["skipped", totals.skipped],
        ["under_way", totals.under_way],
        ["waiting", totals.waiting],
    ] as const;
    return (
        <Card title={t.rollouts.progress} aside={<State state={rollout.state} />}>
            <CardBody>
                <div className={css.bar} role="img" aria-label={t.rollouts.done(totals.succeeded, whole)}>
                    {parts.map(([name, count]) => count > 0 && <span key={name} className={css[name]} style={{ flexGrow: count }} />)}
                </div>
                <dl className={css.totals}>
                    {parts.map(([name, count]) => (
                        <div key={name}>
                            <dt>
                                <i className={css[name]} aria-hidden />
                                {t.rollouts.totals[name]}
                            </dt>
                            <dd>{count}</dd>
                        </div>
                    ))}
                </dl>
            </CardBody>
        </Card>
    );
}

function Plan({ rollout }: { rollout: Shown }) {
    const out = Object.entries(rollout.out);
    return (
        <Card title={t.rollouts.planned}>
            <dl className={page.facts}>
                <Fact name={t.rollouts.canaries} value={rollout.canaries} />
                <Fact name={t.rollouts.batch} value={rollout.batch} />
                <Fact name={t.rollouts.rate} value={rollout.rate_per_minute} />
                <Fact name={t.rollouts.abortAfter} value={rollout.abort_after} />
                {rollout.ends_at && <Fact name={t.settings.ends} value={absolute(rollout.ends_at)} />}
                <Fact
                    name={t.rollouts.out}
                    value={out.length === 0 ? t.rollouts.nobody : out.map(([why, count]) => t.rollouts.outBecause(count, t.rollouts.whys[why] ?? why)).join(", ")}
                />
                <Fact name={t.rollouts.hash} value={<code>{rollout.hash.slice(0, 16)}</code>} />
            </dl>
        </Card>
    );
}

function Steps({ rollout }: { rollout: Shown }) {
    const me = useMe();
    const client = useQueryClient();
    const settled = () => client.invalidateQueries({ queryKey: ["rollouts"] });
    const apply = useMutation({
        mutationFn: () => body<unknown>(api.POST("/api/v1/rollouts/{id}/apply", { params: { path: { id: rollout.id } }, body: { hash: rollout.hash } })),
        onSettled: settled,
    });
    const step = useMutation({
        mutationFn: (step: Step) => body<unknown>(api.POST(`/api/v1/rollouts/{id}/${step}`, { params: { path: { id: rollout.id } } })),
        onSettled: settled,
    });
    const { state, totals } = rollout;
    const error = apply.error ?? step.error;
    // Whose devices they are may hold it up, and not begin it again.
    const mayStop = me.role !== "admin";
    return (
        <div className={page.actions}>
            {error && <Failure error={error} />}
            {state === "planned" && rollout.requested_by === me.id && (
                <Confirm
                    trigger={
                        <Button look="primary" isDisabled={apply.isPending}>
                            {t.rollouts.apply}
                        </Button>
                    }
                    title={t.rollouts.apply}
                    keep={t.rollouts.notYet}
                    act={t.rollouts.apply}
                    onAct={() => apply.mutate()}
                >
                    {t.rollouts.applyText(kindInWords(rollout.kind), totals.waiting, rollout.selector)}
                </Confirm>
            )}
            {mayStop && state === "running" && <Button onPress={() => step.mutate("pause")}>{t.rollouts.pause}</Button>}
            {me.role === "operator" && (state === "paused" || state === "halted") && <Button onPress={() => step.mutate("resume")}>{t.rollouts.resume}</Button>}
            {mayStop && (state === "running" || state === "paused" || state === "halted") && (
                <Confirm
                    trigger={<Button look="danger">{t.rollouts.abort}</Button>}
                    title={t.rollouts.abortTitle}
                    keep={t.rollouts.goOn}
                    act={t.rollouts.abort}
                    onAct={() => step.mutate("cancel")}
                >
                    {t.rollouts.abortText(totals.waiting, totals.under_way)}
                </Confirm>
            )}
        </div>
    );
}

const TONES: Partial<Record<Schemas["ExecutionState"], Tone>> = { succeeded: "good", failed: "bad", under_way: "warn" };

function ExecutionRow({ execution }: { execution: Schemas["Execution"] }) {
    const why = execution.why ?? execution.code;
    return (
        <li>
            <Link to={`/devices/${execution.device_id}`}>{execution.device_name}</Link>
            <span className={page.actions}>
                {why && <span className={page.soft}>{t.rollouts.whys[why] ?? why}</span>}
                <Badge tone={execution.state ? (TONES[execution.state] ?? "plain") : "plain"}>
                    {execution.state ? t.rollouts.totals[execution.state] : t.rollouts.isOut}
                </Badge>
            </span>
        </li>
    );
}
