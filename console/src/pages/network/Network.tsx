// What a firewall must let out, and what is known to get through.

import { useQuery } from "@tanstack/react-query";

import { queries } from "../../api/queries";
import { t } from "../../text/en";
import { now } from "../../time/clock";
import { Asked, Badge, Card, Empty, PageHead, When } from "../../ui/parts";
import page from "../pages.module.css";

export default function Network() {
    const network = useQuery(queries.network());
    const transports = useQuery(queries.transports());
    const columns = t.network.columns;
    return (
        <>
            <PageHead title={t.network.title} lead={t.network.lead} />
            <div className={page.stack}>
                <Card title={t.network.allow}>
                    <Asked of={network}>
                        {({ rows }) => (
                            <div className={page.scroll} tabIndex={0} role="region" aria-label={t.network.allow}>
                                <table className={page.table}>
                                    <thead>
                                        <tr>
                                            {[columns.from, columns.to, columns.port, columns.what, columns.proven].map((column) => (
                                                <th key={column} scope="col">
                                                    {column}
                                                </th>
                                            ))}
                                        </tr>
                                    </thead>
                                    <tbody>
                                        {[...rows.map((row) => ({ ...row, source: "devices" as const })), own()].map((row) => (
                                            <tr key={row.purpose}>
                                                <td>{t.network.sources[row.source]}</td>
                                                <td>
                                                    <code>{row.host}</code>
                                                </td>
                                                <td>{t.network.tcp(row.port)}</td>
                                                <td>{t.network.purposes[row.purpose]}</td>
                                                <td>
                                                    {row.proven_at ? (
                                                        <>
                                                            <Badge tone="good">{t.network.open}</Badge> {row.source === "devices" && (
                                                                <>
                                                                    {t.network.byDevices(row.devices)} <When time={row.proven_at} />
                                                                </>
                                                            )}
                                                        </>
                                                    ) : (
                                                        <Badge>{t.network.unknown}</Badge>
                                                    )}
                                                </td>
                                            </tr>
                                        ))}
                                    </tbody>
                                </table>
                            </div>
                        )}
                    </Asked>
                </Card>
                <Card title={t.network.failures}>
                    <Asked of={transports}>
                        {({ items }) =>
                            items.length === 0 ? (
                                <Empty>{t.network.noFailures}</Empty>
                            ) : (
                                <ul className={page.rows}>
                                    {items.map((item) => (
                                        <li key={`${item.transport} ${item.stage} ${item.code}`}>
                                            <div className={page.grow}>
                                                <strong>{t.network.failed(item.transport, item.stage)}</strong>
                                                <span className={page.soft}>{item.code}</span>
                                            </div>
                                            <span className={page.soft}>
                                                {t.network.times(item.count, item.devices)} <When time={item.last_at} />
                                            </span>
                                        </li>
                                    ))}
                                </ul>
                            )
                        }
                    </Asked>
                </Card>
            </div>
        </>
    );
}

/** What brought this page here. */
function own() {
    const port = Number(location.port || 443);
    return { source: "people" as const, purpose: "console" as const, host: location.hostname, port, devices: 0, proven_at: new Date(now()).toISOString() };
}
