import { useQuery } from "@tanstack/react-query";
import { Link } from "react-router";

import type { Schemas } from "../../api/client";
import { queries } from "../../api/queries";
import { useNames } from "../../session/names";
import { t } from "../../text/en";
import { absolute } from "../../time/format";
import { Badge, Countdown } from "../../ui/parts";
import page from "../pages.module.css";

export function SessionRow({ session }: { session: Schemas["SupportSession"] }) {
    const name = useNames();
    const device = useQuery(queries.deviceName(session.device_id));
    return (
        <li>
            <div className={page.grow}>
                <Link to={`/sessions/${session.id}`}>
                    <strong>{t.sessions.said(name(session.opened_by), t.sessions.kinds[session.kind], device.data ?? session.device_id.slice(0, 8))}</strong>
                </Link>
                <span className={page.soft}>
                    {session.reason} · {absolute(session.created_at)}
                </span>
            </div>
            {session.ended_at ? (
                <Badge>{t.sessions.ends[session.end_reason ?? ""] ?? session.end_reason}</Badge>
            ) : (
                <Badge tone="warn">
                    <Countdown until={session.expires_at} /> {t.access.endsIn}
                </Badge>
            )}
        </li>
    );
}
