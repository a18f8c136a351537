import { useQuery } from "@tanstack/react-query";

import { queries } from "../../api/queries";
import { t } from "../../text/en";
import { Asked, Badge, Card, Empty, PageHead, When } from "../../ui/parts";
import page from "../pages.module.css";

export default function People() {
    const people = useQuery(queries.people());
    const columns = t.people.columns;
    return (
        <>
            <PageHead title={t.people.title} lead={t.people.lead} />
            <Card title={t.people.title}>
                <Asked of={people}>
                    {({ items }) =>
                        items.length === 0 ? (
                            <Empty>{t.people.empty}</Empty>
                        ) : (
                            <div className={page.scroll}>
                                <table className={page.table}>
                                    <thead>
                                        <tr>
                                            {[columns.name, columns.kind, columns.email, columns.signedIn, columns.state].map((column) => (
                                                <th key={column} scope="col">
                                                    {column}
                                                </th>
                                            ))}
                                        </tr>
                                    </thead>
                                    <tbody>
                                        {items.map((person) => (
                                            <tr key={person.id}>
                                                <td>{person.name}</td>
                                                <td>{t.people.kinds[person.kind] ?? person.kind}</td>
                                                <td>{person.email ?? t.devices.direct}</td>
                                                <td>{person.signed_in_at ? <When time={person.signed_in_at} /> : t.devices.direct}</td>
                                                <td>
                                                    <Badge tone={person.active ? "good" : "plain"}>{person.active ? t.people.active : t.people.inactive}</Badge>
                                                </td>
                                            </tr>
                                        ))}
                                    </tbody>
                                </table>
                            </div>
                        )
                    }
                </Asked>
            </Card>
        </>
    );
}
