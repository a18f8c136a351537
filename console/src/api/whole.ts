// Lists that are needed whole, and are short as a rule: people, groups, what is allowed on a device.

import type { InfiniteData, UseInfiniteQueryResult } from "@tanstack/react-query";
import { useEffect } from "react";

/** All items of a list, as they come: one page is asked for after the other. */
export function useWhole<Item>(list: UseInfiniteQueryResult<InfiniteData<{ items: Item[] }>>): Item[] {
    const { data, hasNextPage, isFetching, error, fetchNextPage } = list;
    useEffect(() => {
        if (hasNextPage && !isFetching && !error) void fetchNextPage();
    }, [hasNextPage, isFetching, error, fetchNextPage]);
    return data?.pages.flatMap((page) => page.items) ?? [];
}
