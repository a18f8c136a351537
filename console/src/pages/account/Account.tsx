import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";

import { api, body, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { signOut, useMe } from "../../session/session";
import { t } from "../../text/en";
import { now } from "../../time/clock";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Asked, Badge, Card, CardBody, Failure, PageHead, When } from "../../ui/parts";
import { choose, type Theme, useTheme } from "../../ui/theme";
import ui from "../../ui/ui.module.css";
import page from "../pages.module.css";

const THEMES: Theme[] = ["system", "light", "dark"];

export default function Account() {
    const me = useMe();
    const theme = useTheme();
    const out = useMutation({ mutationFn: signOut });
    return (
        <>
            <PageHead title={t.settings.title} lead={t.settings.lead}>
                <Button isDisabled={out.isPending} onPress={() => out.mutate()}>
                    {t.session.signOut}
                </Button>
            </PageHead>
            {out.error && <Failure error={out.error} />}
            <div className={page.stack}>
                <Sessions me={me} />
                <Card title={t.settings.appearance}>
                    <CardBody>
                        <label className={ui.field}>
                            <span className={ui.legend}>{t.theme.label}</span>
                            <select className={ui.input} value={theme} onChange={(event) => choose(event.target.value as Theme)}>
                                {THEMES.map((each) => (
                                    <option key={each} value={each}>
                                        {t.theme[each]}
                                    </option>
                                ))}
                            </select>
                        </label>
                    </CardBody>
                </Card>
            </div>
        </>
    );
}

function Sessions({ me }: { me: Schemas["Me"] }) {
    const client = useQueryClient();
    const tokens = useInfiniteQuery(queries.sessions(me.id));
    const end = useMutation({
        mutationFn: (ids: string[]) =>
            Promise.all(ids.map((id) => body(api.POST("/api/v1/tokens/{id}/revoke", { params: { path: { id } } })))),
        onSettled: () => client.invalidateQueries({ queryKey: ["tokens"] }),
    });
    return (
        <Asked of={tokens}>
            {({ pages }) => {
                const tokens = pages.flatMap((page) => page.items);
                const sessions = tokens.filter((token) => token.kind !== "api" && !token.revoked_at && Date.parse(token.expires_at) > now());
                const others = sessions.filter((token) => token.id !== me.token_id).map((token) => token.id);
                const aside = others.length > 0 && (
                    <Button look="danger" isDisabled={end.isPending} onPress={() => end.mutate(others)}>
                        {t.settings.endOthers}
                    </Button>
                );
                return (
                    <Card title={t.settings.sessions} aside={aside}>
                        {end.error && <Failure error={end.error} />}
                        <ul className={page.rows}>
                            {sessions.map((token) => (
                                <li key={token.id}>
                                    <div className={page.grow}>
                                        <strong>{token.name}</strong>
                                        <span className={page.soft}>
                                            {t.settings.lastUsed} {token.last_used_at ? <When time={token.last_used_at} /> : t.devices.direct} · {t.settings.ends}{" "}
                                            {absolute(token.expires_at)}
                                        </span>
                                    </div>
                                    {token.id === me.token_id ? (
                                        <Badge tone="good">{t.settings.thisOne}</Badge>
                                    ) : (
                                        <Button onPress={() => end.mutate([token.id])}>{t.settings.end}</Button>
                                    )}
                                </li>
                            ))}
                        </ul>
                    </Card>
                );
            }}
        </Asked>
    );
}
