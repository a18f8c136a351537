// What pages ask for. The first part of each key is the kind that the server names when something of it has changed.

import { infiniteQueryOptions, queryOptions } from "@tanstack/react-query";

import { api, body, type Schemas } from "./client";

const PAGE = 100;

export type DeviceFilter = { selector?: string; name?: string; linked?: boolean };

export const queries = {
    me: () => queryOptions({ queryKey: ["me"], queryFn: () => body(api.GET("/api/v1/me")), staleTime: Infinity }),

    devices: (filter: DeviceFilter) =>
        infiniteQueryOptions({
            queryKey: ["devices", "list", filter],
            queryFn: ({ pageParam }) =>
                body(api.GET("/api/v1/devices", { params: { query: { ...filter, ...cursor(pageParam), limit: PAGE } } })),
            initialPageParam: "",
            getNextPageParam: (page) => page.next_cursor ?? undefined,
        }),

    device: (id: string) =>
        queryOptions({
            queryKey: ["devices", id],
            queryFn: () => body(api.GET("/api/v1/devices/{id}", { params: { path: { id } } })),
        }),

    boots: (id: string) =>
        queryOptions({
            queryKey: ["devices", id, "boots"],
            queryFn: () => body(api.GET("/api/v1/devices/{id}/boots", { params: { path: { id } } })),
        }),

    commands: (device_id: string) =>
        queryOptions({
            queryKey: ["commands", device_id],
            queryFn: () => body(api.GET("/api/v1/commands", { params: { query: { device_id, limit: 25 } } })),
        }),

    grants: (state: Schemas["GrantState"], device_id?: string) =>
        queryOptions({
            queryKey: ["grants", state, device_id ?? ""],
            queryFn: () =>
                body(api.GET("/api/v1/grants", { params: { query: { state, limit: PAGE, ...optional({ device_id }) } } })),
        }),

    requests: (state: Schemas["AccessRequestState"]) =>
        queryOptions({
            queryKey: ["access_requests", state],
            queryFn: () => body(api.GET("/api/v1/access-requests", { params: { query: { state, limit: PAGE } } })),
        }),

    sessions: (person_id: string) =>
        queryOptions({
            queryKey: ["tokens", person_id],
            queryFn: () => body(api.GET("/api/v1/tokens", { params: { query: { person_id, limit: PAGE } } })),
        }),

    people: () =>
        queryOptions({
            queryKey: ["people"],
            queryFn: () => body(api.GET("/api/v1/people", { params: { query: { limit: PAGE } } })),
        }),
};

function cursor(cursor: string) {
    return cursor === "" ? {} : { cursor };
}

function optional<T extends Record<string, unknown>>(values: T) {
    return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as {
        [K in keyof T]?: Exclude<T[K], undefined>;
    };
}
