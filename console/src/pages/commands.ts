// What commands are told, as people fill it in.

import { t } from "../text/en";
import type { Field } from "../ui/FormDialog";

const field = (name: string): Field => ({ name, label: t.actions.fields[name] ?? name });
const ARTIFACT = ["url", "sha256", "size", "version"].map(field);

/** Of the kinds that are told anything. */
export const COMMAND_FIELDS: Record<string, Field[]> = {
    "service.restart": [field("service")],
    "container.update": ["container", "image"].map(field),
    "os.update": ARTIFACT,
    "agent.update": ARTIFACT,
};

/** As the API takes them. */
export function argumentsOf(given: Record<string, string>): Record<string, string | number> {
    return { ...given, ...(given.size !== undefined && { size: Number(given.size) }) };
}

/** What a kind is called. */
export function kindInWords(kind: string): string {
    return t.actions.kinds[kind]?.title ?? kind;
}
