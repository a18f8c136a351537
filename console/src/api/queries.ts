// What pages ask for. The first part of each key is the kind that the server names when something of it has changed.

import { infiniteQueryOptions, queryOptions } from "@tanstack/react-query";

import { now } from "../time/clock";
import { api, body, type Schemas } from "./client";

const PAGE = 100;

export type DeviceFilter = { selector?: string; name_prefix?: string; linked?: boolean; silent?: boolean };

/** Where each reading is written to a log: asked for once, and not again with each event. */
const ONCE = { meta: { once: true }, staleTime: Infinity, refetchOnWindowFocus: false, refetchOnReconnect: false, retry: false };
/** What no event tells of. */
const NOW_AND_THEN_MS = 60_000;
/** Of a rollout, and of a session that waits for its device: they go on without an entry in the log. */
const MOVING_MS = 2_000;
type Cursor = { cursor?: string; limit: number };
type PageOf<Item> = { items: Item[]; next_cursor?: string | null };

/** A list that is asked for page by page. */
function paged<Item>(key: readonly unknown[], get: (query: Cursor, signal: AbortSignal) => Promise<{ data?: PageOf<Item> }>) {
    return infiniteQueryOptions({
        queryKey: key,
        queryFn: ({ pageParam, signal }) => body(get({ limit: PAGE, ...(pageParam !== "" && { cursor: pageParam }) }, signal)),
        initialPageParam: "",
        getNextPageParam: (page) => page.next_cursor ?? undefined,
    });
}

