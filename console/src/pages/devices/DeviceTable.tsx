// A table of any number of devices, of which only the rows in sight are there. Arrow keys go through them, Enter opens one.

import { useWindowVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, useEffect, useRef } from "react";
import { Link, useNavigate } from "react-router";

import { t } from "../../text/en";
import { When } from "../../ui/parts";
import { Contact, type Device, provenAt } from "./contact";
import css from "./Devices.module.css";
import page from "../pages.module.css";

const ROW_PX = 44;
/** Asks for more when so many rows are left. */
const AHEAD = 30;

export function DeviceTable(props: { devices: Device[]; hasMore: boolean; isAsking: boolean; more: () => void }) {
    const { devices, hasMore, isAsking, more } = props;
    const list = useRef<HTMLDivElement>(null);
    const navigate = useNavigate();
    const rows = useWindowVirtualizer({
        count: devices.length,
        estimateSize: () => ROW_PX,
        overscan: 12,
        scrollMargin: list.current?.offsetTop ?? 0,
    });
    const shown = rows.getVirtualItems();
    const last = shown.at(-1)?.index ?? 0;
    useEffect(() => {
        if (hasMore && !isAsking && last >= devices.length - AHEAD) more();
    }, [hasMore, isAsking, last, devices.length, more]);

    const go = (event: KeyboardEvent, index: number) => {
        const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: devices.length - 1 }[event.key];
        if (event.key === "Enter") {
            const device = devices[index];
            if (device) void navigate(`/devices/${device.id}`);
        }
        if (next === undefined || next < 0 || next >= devices.length) return;
        event.preventDefault();
        rows.scrollToIndex(next);
        requestAnimationFrame(() => list.current?.querySelector<HTMLElement>(`[data-index="${next}"]`)?.focus());
    };
    const columns = t.devices.columns;
    return (
        <div className={css.table} role="table" aria-label={t.devices.title} aria-rowcount={hasMore ? -1 : devices.length + 1}>
            <div className={css.head} role="row" aria-rowindex={1}>
                {[columns.name, columns.contact, columns.transport, columns.proven, columns.agent, columns.labels].map((column) => (
                    <span key={column} role="columnheader">
                        {column}
                    </span>
                ))}
            </div>
            <div ref={list} role="rowgroup" className={css.body} style={{ height: rows.getTotalSize() }}>
                {shown.map(({ index, start }) => {
                    const device = devices[index];
                    if (!device) return null;
                    return (
                        <div
                            key={device.id}
                            className={css.row}
                            role="row"
                            aria-rowindex={index + 2}
                            data-index={index}
                            tabIndex={index === (shown[0]?.index ?? 0) ? 0 : -1}
                            style={{ transform: `translateY(${start - rows.options.scrollMargin}px)` }}
                            onKeyDown={(event) => go(event, index)}
                        >
                            <Cells device={device} />
                        </div>
                    );
                })}
            </div>
            <p className={css.foot}>{t.devices.shown(devices.length, hasMore)}</p>
        </div>
    );
}

function Cells({ device }: { device: Device }) {
    const proven = provenAt(device);
    return (
        <>
            <span role="cell">
                <Link to={`/devices/${device.id}`} tabIndex={-1}>
                    {device.name}
                </Link>
            </span>
            <span role="cell">
                <Contact device={device} />
            </span>
            <span role="cell" className={page.soft}>
                {device.transport ?? t.devices.direct}
            </span>
            <span role="cell" className={page.soft}>
                {proven ? <When time={proven} /> : t.devices.direct}
            </span>
            <span role="cell" className={page.soft}>
                {device.link?.agent ?? device.poll?.agent ?? t.devices.direct}
            </span>
            <span role="cell">
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
