import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { Button } from "../../ui/Button";
import { Confirm } from "../../ui/Confirm";
import { FormDialog } from "../../ui/FormDialog";
import { Listing } from "../../ui/Listing";
import { Badge, Card, Failure, PageHead, When } from "../../ui/parts";
import { Secret } from "../../ui/Secret";
import page from "../pages.module.css";

export default function People() {
    const me = useMe();
    const people = useInfiniteQuery(queries.people());
    return (
        <>
            <PageHead title={t.people.title} lead={t.people.lead}>
                {me.role === "tenant" && <AddService />}
            </PageHead>
            <div className={page.stack}>
                <Card title={t.people.own}>
                    <Listing of={people} empty={t.people.empty} where={(person) => person.role === me.role || me.role === "admin"}>
                        {(person) => <PersonRow key={person.id} person={person} />}
                    </Listing>
                </Card>
                {me.role === "tenant" && (
                    <Card title={t.people.operators}>
                        <Listing of={people} empty={t.people.noOperators} where={(person) => person.role === "operator"}>
                            {(person) => <PersonRow key={person.id} person={person} />}
                        </Listing>
                    </Card>
                )}
            </div>
        </>
    );
}

/** A program of the customer's. */
function AddService() {
    const me = useMe();
    const client = useQueryClient();
    const add = async ({ name = "" }: Record<string, string>) => {
        await body(api.POST("/api/v1/people", { body: { name, kind: "service", role: "tenant", tenant_id: me.tenant_id ?? null } }));
        await client.invalidateQueries({ queryKey: ["people"] });
    };
    return (
        <FormDialog
            trigger={<Button>{t.people.addService}</Button>}
            title={t.people.addService}
            fields={[{ name: "name", label: t.people.serviceName }]}
            act={t.people.addService}
            onAct={add}
        >
            <p>{t.people.addServiceText}</p>
        </FormDialog>
    );
}

function NewToken({ person, onMade }: { person: Schemas["Person"]; onMade: (secret: string) => void }) {
    const make = async ({ name = "", seconds }: Record<string, string>) => {
        const made = await body(api.POST("/api/v1/tokens", { body: { name, person_id: person.id, expires_in_seconds: Number(seconds) } }));
        onMade(made.token);
    };
    return (
        <FormDialog
            trigger={<Button>{t.people.newToken}</Button>}
            title={t.people.tokenTitle(person.name)}
            fields={[
                { name: "name", label: t.people.tokenName },
                { name: "seconds", label: t.people.tokenFor, options: t.people.tokenTimes, value: "7776000" },
            ]}
            act={t.people.newToken}
            onAct={make}
        >
            <p>{t.people.tokenText}</p>
        </FormDialog>
    );
}

function PersonRow({ person }: { person: Schemas["Person"] }) {
    const me = useMe();
    const client = useQueryClient();
    const [token, setToken] = useState<string>();
    const change = useMutation({
        mutationFn: (active: boolean) => body(api.PATCH("/api/v1/people/{id}", { params: { path: { id: person.id } }, body: { active } })),
        onSettled: () => client.invalidateQueries({ queryKey: ["people"] }),
    });
    const isMine = me.role === "admin" || (person.kind === "service" && person.role === "tenant");
    const about = [t.people.kinds[person.kind], t.roles[person.role], person.email].filter(Boolean).join(" · ");
    return (
        <li>
            <div className={page.grow}>
                <strong>{person.name}</strong>
                <span className={page.soft}>
                    {about}
                    {person.signed_in_at && (
                        <>
                            {" · "}
                            {t.people.signedIn} <When time={person.signed_in_at} />
                        </>
                    )}
                </span>
                {change.error && <Failure error={change.error} />}
                {token && (
                    <Secret secret={token} onTaken={() => setToken(undefined)}>
                        {t.people.token(person.name)}
                    </Secret>
                )}
            </div>
            <div className={page.actions}>
                <Badge tone={person.active ? "good" : "plain"}>{person.active ? t.people.active : t.people.inactive}</Badge>
                {isMine && person.kind === "service" && person.active && <NewToken person={person} onMade={setToken} />}
                {isMine && person.id !== me.id && person.active && (
                    <Confirm
                        trigger={<Button isDisabled={change.isPending}>{t.people.shutOut}</Button>}
                        title={t.people.shutOutTitle}
                        keep={t.app.keep}
                        act={t.people.shutOut}
                        onAct={() => change.mutate(false)}
                    >
                        {t.people.shutOutText(person.name)}
                    </Confirm>
                )}
                {isMine && !person.active && (
                    <Button isDisabled={change.isPending} onPress={() => change.mutate(true)}>
                        {t.people.letBack}
                    </Button>
                )}
            </div>
        </li>
    );
}
