import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link } from "react-router";

import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { ButtonLink } from "../../ui/Button";
import { Asked, Card, Empty, PageHead, When } from "../../ui/parts";
import { GrantRow, RequestRow } from "../access/rows";
import { Contact, provenAt } from "../devices/contact";
import page from "../pages.module.css";

/** More than that are a number and a link. */
const TROUBLE_MAX = 8;

export default function Home() {
    const me = useMe();
    return (
        <>
            <PageHead title={t.home.title} lead={t.home.lead}>
                {me.role === "tenant" && (
                    <ButtonLink to="/access/new" look="primary">
                        {t.access.grant}
                    </ButtonLink>
                )}
            </PageHead>
            <div className={page.stack}>
                <Requests />
                <Open />
                <Trouble />
            </div>
        </>
    );
}

function Requests() {
    const requests = useQuery(queries.requests("open"));
    return (
        <Card title={t.home.requests}>
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
        </Card>
    );
}

function Open() {
    const grants = useQuery(queries.grants("in_force"));
    return (
        <Card title={t.home.open}>
            <Asked of={grants}>
                {({ items }) =>
                    items.length === 0 ? (
                        <Empty>{t.home.noOpen}</Empty>
                    ) : (
                        <ul className={page.rows}>
                            {items.map((grant) => (
                                <GrantRow key={grant.id} grant={grant} />
                            ))}
                        </ul>
                    )
                }
            </Asked>
        </Card>
    );
}

function Trouble() {
    const devices = useInfiniteQuery(queries.devices({ linked: false }));
    return (
        <Asked of={devices}>
            {({ pages }) => {
                const silent = pages.flatMap((each) => each.items).filter((device) => device.state === "active" && !device.poll?.next_poll_by);
                const aside = silent.length > 0 && <Link to="/devices?linked=false">{t.home.troubleCount(silent.length, devices.hasNextPage)}</Link>;
                return (
                    <Card title={t.home.trouble} aside={aside}>
                        {silent.length === 0 ? (
                            <Empty>{t.home.noTrouble}</Empty>
                        ) : (
                            <ul className={page.rows}>
                                {silent.slice(0, TROUBLE_MAX).map((device) => {
                                    const proven = provenAt(device);
                                    return (
                                        <li key={device.id}>
                                            <Link to={`/devices/${device.id}`}>{device.name}</Link>
                                            <span className={page.actions}>
                                                {proven && (
                                                    <span className={page.soft}>
                                                        <When time={proven} />
                                                    </span>
                                                )}
                                                <Contact device={device} />
                                            </span>
                                        </li>
                                    );
                                })}
                            </ul>
                        )}
                    </Card>
                );
            }}
        </Asked>
    );
}
