import { useInfiniteQuery } from "@tanstack/react-query";
import { Link } from "react-router";

import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { ButtonLink } from "../../ui/Button";
import { Listing } from "../../ui/Listing";
import { Asked, Card, Empty, PageHead, When } from "../../ui/parts";
import { Grants, Requests } from "../access/Access";
import { SessionRow } from "../sessions/SessionRow";
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
                <Card title={t.home.requests}>
                    <Requests />
                </Card>
                <Card title={t.home.open}>
                    <Grants state="in_force" empty={t.home.noOpen} />
                </Card>
                <Live />
                <Trouble />
            </div>
        </>
    );
}

/** Who is on a device at this moment. */
function Live() {
    const live = useInfiniteQuery(queries.supportSessions({ live: true }));
    return (
        <Card title={t.home.live}>
            <Listing of={live} empty={t.home.noLive}>
                {(session) => <SessionRow key={session.id} session={session} />}
            </Listing>
        </Card>
    );
}

function Trouble() {
    const devices = useInfiniteQuery(queries.devices({ silent: true }));
    return (
        <Asked of={devices}>
            {({ pages }) => {
                const silent = pages.flatMap((each) => each.items);
                const aside = silent.length > 0 && <Link to="/devices?contact=none">{t.home.troubleCount(silent.length, devices.hasNextPage)}</Link>;
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
