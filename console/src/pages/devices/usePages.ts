// A list of any length, of which only the pages in sight are asked for, and asked for again. A page is known by the cursor that the one
// before it gave.

import { useQueries } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { type DeviceFilter, queries } from "../../api/queries";
import type { Device } from "./contact";

/** The most that the server gives at once. */
export const PAGE_ROWS = 200;

export type Pages = {
    /** Rows that are known to be there. */
    count: number;
    hasMore: boolean;
    error: Error | null;
    isAsking: boolean;
    row: (index: number) => Device | undefined;
    again: () => void;
};

/** `first` and `last`: which rows are in sight. */
export function usePages(filter: DeviceFilter, first: number, last: number): Pages {
    const [cursors, setCursors] = useState([""]);
    const [end, setEnd] = useState<number>();
    const from = Math.floor(first / PAGE_ROWS);
    const until = Math.min(cursors.length - 1, Math.floor(last / PAGE_ROWS));
    const places = Array.from({ length: Math.max(0, until - from) + 1 }, (_, index) => Math.min(from + index, cursors.length - 1));
    const pages = useQueries({ queries: places.map((place) => queries.devicesFrom(filter, cursors[place] ?? "", PAGE_ROWS)) });
    const newest = places.at(-1) === cursors.length - 1 ? pages.at(-1)?.data : undefined;
    useEffect(() => {
        if (!newest) return;
        const { next_cursor, items } = newest;
        // The end may move when there are more.
        setEnd(next_cursor ? undefined : (cursors.length - 1) * PAGE_ROWS + items.length);
        if (next_cursor) setCursors((before) => (before.length === cursors.length ? [...before, next_cursor] : before));
    }, [newest, cursors.length]);
    const known = new Map(places.map((place, index) => [place, pages[index]?.data]));
    return {
        count: end ?? (cursors.length - 1) * PAGE_ROWS,
        hasMore: end === undefined,
        error: pages.find((page) => page.error)?.error ?? null,
        isAsking: pages.some((page) => page.isPending),
        row: (index) => known.get(Math.floor(index / PAGE_ROWS))?.items[index % PAGE_ROWS],
        again: () => pages.forEach((page) => void page.refetch()),
    };
}
