// The API, typed by its OpenAPI document. A refusal is an ApiError with what the server says about it.

import createClient, { type Middleware } from "openapi-fetch";

import { learnRoughly } from "../time/clock";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];

export class ApiError extends Error {
    override name = "ApiError";

    constructor(
        readonly status: number,
        readonly kind: string,
        readonly title: string,
        readonly detail: string,
        readonly requestId: string | null,
    ) {
        super(detail || title);
    }
}

/** What was typed cannot be sent: the message says why. */
export class InputError extends Error {
    override name = "InputError";
}

type Listener = () => void;
const onSignedOut = new Set<Listener>();

/** Calls back when the server does not know the session any more. */
export function whenSignedOut(listener: Listener): Listener {
    onSignedOut.add(listener);
    return () => onSignedOut.delete(listener);
}

async function refusal(response: Response): Promise<ApiError> {
    const id = response.headers.get("x-request-id");
    const problem: Record<string, unknown> = await response.json().catch(() => ({}));
    const text = (key: string) => (typeof problem[key] === "string" ? problem[key] : "");
    return new ApiError(response.status, text("type"), text("title") || response.statusText, text("detail"), id);
}

const refusals: Middleware = {
    async onResponse({ response }) {
        learnRoughly(response.headers.get("date"));
        if (response.ok) return;
        if (response.status === 401) onSignedOut.forEach((listener) => listener());
        throw await refusal(response);
    },
};

export const api = createClient<paths>({ baseUrl: "", credentials: "same-origin" });
api.use(refusals);

/** The body of an answer that has one. */
export async function body<T>(answer: Promise<{ data?: T }>): Promise<T> {
    const { data } = await answer;
    if (data === undefined) throw new Error("the server's answer is empty");
    return data;
}
