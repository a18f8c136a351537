// A grant or a request as a plain sentence.

import type { Schemas } from "../../api/client";
import { list, t } from "../../text/en";
import { absolute } from "../../time/format";

type Access = Pick<Schemas["Grant"], "scopes" | "operator_ids" | "device_ids" | "selector_text"> & { until: string };

export function said({ scopes, operator_ids, device_ids, selector_text, until }: Access, name: (id: string) => string): string {
    const what = list(scopes.map((scope) => t.scopes[scope] ?? scope));
    const where = device_ids ? t.access.devicesCount(device_ids.length) : t.access.devicesLike(selector_text ?? "");
    const who = operator_ids ? list(operator_ids.map(name)) : t.access.everybody;
    return t.access.sentence(who.charAt(0).toUpperCase() + who.slice(1), what, where, t.access.until(absolute(until)));
}