export const queries = {
    me: () => queryOptions({ queryKey: ["me"], queryFn: ({ signal }) => body(api.GET("/api/v1/me", { signal })), staleTime: Infinity }),

    devices: (filter: DeviceFilter) =>
        paged(["devices", "list", filter], (query, signal) => api.GET("/api/v1/devices", { signal, params: { query: { ...filter, ...query } } })),

    /** One page of a list that may have a thousand of them: only those in sight are asked for again. */
    devicesFrom: (filter: DeviceFilter, cursor: string, limit: number) =>
        queryOptions({
            queryKey: ["devices", "from", filter, cursor],
            queryFn: ({ signal }) => body(api.GET("/api/v1/devices", { signal, params: { query: { ...filter, limit, ...(cursor !== "" && { cursor }) } } })),
        }),

    device: (id: string) =>
        queryOptions({
            queryKey: ["devices", "one", id],
            queryFn: ({ signal }) => body(api.GET("/api/v1/devices/{id}", { signal, params: { path: { id } } })),
        }),

    /** What a device is called, for lists of other things. */
    deviceName: (id: string) =>
        queryOptions({
            queryKey: ["device names", id],
            staleTime: Infinity,
            queryFn: async ({ signal }) => (await body(api.GET("/api/v1/devices/{id}", { signal, params: { path: { id } } }))).name,
        }),

    boots: (id: string) =>
        queryOptions({
            queryKey: ["devices", "one", id, "boots"],
            queryFn: ({ signal }) => body(api.GET("/api/v1/devices/{id}/boots", { signal, params: { path: { id } } })),
        }),

    samples: (id: string, hours: number) =>
        queryOptions({
            ...ONCE,
            queryKey: ["samples", id, hours],
            queryFn: () => {
                const from = new Date(now() - hours * 3_600_000).toISOString();
                return body(api.GET("/api/v1/devices/{id}/samples", { params: { path: { id }, query: { from } } }));
            },
        }),

    transports: () =>
        queryOptions({
            queryKey: ["transports"],
            refetchInterval: NOW_AND_THEN_MS,
            queryFn: ({ signal }) => body(api.GET("/api/v1/transport-report", { signal, params: { query: { days: 7 } } })),
        }),

    network: () =>
        queryOptions({
            queryKey: ["network"],
            refetchInterval: NOW_AND_THEN_MS,
            queryFn: ({ signal }) => body(api.GET("/api/v1/network", { signal })),
        }),

    commands: (device_id: string) =>
        paged(["commands", device_id], (query, signal) => api.GET("/api/v1/commands", { signal, params: { query: { device_id, ...query } } })),

    grants: (state: Schemas["GrantState"], device_id?: string) =>
        paged(["grants", state, device_id ?? ""], (query, signal) =>
            api.GET("/api/v1/grants", { signal, params: { query: { state, ...query, ...(device_id && { device_id }) } } }),
        ),

    requests: (state: Schemas["AccessRequestState"], device_id?: string) =>
        paged(["access_requests", state, device_id ?? ""], (query, signal) =>
            api.GET("/api/v1/access-requests", { signal, params: { query: { state, ...query, ...(device_id && { device_id }) } } }),
        ),

    supportSessions: (filter: { live?: boolean; device_id?: string }) =>
        paged(["support_sessions", "list", filter], (query, signal) => api.GET("/api/v1/support-sessions", { signal, params: { query: { ...filter, ...query } } })),

    supportSession: (id: string) =>
        queryOptions({
            queryKey: ["support_sessions", "one", id],
            queryFn: ({ signal }) => body(api.GET("/api/v1/support-sessions/{id}", { signal, params: { path: { id } } })),
            refetchInterval: ({ state }) => state.data?.state === "waiting" && MOVING_MS,
        }),

    recordingContent: (id: string) =>
        queryOptions({
            ...ONCE,
            queryKey: ["recording content", id],
            queryFn: () =>
                body<unknown>(api.GET("/api/v1/support-sessions/{id}/recording/content", { parseAs: "text", params: { path: { id } } })).then(String),
        }),

    recording: (id: string) =>
        queryOptions({
            queryKey: ["recordings", id],
            queryFn: ({ signal }) => body(api.GET("/api/v1/support-sessions/{id}/recording", { signal, params: { path: { id } } })),
        }),

    sessions: (person_id: string) =>
        paged(["tokens", person_id], (query, signal) => api.GET("/api/v1/tokens", { signal, params: { query: { person_id, ...query } } })),

    people: () => paged(["people"], (query, signal) => api.GET("/api/v1/people", { signal, params: { query } })),

    email: (id: string) =>
        queryOptions({
            queryKey: ["people", id, "email"],
            queryFn: ({ signal }) => body(api.GET("/api/v1/people/{id}/email", { signal, params: { path: { id } } })),
        }),

    audit: (contains: string) =>
        paged(["audit", contains], (query, signal) => api.GET("/api/v1/audit", { signal, params: { query: { ...query, ...(contains && { contains }) } } })),

    webhooks: () => paged(["webhooks"], (query, signal) => api.GET("/api/v1/webhooks", { signal, params: { query } })),

    thresholds: () => paged(["thresholds"], (query, signal) => api.GET("/api/v1/thresholds", { signal, params: { query } })),

    alerts: () => paged(["alerts"], (query, signal) => api.GET("/api/v1/alerts", { signal, params: { query } })),

    groups: () => paged(["groups"], (query, signal) => api.GET("/api/v1/groups", { signal, params: { query } })),

    rollouts: () => paged(["rollouts"], (query, signal) => api.GET("/api/v1/rollouts", { signal, params: { query } })),

    rollout: (id: string) =>
        queryOptions({
            queryKey: ["rollouts", "one", id],
            queryFn: ({ signal }) => body(api.GET("/api/v1/rollouts/{id}", { signal, params: { path: { id } } })),
            refetchInterval: ({ state }) => state.data !== undefined && isMoving(state.data) && MOVING_MS,
        }),

    executions: (rollout: Schemas["RolloutShown"]) => ({
        ...paged(["rollouts", "one", rollout.id, "executions"], (query, signal) =>
            api.GET("/api/v1/rollouts/{id}/executions", { signal, params: { path: { id: rollout.id }, query } }),
        ),
        refetchInterval: isMoving(rollout) && MOVING_MS,
    }),

    nodes: () => queryOptions({ queryKey: ["nodes"], queryFn: ({ signal }) => body(api.GET("/api/v1/nodes", { signal })) }),

    proofs: () => paged(["nodes", "proofs"], (query, signal) => api.GET("/api/v1/isolation/proofs", { signal, params: { query } })),
};

function isMoving(rollout: Schemas["RolloutShown"]): boolean {
    return ["running", "cancelling", "expiring"].includes(rollout.state);
}
