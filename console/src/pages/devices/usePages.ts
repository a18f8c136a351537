// A list of any length, of which only the pages in sight are asked for, and asked for again. A page is known by the cursor that the one
// before it gave.

import { useQueries } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";

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

type Extent = {
    /** Of each page that is known to be there. */
    cursors: string[];
    /** How many rows there are, once the last page has come. */
    end: number | undefined;
};

/** `first` and `last`: which rows are in sight. */
export function usePages(filter: DeviceFilter, first: number, last: number): Pages {
    const [{ cursors, end }, setExtent] = useState<Extent>({ cursors: [""], end: undefined });
    const from = Math.min(Math.floor(first / PAGE_ROWS), cursors.length - 1);
    const until = Math.min(Math.floor(last / PAGE_ROWS), cursors.length - 1);
    const places = Array.from({ length: Math.max(0, until - from) + 1 }, (_, index) => from + index);
    const pages = useQueries({ queries: places.map((place) => queries.devicesFrom(filter, cursors[place] ?? "", PAGE_ROWS)) });
    const came = places.flatMap((place, index) => {
        const page = pages[index]?.data;
        return page ? [{ place, page, cursor: cursors[place] }] : [];
    });
    const news = JSON.stringify(came.map(({ place, page, cursor }) => [place, cursor, page.next_cursor, page.items.length]));
    useEffect(() => {
        setExtent((before) =>
            came.reduce((extent, { place, page, cursor }) => (extent.cursors[place] === cursor ? revised(extent, place, page) : extent), before),
        );
    }, [news]);
    // While a page is asked for from another cursor, what it was is shown.
    const kept = useRef(new Map<number, Device[]>());
    for (const { place, page } of came) kept.current.set(place, page.items);
    for (const place of kept.current.keys()) if (!places.includes(place)) kept.current.delete(place);
    return {
        count: end ?? (cursors.length - 1) * PAGE_ROWS,
        hasMore: end === undefined,
        error: pages.find((page) => page.error)?.error ?? null,
        isAsking: pages.some((page) => page.isPending),
        row: (index) => kept.current.get(Math.floor(index / PAGE_ROWS))?.[index % PAGE_ROWS],
        again: () => pages.forEach((page) => void page.refetch()),
    };
}

/** Devices come and go: where the next page begins, and whether there is one, is as the page before it says. */
function revised(extent: Extent, place: number, page: { items: Device[]; next_cursor?: string | null }): Extent {
    const { cursors } = extent;
    const next = page.next_cursor;
    if (!next) {
        const end = place * PAGE_ROWS + page.items.length;
        return extent.end === end && cursors.length === place + 1 ? extent : { cursors: cursors.slice(0, place + 1), end };
    }
    if (cursors[place + 1] === next) return extent;
    const isNew = place + 1 === cursors.length;
    return { cursors: [...cursors.slice(0, place + 1), next, ...cursors.slice(place + 2)], end: isNew ? undefined : extent.end };
}
