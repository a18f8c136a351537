import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { Button } from "../../ui/Button";
import { Confirm } from "../../ui/Confirm";
import { Listing } from "../../ui/Listing";
import { Badge, Card, Failure, PageHead, When } from "../../ui/parts";
import page from "../pages.module.css";

export default function People() {
    const me = useMe();
    const people = useInfiniteQuery(queries.people());
    return (
        <>
            <PageHead title={t.people.title} lead={t.people.lead} />
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

function PersonRow({ person }: { person: Schemas["Person"] }) {
    const me = useMe();
    const client = useQueryClient();
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
            </div>
            <div className={page.actions}>
                <Badge tone={person.active ? "good" : "plain"}>{person.active ? t.people.active : t.people.inactive}</Badge>
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
