// What a device measured, as lines.

import { useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useState } from "react";

import { ApiError, type Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Button } from "../../ui/Button";
import { Asked, Card, Empty, Skeleton } from "../../ui/parts";
import ui from "../../ui/ui.module.css";
import css from "./Metrics.module.css";

const Chart = lazy(() => import("./Chart"));

type Series = Schemas["Series"];

/** Devices report about as often. */
const EVERY_MS = 60_000;
const GIB = 1024 ** 3;
const SPANS: Record<string, string> = t.metrics.spans;
/** What is shown of what a device says: as what, and in which unit. */
const SHOWN: { metric: string; unit: string; scale: number }[] = [
    { metric: "cpu_percent", unit: "%", scale: 1 },
    { metric: "memory_used_bytes", unit: "GiB", scale: 1 / GIB },
    { metric: "disk_used_bytes", unit: "GiB", scale: 1 / GIB },
    { metric: "temperature_celsius", unit: "°C", scale: 1 },
    { metric: "load_1m", unit: "", scale: 1 },
    { metric: "clock_offset_ms", unit: "ms", scale: 1 },
];

export function Metrics({ id }: { id: string }) {
    const [hours, setHours] = useState("1");
    const me = useMe();
    const [isWanted, setWanted] = useState(me.role === "tenant");
    const samples = useQuery({
        ...queries.samples(id, Number(hours)),
        enabled: isWanted,
        refetchInterval: me.role === "tenant" && EVERY_MS,
    });
    const span = (
        <label>
            <span className={ui.hidden}>{t.metrics.span}</span>
            <select className={ui.input} value={hours} onChange={(event) => setHours(event.target.value)}>
                {Object.entries(SPANS).map(([hours, name]) => (
                    <option key={hours} value={hours}>
                        {name}
                    </option>
                ))}
            </select>
        </label>
    );
    // To operators what devices measure is closed without a grant.
    const isClosed = samples.error instanceof ApiError && samples.error.status === 403;
    return (
        <Card title={t.metrics.title} aside={isWanted && !isClosed && span}>
            {!isWanted ? (
                <div className={css.wanted}>
                    <p className={ui.soft}>{t.metrics.recorded}</p>
                    <Button onPress={() => setWanted(true)}>{t.metrics.show}</Button>
                </div>
            ) : isClosed ? (
                <Empty>{t.metrics.closed}</Empty>
            ) : (
                <Asked of={samples}>{(samples) => <Charts samples={samples} />}</Asked>
            )}
        </Card>
    );
}

function Charts({ samples }: { samples: Schemas["DeviceSamples"] }) {
    const shown = SHOWN.flatMap((each) => {
        const series = samples.series.find((series) => series.metric === each.metric);
        return series && series.points.length > 0 ? [{ ...each, series }] : [];
    });
    if (shown.length === 0) return <Empty>{t.metrics.none}</Empty>;
    return (
        <div className={css.charts}>
            {shown.map(({ series, unit, scale }) => {
                const title = t.metrics.names[series.metric] ?? series.metric;
                const last = series.points.at(-1);
                const now = last && format(last.avg * scale, unit);
                return (
                    <figure key={series.metric} className={css.chart}>
                        <figcaption>
                            <span>{title}</span>
                            <strong>{now}</strong>
                        </figcaption>
                        <Suspense fallback={<Skeleton rows={1} />}>
                            <div role="img" aria-label={inWords(title, series, scale, unit)}>
                                <Chart points={series.points} scale={scale} from={samples.from} until={samples.until} step={samples.step_seconds} />
                            </div>
                        </Suspense>
                    </figure>
                );
            })}
        </div>
    );
}

function format(value: number, unit: string): string {
    const number = new Intl.NumberFormat("en", { maximumFractionDigits: Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0 });
    return `${number.format(value)} ${unit}`.trim();
}

function inWords(title: string, { points }: Series, scale: number, unit: string): string {
    const [first, last] = [points[0], points.at(-1)];
    if (!first || !last) return title;
    const [least, most] = [Math.min(...points.map((point) => point.min)), Math.max(...points.map((point) => point.max))];
    return t.metrics.inWords(title, format(least * scale, unit), format(most * scale, unit), absolute(first.at), format(last.avg * scale, unit));
}
