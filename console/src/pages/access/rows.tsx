// Requests and grants as rows, with what can be done about them.

import { useMutation, useQueryClient } from "@tanstack/react-query";

import { api, body, type Schemas } from "../../api/client";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Confirm } from "../../ui/Confirm";
import { Badge, Countdown, Failure } from "../../ui/parts";
import ui from "../../ui/ui.module.css";
import page from "../pages.module.css";
import { useSaid } from "./said";

export function RequestRow({ request }: { request: Schemas["AccessRequest"] }) {
    const me = useMe();
    const client = useQueryClient();
    const answer = useMutation({
        mutationFn: (path: "approve" | "deny") =>
            body(api.POST(`/api/v1/access-requests/{id}/${path}`, { params: { path: { id: request.id } }, body: {} })),
        onSettled: () => Promise.all(["access_requests", "grants"].map((kind) => client.invalidateQueries({ queryKey: [kind] }))),
    });
    const what = useSaid({ ...request, operator_ids: request.operator_ids ?? [request.requested_by], until: request.access_until });
    const approvals = request.decisions.filter((each) => each.decision === "approve").length;
    return (
        <li>
            <div className={page.grow}>
                <strong>{what}</strong>
                <span className={page.soft}>
                    {request.reason} · {t.access.answerBy(absolute(request.answer_by))}
                    {request.approvals_needed > 1 && ` · ${t.access.needsTwo(approvals, request.approvals_needed)}`}
                </span>
                {answer.error && <Failure error={answer.error} />}
            </div>
            {me.role === "tenant" && request.state === "open" && (
                <div className={page.actions}>
                    <Button isDisabled={answer.isPending} onPress={() => answer.mutate("deny")}>
                        {t.access.deny}
                    </Button>
                    {/* Requests come while one aims: what is about to be opened is read before it is. */}
                    <Confirm
                        trigger={
                            <Button look="primary" isDisabled={answer.isPending}>
                                {t.access.approve}
                            </Button>
                        }
                        title={t.access.approveTitle}
                        keep={t.access.notNow}
                        act={t.access.approve}
                        look="primary"
                        onAct={() => answer.mutate("approve")}
                    >
                        {t.access.approveText(what)}
                    </Confirm>
                </div>
            )}
        </li>
    );
}

export function GrantRow({ grant }: { grant: Schemas["Grant"] }) {
    const me = useMe();
    const client = useQueryClient();
    const close = useMutation({
        mutationFn: () => body(api.POST("/api/v1/grants/{id}/revoke", { params: { path: { id: grant.id } } })),
        onSettled: () => client.invalidateQueries({ queryKey: ["grants"] }),
    });
    const what = useSaid({ ...grant, until: grant.ends_at });
    const isOpen = grant.state === "in_force" || grant.state === "scheduled";
    return (
        <li>
            <div className={page.grow}>
                <strong>{what}</strong>
                <span className={page.soft}>{grant.reason}</span>
                {close.error && <Failure error={close.error} />}
            </div>
            <div className={page.actions}>
                {grant.state === "in_force" && (
                    <Badge tone="warn">
                        <Countdown until={grant.ends_at} /> {t.access.endsIn}
                    </Badge>
                )}
                {me.role !== "operator" && !isOpen && (
                    <a className={ui.button} href={`/api/v1/grants/${grant.id}/receipt`} download={`receipt-${grant.id}.json`}>
                        {t.access.receipt}
                    </a>
                )}
                {me.role === "tenant" && isOpen && (
                    <Confirm
                        trigger={
                            <Button look="danger" large isDisabled={close.isPending}>
                                {t.access.closeNow}
                            </Button>
                        }
                        title={t.access.closeTitle}
                        keep={t.access.keep}
                        act={t.access.closeNow}
                        onAct={() => close.mutate()}
                    >
                        {t.access.closeText(what)}
                    </Confirm>
                )}
            </div>
        </li>
    );
}
