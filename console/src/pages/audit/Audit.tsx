// Everything that was done, and by whom. It can be taken away, and checked without trusting this server.

import { useInfiniteQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { useSearchParams } from "react-router";

import { api, body } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Listing } from "../../ui/Listing";
import { Search } from "../../ui/Search";
import { Card, Failure, PageHead } from "../../ui/parts";
import ui from "../../ui/ui.module.css";
import page from "../pages.module.css";
import css from "./Audit.module.css";
import { read, type Verdict, verify } from "./chain";

/** Of what is looked for: on the page without pressing for more. */
const FOUND_MIN = 20;
/** Looked through before one is asked whether to go on: 5,000 entries each. */
const PARTS_AT_ONCE = 10;

export default function Audit() {
    const me = useMe();
    const [params, setParams] = useSearchParams();
    const sought = params.get("for") ?? "";
    const audit = useInfiniteQuery(queries.audit(sought));
    // The server looks through a part of the log at a time, in which there may be nothing.
    const { data, hasNextPage, isFetching, error, fetchNextPage } = audit;
    const found = data?.pages.reduce((sum, page) => sum + page.items.length, 0) ?? 0;
    const looksOn = sought !== "" && found < FOUND_MIN && (data?.pages.length ?? 0) % PARTS_AT_ONCE !== 0;
    useEffect(() => {
        if (looksOn && hasNextPage && !isFetching && !error) void fetchNextPage();
    }, [looksOn, hasNextPage, isFetching, error, fetchNextPage]);
    const of = me.tenant_id ? "" : t.audit.platform;
    return (
        <>
            <PageHead title={t.audit.title} lead={`${t.audit.lead} ${of}`.trim()}>
                <div className={page.actions}>
                    <Verify />
                    <a className={ui.button} href="/api/v1/audit/export" download="audit.ndjson">
                        {t.audit.export}
                    </a>
                </div>
            </PageHead>
            <div className={css.filter}>
                <Search label={t.audit.filter} hint={t.audit.filterHint} value={sought} onSet={(value) => setParams(value ? { for: value } : {}, { replace: true })} />
            </div>
            <Card title={t.audit.title}>
                <Listing
                    of={audit}
                    empty={sought === "" ? t.audit.none : audit.hasNextPage ? t.audit.noneYet : t.audit.noMatch}
                >
                    {(each) => <EntryRow key={each.seq} entry={each.entry} hash={each.hash} />}
                </Listing>
            </Card>
        </>
    );
}

function EntryRow({ entry, hash }: { entry: string; hash: string }) {
    const said = read(entry);
    return (
        <li className={css.entry}>
            <details>
                <summary>
                    <strong>{t.audit.actions[said.action] ?? said.action}</strong>
                    <span className={page.soft}>
                        {said.actor} · {absolute(said.at)} · {t.audit.number(said.seq)}
                    </span>
                </summary>
                <dl className={page.facts}>
                    {Object.entries(said.details).map(([name, value]) => (
                        <div key={name} className={css.detail}>
                            <dt>{name}</dt>
                            <dd>{value}</dd>
                        </div>
                    ))}
                    <div className={css.detail}>
                        <dt>{t.audit.hash}</dt>
                        <dd>
                            <code>{hash}</code>
                        </dd>
                    </div>
                </dl>
            </details>
        </li>
    );
}

/** Reads the whole log and checks its chain, here in the browser. */
function Verify() {
    const [verdict, setVerdict] = useState<Verdict>();
    const [checked, setChecked] = useState<number>();
    const [error, setError] = useState<Error>();
    const begin = async () => {
        setVerdict(undefined);
        setError(undefined);
        setChecked(0);
        try {
            const exported = await body(api.GET("/api/v1/audit/export", { parseAs: "stream" }));
            if (!exported) throw new Error("the server's answer is empty");
            setVerdict(await verify(exported, setChecked));
        } catch (error) {
            setError(error instanceof Error ? error : new Error(String(error)));
        } finally {
            setChecked(undefined);
        }
    };
    return (
        <>
            {checked !== undefined && <span role="status">{t.audit.checking(checked)}</span>}
            {verdict && (
                <span role="status" className={verdict.broken === undefined ? css.good : css.bad}>
                    {verdict.broken === undefined ? t.audit.sound(verdict.entries, verdict.head.slice(0, 12)) : t.audit.broken(verdict.broken)}
                </span>
            )}
            {error && <Failure error={error} />}
            <Button isDisabled={checked !== undefined} onPress={() => void begin()}>
                {t.audit.verify}
            </Button>
        </>
    );
}
