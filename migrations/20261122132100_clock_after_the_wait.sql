-- Whoever has waited for a grant that somebody else held looks at the clock again. A row that was held and then left as it was is not
-- looked at anew by itself: a command, an opening or a session could be made after its grant had ended, by as long as the wait took.
-- It lived no longer for that, since whoever sends, serves or opens looks, too; but there was no grant for it when it was made.

create or replace function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason,
                          expires_at, deadline_at, run_seconds, idempotency_key, request_hash)
    select p_id, h.tenant_id, h.device_id, h.grant_id, p_operator_id, p_kind, p_arguments, p_reason,
           least(clock_timestamp() + p_start_within, h.ends_at), least(clock_timestamp() + p_start_within, h.ends_at),
           p_run_seconds, p_idempotency_key, p_request_hash
      from (
            select d.tenant_id, d.id as device_id, g.id as grant_id, g.starts_at, g.ends_at
              from devices d
              join people p on p.id = p_operator_id and p.active and p.role = 'operator'
              join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
             where d.id = p_device_id and d.state = 'active'
               and (p_grant_id is null or g.id = p_grant_id)
               and (p_queue
                    or exists (select from links l where l.device_id = d.id and l.closed_at is null and l.has_agent))
             order by grant_is_signed_as_wanted(g) desc, g.ends_at desc
             limit 1
               for share of g, d, p) h
     where h.starts_at <= clock_timestamp() and clock_timestamp() < h.ends_at
    returning *
$$;

create or replace function opening_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_port integer, p_reason text, p_open_for interval,
    p_openings_max integer
) returns setof openings
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    -- One after the other, for a device: the next statement sees what the one before has made.
    perform from devices where id = p_device_id for no key update;
    -- Locked like those of a command: when the grant is revoked, or the operator shut out, at the same moment, either that comes
    -- first, and is seen here, or it waits, and then finds the opening to end.
    return query
    insert into openings (id, tenant_id, device_id, grant_id, opened_by, port, reason, expires_at)
    select p_id, h.tenant_id, h.device_id, h.grant_id, p_operator_id, p_port, p_reason,
           least(clock_timestamp() + p_open_for, h.ends_at)
      from (
            select d.tenant_id, d.id as device_id, g.id as grant_id, g.starts_at, g.ends_at
              from devices d
              join people p on p.id = p_operator_id and p.active and p.role = 'operator'
              join grants g on grant_covers(g, d, p.id, 'tcp:open') and grant_in_force(g, clock_timestamp())
             where d.id = p_device_id and d.state = 'active' and d.quarantined_at is null
               and (p_grant_id is null or g.id = p_grant_id)
               -- A link without a tunnel has no IP path.
               and exists (select from links l where l.device_id = d.id and l.closed_at is null and l.tunnel_id is not null)
               and (select count(*) from openings o where o.device_id = d.id and o.ended_at is null) < p_openings_max
             order by grant_is_signed_as_wanted(g) desc, g.ends_at desc
             limit 1
               for share of g, d, p) h
     where h.starts_at <= clock_timestamp() and clock_timestamp() < h.ends_at
    returning *;
end $$;

create or replace function support_session_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_target jsonb,
    p_reason text, p_node text, p_sessions_max integer
) returns setof support_sessions
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    -- One after the other, for a device: the next statement sees what the one before has made.
    perform from devices where id = p_device_id for no key update;
    -- Locked like those of a command: when the grant is revoked, or the operator shut out, at the same moment, either that comes
    -- first, and is seen here, or it waits, and then finds the session to end.
    return query
    insert into support_sessions (id, tenant_id, device_id, grant_id, opened_by, kind, target, reason, node, expires_at)
    select p_id, h.tenant_id, h.device_id, h.grant_id, p_operator_id, p_kind, p_target, p_reason, p_node, h.ends_at
      from (
            select d.tenant_id, d.id as device_id, g.id as grant_id, g.starts_at, g.ends_at
              from devices d
              join people p on p.id = p_operator_id and p.active and p.role = 'operator'
              join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
             where d.id = p_device_id and d.state = 'active' and d.quarantined_at is null
               and (p_grant_id is null or g.id = p_grant_id)
               and exists (select from links l where l.device_id = d.id and l.closed_at is null)
               and (select count(*) from support_sessions s where s.device_id = d.id and s.ended_at is null) < p_sessions_max
             order by grant_is_signed_as_wanted(g) desc, g.ends_at desc
             limit 1
               for share of g, d, p) h
     where h.starts_at <= clock_timestamp() and clock_timestamp() < h.ends_at
    returning *;
end $$;
