import { useInfiniteQuery } from "@tanstack/react-query";

import type { Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { ButtonLink } from "../../ui/Button";
import { Listing } from "../../ui/Listing";
import { Card, PageHead } from "../../ui/parts";
import { Tabs, useView } from "../../ui/Tabs";
import { GrantRow, RequestRow } from "./rows";

const VIEWS = {
    in_force: t.access.inForce,
    requests: t.access.requests,
    scheduled: t.access.scheduled,
    ended: t.access.ended,
    revoked: t.access.revoked,
};

export default function Access() {
    const me = useMe();
    const view = useView(VIEWS);
    return (
        <>
            <PageHead title={t.access.title} lead={t.access.lead}>
                {me.role === "tenant" && (
                    <ButtonLink to="/access/new" look="primary">
                        {t.access.grant}
                    </ButtonLink>
                )}
            </PageHead>
            <Tabs label={t.access.title} views={VIEWS} />
            <Card title={VIEWS[view]}>
                {view === "requests" ? <Requests /> : <Grants state={view} />}
            </Card>
        </>
    );
}

export function Requests({ device }: { device?: string }) {
    const requests = useInfiniteQuery(queries.requests("open", device));
    return (
        <Listing of={requests} empty={t.home.noRequests}>
            {(request) => <RequestRow key={request.id} request={request} />}
        </Listing>
    );
}

export function Grants({ state, device, empty }: { state: Schemas["GrantState"]; device?: string; empty?: string }) {
    const grants = useInfiniteQuery(queries.grants(state, device));
    return (
        <Listing of={grants} empty={empty ?? (state === "in_force" ? t.access.noneInForce : t.access.none)}>
            {(grant) => <GrantRow key={grant.id} grant={grant} />}
        </Listing>
    );
}
