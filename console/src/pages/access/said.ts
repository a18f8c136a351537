// A grant or a request as a plain sentence.

import { useQuery } from "@tanstack/react-query";

import type { Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useNames } from "../../session/names";
import { list, t } from "../../text/en";
import { absolute } from "../../time/format";

type Access = Pick<Schemas["Grant"], "scopes" | "operator_ids" | "device_ids" | "selector_text"> & { until: string };

export function useSaid({ scopes, operator_ids, device_ids, selector_text, until }: Access): string {
    const name = useNames();
    const only = device_ids?.length === 1 ? (device_ids[0] ?? "") : "";
    const device = useQuery({ ...queries.deviceName(only), enabled: only !== "" }).data;
    const what = list(scopes.map((scope) => t.scopes[scope] ?? scope));
    const where = device ?? (device_ids ? t.access.devicesCount(device_ids.length) : t.access.devicesLike(selector_text ?? ""));
    const who = operator_ids ? list(operator_ids.map(name)) : t.access.everybody;
    return t.access.sentence(who.charAt(0).toUpperCase() + who.slice(1), what, where, t.access.until(absolute(until)));
}
