// A table of any number of devices, of which only the rows in sight are there. Arrow keys go through them, Enter opens one.

import { defaultRangeExtractor, useWindowVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, type ReactNode, useRef, useState } from "react";
import { Link, useNavigate } from "react-router";

import type { DeviceFilter } from "../../api/queries";
import { t } from "../../text/en";
import { Card, Empty, Failure, Skeleton, When } from "../../ui/parts";
import page from "../pages.module.css";
import { Contact, type Device, provenAt } from "./contact";
import css from "./Devices.module.css";
import { usePages } from "./usePages";

const ROW_PX = 44;
/** Rows that are there beside those in sight. */
const OVERSCAN = 12;
/** Asks for more when so many rows are left. */
const AHEAD = 60;

/** `empty`: what to say where there is none. To be made anew for another filter. */
export function DeviceTable({ filter, empty }: { filter: DeviceFilter; empty: ReactNode }) {
    const list = useRef<HTMLDivElement>(null);
    const navigate = useNavigate();
    const [range, setRange] = useState({ first: 0, last: 0 });
    /** The row that the keyboard is on. It is there even when it is out of sight. */
    const [active, setActive] = useState(0);
    const devices = usePages(filter, range.first, range.last + AHEAD);
    const rows = useWindowVirtualizer({
        count: devices.count,
        estimateSize: () => ROW_PX,
        overscan: OVERSCAN,
        rangeExtractor: (range) => {
            const shown = defaultRangeExtractor(range);
            return shown.includes(active) || active >= range.count ? shown : [...shown, active].sort((one, other) => one - other);
        },
        scrollMargin: list.current?.offsetTop ?? 0,
        onChange: ({ range }) => {
            if (range)
                setRange((before) =>
                    before.first === range.startIndex && before.last === range.endIndex ? before : { first: range.startIndex, last: range.endIndex },
                );
        },
    });
    const shown = rows.getVirtualItems();
    const failure = devices.error && <Failure error={devices.error} again={devices.again} />;
    if (devices.count === 0 && failure) return failure;
    if (devices.count === 0 && devices.isAsking) return <Skeleton rows={8} />;
    if (devices.count === 0 && !devices.hasMore) {
        return (
            <Card title={t.devices.title}>
                <Empty>{empty}</Empty>
            </Card>
        );
    }

    const go = (event: KeyboardEvent, index: number) => {
        const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: devices.count - 1 }[event.key];
        if (event.key === "Enter" && event.target === event.currentTarget) {
            const device = devices.row(index);
            if (device) void navigate(`/devices/${device.id}`);
        }
        if (next === undefined || next < 0 || next >= devices.count) return;
        event.preventDefault();
        setActive(next);
        rows.scrollToIndex(next);
        requestAnimationFrame(() => list.current?.querySelector<HTMLElement>(`[data-index="${next}"]`)?.focus());
    };
    const columns = t.devices.columns;
    return (
        <>
            {failure}
            <div className={css.table} role="grid" aria-label={t.devices.title} aria-rowcount={devices.hasMore ? -1 : devices.count + 1}>
                <div role="rowgroup" className={css.heads}>
                    <div className={css.head} role="row" aria-rowindex={1}>
                        {[columns.name, columns.contact, columns.transport, columns.proven, columns.agent, columns.labels].map((column) => (
                            <span key={column} role="columnheader">
                                {column}
                            </span>
                        ))}
                    </div>
                </div>
                <div ref={list} role="rowgroup" className={css.body} style={{ height: rows.getTotalSize() }}>
                    {shown.map(({ index, start }) => {
                        const device = devices.row(index);
                        return (
                            <div
                                key={index}
                                className={css.row}
                                role="row"
                                aria-rowindex={index + 2}
                                data-index={index}
                                tabIndex={index === active ? 0 : -1}
                                style={{ transform: `translateY(${start - rows.options.scrollMargin}px)` }}
                                onFocus={() => setActive(index)}
                                onKeyDown={(event) => go(event, index)}
                            >
                                {device ? <Cells device={device} /> : <span role="gridcell">{t.app.loading}</span>}
                            </div>
                        );
                    })}
                </div>
                <p className={css.foot}>{t.devices.shown(devices.count, devices.hasMore)}</p>
            </div>
        </>
    );
}

function Cells({ device }: { device: Device }) {
    const proven = provenAt(device);
    return (
        <>
            <span role="gridcell">
                <Link to={`/devices/${device.id}`} tabIndex={-1}>
                    {device.name}
                </Link>
            </span>
            <span role="gridcell">
                <Contact device={device} />
            </span>
            <span role="gridcell" className={page.soft}>
                {device.transport ?? t.devices.direct}
            </span>
            <span role="gridcell" className={page.soft}>
                {proven ? <When time={proven} /> : t.devices.direct}
            </span>
            <span role="gridcell" className={page.soft}>
                {device.link?.agent ?? device.poll?.agent ?? t.devices.direct}
            </span>
            <span role="gridcell">
                <Labels labels={device.labels} />
            </span>
        </>
    );
}

export function Labels({ labels }: { labels: Record<string, string> }) {
    return Object.entries(labels).map(([key, value]) => (
        <span key={key} className={page.label}>
            {value === "" ? key : `${key}=${value}`}
        </span>
    ));
}
