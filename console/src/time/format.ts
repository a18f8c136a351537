// Times as people read them: absolute with the zone, and how far away.

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

const absoluteFormat = (timeZone: string) =>
    new Intl.DateTimeFormat("en-GB", {
        timeZone,
        year: "numeric",
        month: "short",
        day: "2-digit",
        hour: "2-digit",
        minute: "2-digit",
        timeZoneName: "short",
    });

/** In the zone of whoever looks, or in another one. */
export function absolute(time: string, timeZone: string = zone): string {
    const date = new Date(time);
    return Number.isNaN(date.getTime()) ? "–" : absoluteFormat(timeZone).format(date);
}

/** Whether the browser knows this time zone. */
export function isZone(timeZone: string): boolean {
    try {
        absoluteFormat(timeZone);
        return true;
    } catch {
        return false;
    }
}

const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
    ["day", 86_400],
    ["hour", 3600],
    ["minute", 60],
    ["second", 1],
];
const relativeFormat = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "narrow" });

export function relative(time: string, now: number): string {
    const seconds = Math.round((Date.parse(time) - now) / 1000);
    const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
    return relativeFormat.format(Math.trunc(seconds / size), unit);
}

/** What is left, as `2 d 03:04:05`. */
export function left(milliseconds: number): string {
    const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
    const two = (number: number) => String(number).padStart(2, "0");
    const clock = `${two(Math.floor(seconds / 3600) % 24)}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
    const days = Math.floor(seconds / 86_400);
    return days > 0 ? `${days} d ${clock}` : clock;
}
