// A grant or a request as a plain sentence.

import type { Schemas } from "../../api/client";
import { list, t } from "../../text/en";
import { absolute } from "../../time/format";

type Access = Pick<Schemas["Grant"], "scopes" | "operator_ids" | "device_ids" | "selector_text"> & { until: string; who?: string };

export function said({ scopes, operator_ids, device_ids, selector_text, until, who }: Access): string {
    const what = list(scopes.map((scope) => t.scopes[scope] ?? scope));
    const where = device_ids ? t.access.devicesCount(device_ids.length) : t.access.devicesLike(selector_text ?? "");
    const operators = operator_ids ? list(operator_ids.map((id) => id.slice(0, 8))) : t.access.everybody;
    const by = who ?? operators;
    return t.access.sentence(by.charAt(0).toUpperCase() + by.slice(1), what, where, t.access.until(absolute(until)));
}
