import { useQuery } from "@tanstack/react-query";
import { useSearchParams } from "react-router";

import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { ButtonLink } from "../../ui/Button";
import { Asked, Card, Empty, PageHead } from "../../ui/parts";
import page from "../pages.module.css";
import css from "./Access.module.css";
import { GrantRow, RequestRow } from "./rows";

const VIEWS = ["in_force", "requests", "scheduled", "past"] as const;
type View = (typeof VIEWS)[number];
const TITLES: Record<View, string> = {
    in_force: t.access.inForce,
    requests: t.access.requests,
    scheduled: t.access.scheduled,
    past: t.access.past,
};

export default function Access() {
    const me = useMe();
    const [params] = useSearchParams();
    const view = VIEWS.find((view) => view === params.get("view")) ?? "in_force";
    return (
        <>
            <PageHead title={t.access.title} lead={t.access.lead}>
                {me.role === "tenant" && (
                    <ButtonLink to="/access/new" look="primary">
                        {t.access.grant}
                    </ButtonLink>
                )}
            </PageHead>
            <nav className={css.tabs} aria-label={t.access.title}>
                {VIEWS.map((each) => (
                    <ButtonLink key={each} to={`?view=${each}`} replace aria-current={each === view ? "page" : undefined}>
                        {TITLES[each]}
                    </ButtonLink>
                ))}
            </nav>
            <Card title={TITLES[view]}>{view === "requests" ? <Requests /> : <Grants view={view} />}</Card>
        </>
    );
}

function Requests() {
    const requests = useQuery(queries.requests("open"));
    return (
        <Asked of={requests}>
            {({ items }) =>
                items.length === 0 ? (
                    <Empty>{t.home.noRequests}</Empty>
                ) : (
                    <ul className={page.rows}>
                        {items.map((request) => (
                            <RequestRow key={request.id} request={request} />
                        ))}
                    </ul>
                )
            }
        </Asked>
    );
}

function Grants({ view }: { view: "in_force" | "scheduled" | "past" }) {
    const grants = useQuery(queries.grants(view === "past" ? "ended" : view));
    return (
        <Asked of={grants}>
            {({ items }) =>
                items.length === 0 ? (
                    <Empty>{view === "in_force" ? t.access.noneInForce : t.access.none}</Empty>
                ) : (
                    <ul className={page.rows}>
                        {items.map((grant) => (
                            <GrantRow key={grant.id} grant={grant} />
                        ))}
                    </ul>
                )
            }
        </Asked>
    );
}
