// What people are called. Who may not list them sees ids, and itself.

import { useInfiniteQuery } from "@tanstack/react-query";

import { queries } from "../api/queries";
import { useWhole } from "../api/whole";
import { t } from "../text/en";
import { useMe } from "./session";

export function useNames(): (id: string) => string {
    const me = useMe();
    const people = useInfiniteQuery({ ...queries.people(), enabled: me.role !== "operator", staleTime: Infinity });
    const names = new Map(useWhole(people).map((person) => [person.id, person.name]));
    return (id) => (id === me.id ? t.people.you : (names.get(id) ?? id.slice(0, 8)));
}
