// Where people and other systems are told of what happens.

import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Confirm } from "../../ui/Confirm";
import { FormDialog } from "../../ui/FormDialog";
import { Listing } from "../../ui/Listing";
import { Asked, Badge, Card, CardBody, Failure, PageHead } from "../../ui/parts";
import { Secret } from "../../ui/Secret";
import ui from "../../ui/ui.module.css";
import page from "../pages.module.css";

export default function Notifications() {
    const me = useMe();
    return (
        <>
            <PageHead title={t.notify.title} lead={t.notify.lead} />
            <div className={page.stack}>
                <Mail />
                {me.role !== "operator" && <Webhooks />}
                {me.role === "tenant" && <Thresholds />}
            </div>
        </>
    );
}

function Mail() {
    const me = useMe();
    const email = useQuery(queries.email(me.id));
    return (
        <Card title={t.notify.mail}>
            <CardBody>
                <Asked of={email}>{(email) => <Address known={email.email ?? ""} />}</Asked>
            </CardBody>
        </Card>
    );
}

function Address({ known }: { known: string }) {
    const me = useMe();
    const client = useQueryClient();
    const [typed, setTyped] = useState(known);
    const save = useMutation({
        mutationFn: () => body(api.PUT("/api/v1/people/{id}/email", { params: { path: { id: me.id } }, body: { email: typed.trim() || null } })),
        onSettled: () => client.invalidateQueries({ queryKey: ["people"] }),
    });
    return (
        <form
            className={ui.form}
            onSubmit={(event) => {
                event.preventDefault();
                save.mutate();
            }}
        >
            <label className={ui.field}>
                <span className={ui.legend}>{t.notify.address}</span>
                <input className={ui.input} type="email" autoComplete="email" value={typed} onChange={(event) => setTyped(event.target.value)} />
                <span className={ui.hint}>{t.notify.addressHint}</span>
            </label>
            {save.error && <Failure error={save.error} />}
            <div className={page.actions}>
                <Button type="submit" look="primary" isDisabled={save.isPending || typed.trim() === known}>
                    {t.app.save}
                </Button>
                {save.isSuccess && <span role="status">{t.app.saved}</span>}
            </div>
        </form>
    );
}

function Webhooks() {
    const client = useQueryClient();
    const webhooks = useInfiniteQuery(queries.webhooks());
    const [secret, setSecret] = useState<string>();
    const create = async ({ url = "" }: Record<string, string>) => {
        const made = await body(api.POST("/api/v1/webhooks", { body: { url } }));
        setSecret(made.secret);
        await client.invalidateQueries({ queryKey: ["webhooks"] });
    };
    const add = (
        <FormDialog
            trigger={<Button>{t.notify.addWebhook}</Button>}
            title={t.notify.addWebhook}
            fields={[{ name: "url", label: t.notify.url, hint: t.notify.urlHint }]}
            act={t.notify.addWebhook}
            onAct={create}
        />
    );
    return (
        <Card title={t.notify.webhooks} aside={add}>
            {secret && (
                <CardBody>
                    <Secret secret={secret} onTaken={() => setSecret(undefined)}>
                        {t.notify.secret}
                    </Secret>
                </CardBody>
            )}
            <Listing of={webhooks} empty={t.notify.noWebhooks}>
                {(webhook) => <WebhookRow key={webhook.id} webhook={webhook} />}
            </Listing>
        </Card>
    );
}

function WebhookRow({ webhook }: { webhook: Schemas["Webhook"] }) {
    const client = useQueryClient();
    const act = useMutation({
        mutationFn: (what: "test" | "disable") => body<unknown>(api.POST(`/api/v1/webhooks/{id}/${what}`, { params: { path: { id: webhook.id } } })),
        onSettled: () => client.invalidateQueries({ queryKey: ["webhooks"] }),
    });
    return (
        <li>
            <div className={page.grow}>
                <strong>{webhook.url}</strong>
                <span className={page.soft}>{webhook.failing_since ? t.notify.failing(absolute(webhook.failing_since)) : t.notify.events(webhook.events.length)}</span>
                {act.error && <Failure error={act.error} />}
                {act.isSuccess && act.variables === "test" && <span role="status">{t.notify.tested}</span>}
            </div>
            <div className={page.actions}>
                {webhook.disabled_at ? (
                    <Badge>{t.notify.disabled}</Badge>
                ) : (
                    <>
                        <Badge tone={webhook.failing_since ? "bad" : "good"}>{webhook.failing_since ? t.notify.fails : t.notify.works}</Badge>
                        <Button isDisabled={act.isPending} onPress={() => act.mutate("test")}>
                            {t.notify.test}
                        </Button>
                        <Confirm
                            trigger={<Button look="danger">{t.notify.disable}</Button>}
                            title={t.notify.disableTitle}
                            keep={t.app.keep}
                            act={t.notify.disable}
                            onAct={() => act.mutate("disable")}
                        >
                            {t.notify.disableText(webhook.url)}
                        </Confirm>
                    </>
                )}
            </div>
        </li>
    );
}

function Thresholds() {
    const thresholds = useInfiniteQuery(queries.thresholds());
    const alerts = useInfiniteQuery(queries.alerts());
    return (
        <>
            <Card title={t.notify.alerts}>
                <Listing of={alerts} empty={t.notify.noAlerts}>
                    {(alert) => (
                        <li key={alert.id}>
                            <div className={page.grow}>
                                <strong>{alert.device_name}</strong>
                                <span className={page.soft}>
                                    {alert.threshold_name} · {absolute(alert.since)}
                                </span>
                            </div>
                            <Badge tone={alert.state === "firing" ? "bad" : "warn"}>{t.notify.alertStates[alert.state]}</Badge>
                        </li>
                    )}
                </Listing>
            </Card>
            <Card title={t.notify.thresholds} aside={<AddThreshold />}>
                <Listing of={thresholds} empty={t.notify.noThresholds}>
                    {(rule) => (
                        <li key={rule.id}>
                            <div className={page.grow}>
                                <strong>{rule.name}</strong>
                                <span className={page.soft}>
                                    {t.notify.rule(t.metrics.names[rule.metric] ?? rule.metric, t.notify.comparisons[rule.comparison], rule.value, rule.selector)}
                                </span>
                            </div>
                            <Badge tone={rule.severity === "critical" ? "bad" : "plain"}>{t.notify.severities[rule.severity]}</Badge>
                        </li>
                    )}
                </Listing>
            </Card>
        </>
    );
}

function AddThreshold() {
    const client = useQueryClient();
    const create = async ({ name = "", metric = "", comparison = "", value, selector = "", for_seconds }: Record<string, string>) => {
        const rule = { name, metric, comparison: comparison as Schemas["Comparison"], value: Number(value), selector, for_seconds: Number(for_seconds) };
        await body(api.POST("/api/v1/thresholds", { body: rule }));
        await client.invalidateQueries({ queryKey: ["thresholds"] });
    };
    return (
        <FormDialog
            trigger={<Button>{t.notify.addThreshold}</Button>}
            title={t.notify.addThreshold}
            fields={[
                { name: "name", label: t.notify.ruleName },
                { name: "metric", label: t.notify.metric, options: t.notify.metrics },
                { name: "comparison", label: t.notify.is, options: t.notify.comparisons },
                { name: "value", label: t.notify.value },
                { name: "for_seconds", label: t.notify.forSeconds, value: "300" },
                { name: "selector", label: t.notify.ofDevices, hint: t.devices.filterHint },
            ]}
            act={t.notify.addThreshold}
            onAct={create}
        />
    );
}
