import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import type { Schemas } from "../../api/client";
import { useShown } from "../../ui/theme";

const HEIGHT_PX = 132;
const DAY_SECONDS = 86_400;

type Props = { points: Schemas["Point"][]; scale: number; from: string; until: string; step: number };

/** The mean as a line, between the least and the most of each step. A step without a sample is a gap. */
export default function Chart({ points, scale, from, until, step }: Props) {
    const place = useRef<HTMLDivElement>(null);
    const theme = useShown();
    useEffect(() => {
        const element = place.current;
        if (!element) return;
        const colour = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name);
        const [start, end] = [Date.parse(from) / 1000, Date.parse(until) / 1000];
        const axis = { stroke: colour("--text-soft"), ticks: { show: false }, font: "11px system-ui" };
        const time = new Intl.DateTimeFormat("en-GB", end - start > 2 * DAY_SECONDS ? { day: "2-digit", month: "short" } : { hour: "2-digit", minute: "2-digit" });
        const chart = new uPlot(
            {
                width: element.clientWidth,
                height: HEIGHT_PX,
                legend: { show: false },
                cursor: { show: false },
                scales: { x: { time: true, range: [start, end] }, y: { range: (_, least, most) => reach(least, most) } },
                axes: [
                    { ...axis, size: 24, grid: { show: false }, values: (_, splits) => splits.map((split) => time.format(split * 1000)) },
                    { ...axis, size: 48, grid: { stroke: colour("--line"), width: 1 } },
                ],
                series: [
                    {},
                    { stroke: "transparent", points: { show: false } },
                    { stroke: "transparent", points: { show: false } },
                    { stroke: colour("--accent"), width: 1.5, points: { size: 4 } },
                ],
                bands: [{ series: [2, 1], fill: colour("--accent-soft") }],
            },
            columns(points, scale, step),
            element,
        );
        const resized = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: HEIGHT_PX }));
        resized.observe(element);
        return () => {
            resized.disconnect();
            chart.destroy();
        };
    }, [points, scale, from, until, step, theme]);
    return <div ref={place} />;
}

/** From nothing, or below, to a little above the most. */
function reach(least: number, most: number): [number, number] {
    const high = Math.max(0, most);
    const low = Math.min(0, least);
    const room = (high - low || 1) * 0.1;
    return [low < 0 ? low - room : 0, high + room];
}

function columns(points: Schemas["Point"][], scale: number, step: number): uPlot.AlignedData {
    const [times, least, most, mean]: [number[], (number | null)[], (number | null)[], (number | null)[]] = [[], [], [], []];
    for (const point of points) {
        const at = Date.parse(point.at) / 1000;
        const before = times.at(-1);
        // Devices report about once a minute, whatever the step.
        if (before !== undefined && at - before > Math.max(3 * step, 200)) {
            times.push(before + step);
            for (const column of [least, most, mean]) column.push(null);
        }
        times.push(at);
        least.push(point.min * scale);
        most.push(point.max * scale);
        mean.push(point.avg * scale);
    }
    return [times, least, most, mean];
}
