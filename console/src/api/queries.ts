// What pages ask for. The first part of each key is the kind that the server names when something of it has changed.

import { infiniteQueryOptions, queryOptions } from "@tanstack/react-query";

import { api, body, type Schemas } from "./client";

const PAGE = 100;

export type DeviceFilter = { selector?: string; name?: string; linked?: boolean };
type Cursor = { cursor?: string; limit: number };
type PageOf<Item> = { items: Item[]; next_cursor?: string | null };

/** A list that is asked for page by page. */
function paged<Item>(key: readonly unknown[], get: (query: Cursor) => Promise<{ data?: PageOf<Item> }>) {
    return infiniteQueryOptions({
        queryKey: key,
        queryFn: ({ pageParam }) => body(get({ limit: PAGE, ...(pageParam !== "" && { cursor: pageParam }) })),
        initialPageParam: "",
        getNextPageParam: (page) => page.next_cursor ?? undefined,
    });
}

export const queries = {
    me: () => queryOptions({ queryKey: ["me"], queryFn: () => body(api.GET("/api/v1/me")), staleTime: Infinity }),

    devices: (filter: DeviceFilter) =>
        paged(["devices", "list", filter], (query) => api.GET("/api/v1/devices", { params: { query: { ...filter, ...query } } })),

    /** One page of a list that may have a thousand of them: only those in sight are asked for again. */
    devicesFrom: (filter: DeviceFilter, cursor: string, limit: number) =>
        queryOptions({
            queryKey: ["devices", "from", filter, cursor],
            queryFn: () => body(api.GET("/api/v1/devices", { params: { query: { ...filter, limit, ...(cursor !== "" && { cursor }) } } })),
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

    samples: (id: string, hours: number) =>
        queryOptions({
            // Not among what is asked for again with each event: what an operator reads is written to the owner's log, which is an event.
            queryKey: ["samples", id, hours],
            staleTime: Infinity,
            refetchOnWindowFocus: false,
            refetchOnReconnect: false,
            queryFn: () => {
                const from = new Date(Date.now() - hours * 3_600_000).toISOString();
                return body(api.GET("/api/v1/devices/{id}/samples", { params: { path: { id }, query: { from } } }));
            },
        }),

    transports: () =>
        queryOptions({
            queryKey: ["devices", "transports"],
            queryFn: () => body(api.GET("/api/v1/transport-report", { params: { query: { days: 7 } } })),
        }),

    network: () => queryOptions({ queryKey: ["devices", "network"], queryFn: () => body(api.GET("/api/v1/network")) }),

    commands: (device_id: string) =>
        paged(["commands", device_id], (query) => api.GET("/api/v1/commands", { params: { query: { device_id, ...query } } })),

    grants: (state: Schemas["GrantState"], device_id?: string) =>
        paged(["grants", state, device_id ?? ""], (query) =>
            api.GET("/api/v1/grants", { params: { query: { state, ...query, ...(device_id && { device_id }) } } }),
        ),

    requests: (state: Schemas["AccessRequestState"], device_id?: string) =>
        paged(["access_requests", state, device_id ?? ""], (query) =>
            api.GET("/api/v1/access-requests", { params: { query: { state, ...query, ...(device_id && { device_id }) } } }),
        ),

    supportSessions: (filter: { live?: boolean; device_id?: string }) =>
        paged(["support_sessions", "list", filter], (query) => api.GET("/api/v1/support-sessions", { params: { query: { ...filter, ...query } } })),

    supportSession: (id: string) =>
        queryOptions({
            queryKey: ["support_sessions", id],
            queryFn: () => body(api.GET("/api/v1/support-sessions/{id}", { params: { path: { id } } })),
        }),

    recording: (id: string) =>
        queryOptions({
            queryKey: ["recordings", id],
            queryFn: () => body(api.GET("/api/v1/support-sessions/{id}/recording", { params: { path: { id } } })),
        }),

    sessions: (person_id: string) =>
        paged(["tokens", person_id], (query) => api.GET("/api/v1/tokens", { params: { query: { person_id, ...query } } })),

    people: () => paged(["people"], (query) => api.GET("/api/v1/people", { params: { query } })),

    email: (id: string) =>
        queryOptions({
            queryKey: ["people", id, "email"],
            queryFn: () => body(api.GET("/api/v1/people/{id}/email", { params: { path: { id } } })),
        }),

    audit: () => paged(["audit"], (query) => api.GET("/api/v1/audit", { params: { query } })),

    webhooks: () => paged(["webhooks"], (query) => api.GET("/api/v1/webhooks", { params: { query } })),

    thresholds: () => paged(["thresholds"], (query) => api.GET("/api/v1/thresholds", { params: { query } })),

    alerts: () => paged(["alerts"], (query) => api.GET("/api/v1/alerts", { params: { query } })),

    groups: () => paged(["groups"], (query) => api.GET("/api/v1/groups", { params: { query } })),

    rollouts: () => paged(["rollouts"], (query) => api.GET("/api/v1/rollouts", { params: { query } })),

    rollout: (id: string) =>
        queryOptions({
            queryKey: ["rollouts", id],
            queryFn: () => body(api.GET("/api/v1/rollouts/{id}", { params: { path: { id } } })),
            // Its devices end without an entry in the log.
            refetchInterval: ({ state }) => (state.data && isMoving(state.data) ? 2000 : false),
        }),

    executions: (id: string) =>
        paged(["rollouts", id, "executions"], (query) =>
            api.GET("/api/v1/rollouts/{id}/executions", { params: { path: { id }, query } }),
        ),

    nodes: () => queryOptions({ queryKey: ["nodes"], queryFn: () => body(api.GET("/api/v1/nodes")) }),

    proofs: () => paged(["nodes", "proofs"], (query) => api.GET("/api/v1/isolation/proofs", { params: { query } })),
};

function isMoving(rollout: Schemas["RolloutShown"]): boolean {
    return ["running", "cancelling", "expiring"].includes(rollout.state);
}
