// The servers, and whether they keep devices apart.

import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Confirm } from "../../ui/Confirm";
import { Listing } from "../../ui/Listing";
import { Asked, Badge, Card, Failure, PageHead, type Tone, When } from "../../ui/parts";
import page from "../pages.module.css";

export default function Nodes() {
    const me = useMe();
    const nodes = useQuery(queries.nodes());
    const proofs = useInfiniteQuery(queries.proofs());
    return (
        <>
            <PageHead title={t.nodes.title} lead={t.nodes.lead} />
            <div className={page.stack}>
                <Card title={t.nodes.title}>
                    <Asked of={nodes}>
                        {({ items }) => (
                            <ul className={page.rows}>
                                {items.map((node) => (
                                    <NodeRow key={node.name} node={node} />
                                ))}
                            </ul>
                        )}
                    </Asked>
                </Card>
                <Card title={t.nodes.proofs} aside={me.role === "admin" && <Prove />}>
                    <Listing of={proofs} empty={t.nodes.noProofs}>
                        {(proof) => <ProofRow key={proof.id} proof={proof} />}
                    </Listing>
                </Card>
            </div>
        </>
    );
}

const TONES: Record<Schemas["NodeState"], Tone> = { serving: "good", draining: "warn", drained: "plain", gone: "bad" };

function NodeRow({ node }: { node: Schemas["Node"] }) {
    const me = useMe();
    const client = useQueryClient();
    const step = useMutation({
        mutationFn: (step: "drain" | "resume") => body<unknown>(api.POST(`/api/v1/nodes/{name}/${step}`, { params: { path: { name: node.name } }, body: {} })),
        onSettled: () => client.invalidateQueries({ queryKey: ["nodes"] }),
    });
    const isolation = node.condition?.isolation;
    return (
        <li>
            <div className={page.grow}>
                <strong>{node.name}</strong>
                <span className={page.soft}>
                    {t.nodes.carries(node.links, node.tunnels, node.support_sessions)} · {node.version} · {t.nodes.since} {absolute(node.started_at)}
                </span>
                {step.error && <Failure error={step.error} />}
            </div>
            <div className={page.actions}>
                {isolation !== null && isolation !== undefined && (
                    <Badge tone={isolation ? "good" : "bad"}>{isolation ? t.nodes.isolated : t.nodes.notIsolated}</Badge>
                )}
                <Badge tone={TONES[node.state]}>{t.nodes.states[node.state]}</Badge>
                {me.role === "admin" && node.state === "serving" && (
                    <Confirm
                        trigger={<Button>{t.nodes.drain}</Button>}
                        title={t.nodes.drainTitle(node.name)}
                        keep={t.app.cancel}
                        act={t.nodes.drain}
                        onAct={() => step.mutate("drain")}
                    >
                        {t.nodes.drainText}
                    </Confirm>
                )}
                {me.role === "admin" && (node.state === "draining" || node.state === "drained") && <Button onPress={() => step.mutate("resume")}>{t.nodes.resume}</Button>}
            </div>
        </li>
    );
}

function Prove() {
    const client = useQueryClient();
    const prove = useMutation({
        mutationFn: () => body<unknown>(api.POST("/api/v1/isolation/proofs", { body: {} })),
        onSettled: () => client.invalidateQueries({ queryKey: ["nodes"] }),
    });
    return (
        <div className={page.actions}>
            {prove.error && <Failure error={prove.error} />}
            <Button isDisabled={prove.isPending} onPress={() => prove.mutate()}>
                {t.nodes.prove}
            </Button>
        </div>
    );
}

function ProofRow({ proof }: { proof: Schemas["Proof"] }) {
    const wrong = proof.results.filter((result) => result.wrong > 0);
    return (
        <li>
            <div className={page.grow}>
                <strong>
                    {proof.node}, <When time={proof.finished_at} />
                </strong>
                <span className={page.soft}>
                    {t.nodes.attempts(proof.attempts)}
                    {wrong.length > 0 && `: ${wrong.map((result) => result.kind).join(", ")}`}
                </span>
            </div>
            <Badge tone={proof.outcome === "proven" ? "good" : proof.outcome === "leak" ? "bad" : "warn"}>{t.nodes.outcomes[proof.outcome]}</Badge>
        </li>
    );
}
