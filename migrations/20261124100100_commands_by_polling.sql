-- Commands that may run by polling, and those that a device that polls is refused at once.

-- As the table of kinds had it when the command was made.
alter table commands add column by_polling boolean not null default false;

-- When a queued command will be taken by a poll, at the latest; null if none takes it, or too late.
create function command_runs_by(p_device_id uuid, p_by_polling boolean, p_state text, p_expires_at timestamptz, p_at timestamptz)
    returns timestamptz
    language sql stable
    as $$
    select case when p_by_polling and p_state = 'queued'
                then (select n.at from (select device_next_poll_by(p_device_id, p_at) as at) n where n.at <= p_expires_at) end
$$;

-- As before; `p_by_polling` says whether the kind may run by polling. One that may not is refused to a device that polls, however long it
-- could wait. Null is what the versions before say: they refuse nothing for that, and nothing of theirs is run by polling.
create function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea,
    p_trace_parent text, p_by_polling boolean
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason,
                          expires_at, deadline_at, run_seconds, idempotency_key, request_hash, trace_parent, by_polling)
    select p_id, h.tenant_id, h.device_id, h.grant_id, p_operator_id, p_kind, p_arguments, p_reason,
           least(clock_timestamp() + p_start_within, h.ends_at), least(clock_timestamp() + p_start_within, h.ends_at),
           p_run_seconds, p_idempotency_key, p_request_hash, p_trace_parent, coalesce(p_by_polling, false)
      from (
            select d.tenant_id, d.id as device_id, g.id as grant_id, g.starts_at, g.ends_at
              from devices d
              join people p on p.id = p_operator_id and p.active and p.role = 'operator'
              join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
             where d.id = p_device_id and d.state = 'active'
               and (p_grant_id is null or g.id = p_grant_id)
               and (p_queue
                    or exists (select from links l where l.device_id = d.id and l.closed_at is null and l.has_agent))
               and (p_by_polling is not false or device_next_poll_by(d.id, clock_timestamp()) is null)
             order by grant_is_signed_as_wanted(g) desc, g.ends_at desc
             limit 1
               for share of g, d, p) h
     where h.starts_at <= clock_timestamp() and clock_timestamp() < h.ends_at
    returning *
$$;

-- What nodes of the version before call: one way to make a command, whoever asks.
create or replace function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea,
    p_trace_parent text
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    select * from command_create(p_id, p_operator_id, p_device_id, p_grant_id, p_scope, p_kind, p_arguments, p_reason,
                                 p_start_within, p_run_seconds, p_queue, p_idempotency_key, p_request_hash, p_trace_parent, null)
$$;

revoke execute on function command_create(
    uuid, uuid, uuid, uuid, text, text, jsonb, text, interval, integer, boolean, text, bytea, text, boolean) from public;
grant execute on function command_create(
    uuid, uuid, uuid, uuid, text, text, jsonb, text, interval, integer, boolean, text, bytea, text, boolean) to cloudlink_app;
