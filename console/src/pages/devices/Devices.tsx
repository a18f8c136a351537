import { useInfiniteQuery } from "@tanstack/react-query";
import { useSearchParams } from "react-router";

import { type DeviceFilter, queries } from "../../api/queries";
import { t } from "../../text/en";
import { Asked, Card, Empty, PageHead } from "../../ui/parts";
import ui from "../../ui/ui.module.css";
import { DeviceTable } from "./DeviceTable";
import css from "./Devices.module.css";

export default function Devices() {
    const [params, setParams] = useSearchParams();
    const filter = filterOf(params);
    const devices = useInfiniteQuery(queries.devices(filter));
    // Deep links and the back button: what is looked for is in the address.
    const set = (key: string, value: string) =>
        setParams(
            (before) => {
                if (value === "") before.delete(key);
                else before.set(key, value);
                return before;
            },
            { replace: true },
        );
    return (
        <>
            <PageHead title={t.devices.title} lead={t.devices.lead} />
            <form className={css.filter} role="search" onSubmit={(event) => event.preventDefault()}>
                <Search label={t.devices.filter} hint={t.devices.filterHint} value={params.get("selector") ?? ""} onSet={(value) => set("selector", value)} />
                <Search label={t.devices.name} value={params.get("name") ?? ""} onSet={(value) => set("name", value)} />
                <label className={ui.field}>
                    <span className={ui.legend}>{t.devices.contact}</span>
                    <select className={ui.input} value={params.get("linked") ?? ""} onChange={(event) => set("linked", event.target.value)}>
                        <option value="">{t.devices.any}</option>
                        <option value="true">{t.devices.onlyLinked}</option>
                        <option value="false">{t.devices.onlyUnlinked}</option>
                    </select>
                </label>
            </form>
            <Asked of={devices}>
                {({ pages }) => {
                    const items = pages.flatMap((page) => page.items);
                    if (items.length === 0) {
                        return (
                            <Card title={t.devices.title}>
                                <Empty>{params.size === 0 ? t.devices.empty : t.devices.noMatch}</Empty>
                            </Card>
                        );
                    }
                    return <DeviceTable devices={items} hasMore={devices.hasNextPage} isAsking={devices.isFetchingNextPage} more={() => void devices.fetchNextPage()} />;
                }}
            </Asked>
        </>
    );
}

function filterOf(params: URLSearchParams): DeviceFilter {
    const [selector, name, linked] = ["selector", "name", "linked"].map((key) => params.get(key) ?? "");
    return {
        ...(selector && { selector }),
        ...(name && { name }),
        ...((linked === "true" || linked === "false") && { linked: linked === "true" }),
    };
}

/** Is looked for when Enter is pressed or the field is left, not with each letter. */
function Search(props: { label: string; hint?: string; value: string; onSet: (value: string) => void }) {
    return (
        <label className={ui.field}>
            <span className={ui.legend}>{props.label}</span>
            <input
                key={props.value}
                className={ui.input}
                type="search"
                defaultValue={props.value}
                placeholder={props.hint}
                onBlur={(event) => props.onSet(event.target.value.trim())}
                onKeyDown={(event) => {
                    if (event.key === "Enter") props.onSet(event.currentTarget.value.trim());
                }}
            />
        </label>
    );
}
