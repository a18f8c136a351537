// A list of whatever length: a page of it, and more when it is asked for.

import type { UseInfiniteQueryResult, InfiniteData } from "@tanstack/react-query";
import type { ReactNode } from "react";

import { t } from "../text/en";
import page from "../pages/pages.module.css";
import { Button } from "./Button";
import { Asked, Empty } from "./parts";
import css from "./ui.module.css";

type Pages<Item> = InfiniteData<{ items: Item[] }>;

export function Listing<Item>({
    of,
    empty,
    where = () => true,
    children,
}: {
    of: UseInfiniteQueryResult<Pages<Item>>;
    empty: ReactNode;
    /** Those that are shown, of what the server gives. */
    where?: (item: Item) => boolean;
    children: (item: Item) => ReactNode;
}) {
    return (
        <Asked of={of}>
            {({ pages }) => {
                const items = pages.flatMap((each) => each.items).filter(where);
                return (
                    <>
                        {items.length === 0 ? <Empty>{empty}</Empty> : <ul className={page.rows}>{items.map(children)}</ul>}
                        {of.hasNextPage && (
                            <div className={css.more}>
                                <Button isDisabled={of.isFetchingNextPage} onPress={() => void of.fetchNextPage()}>
                                    {t.app.more}
                                </Button>
                            </div>
                        )}
                    </>
                );
            }}
        </Asked>
    );
}
