// How a device stands, in a word: the same everywhere.

import type { Schemas } from "../../api/client";
import { t } from "../../text/en";
import { Badge, type Tone } from "../../ui/parts";

export type Device = Schemas["Device"];

export function contact(device: Device): { tone: Tone; word: string } {
    if (device.state === "revoked") return { tone: "plain", word: t.devices.revoked };
    if (device.quarantine) return { tone: "bad", word: t.devices.quarantined };
    if (device.link?.state === "live") return { tone: "good", word: t.devices.live };
    if (device.poll?.next_poll_by) return { tone: "warn", word: t.devices.polling };
    return device.link || device.poll ? { tone: "bad", word: t.devices.silent } : { tone: "plain", word: t.devices.never };
}

export function Contact({ device }: { device: Device }) {
    const { tone, word } = contact(device);
    return <Badge tone={tone}>{word}</Badge>;
}

/** When it last proved to be there. */
export function provenAt(device: Device): string | undefined {
    const times = [device.link?.proven_at, device.poll?.last_poll_at].filter((time) => time !== undefined);
    return times.sort().at(-1);
}
