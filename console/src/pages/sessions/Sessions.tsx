import { useInfiniteQuery } from "@tanstack/react-query";

import { queries } from "../../api/queries";
import { t } from "../../text/en";
import { Listing } from "../../ui/Listing";
import { Card, PageHead } from "../../ui/parts";
import { Tabs, useView } from "../../ui/Tabs";
import { SessionRow } from "./SessionRow";

const VIEWS = { all: t.sessions.all, live: t.sessions.live };

export default function Sessions() {
    const view = useView(VIEWS);
    const sessions = useInfiniteQuery(queries.supportSessions(view === "live" ? { live: true } : {}));
    return (
        <>
            <PageHead title={t.sessions.title} lead={t.sessions.lead} />
            <Tabs label={t.sessions.title} views={VIEWS} />
            <Card title={VIEWS[view]}>
                <Listing of={sessions} empty={t.sessions.none}>
                    {(session) => <SessionRow key={session.id} session={session} />}
                </Listing>
            </Card>
        </>
    );
}
