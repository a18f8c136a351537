-- Devices that say "not now": the lock that each holds, as it told last. The device itself is who keeps it, through reboots, and refuses
-- what it forbids; this is for those who ask.

create table busy_locks (
    device_id uuid primary key references devices,
    tenant_id uuid not null references tenants,
    reason    text not null check (char_length(reason) between 1 and 256),
    since     timestamptz not null,
    until     timestamptz not null,
    constraint busy_locks_bound check (until > since and until <= since + interval '8 days')
);

grant select, insert, update, delete on busy_locks to cloudlink_app;
grant select on busy_locks to cloudlink_tenant;
alter table busy_locks enable row level security;
create policy app on busy_locks to cloudlink_app using (true) with check (true);
create policy tenant on busy_locks to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());

-- Up to when a device is not to be disturbed; null when no lock is in force. The one place that says so.
create function busy_lock_in_force(p_device_id uuid, p_at timestamptz) returns timestamptz
    language sql stable
    as $$
    select b.until from busy_locks b where b.device_id = p_device_id and p_at < b.until
$$;

-- Whether it is to be done in spite of a lock.
alter table commands add column override_busy boolean not null default false;

-- As before; `p_disturbs` says whether the kind has to wait for a device that is busy, and `p_override_busy` that it does not: for that the
-- grant must allow busy:override as well. Null of the first is what the versions before say: those heed every lock, except for what
-- only measures, which has the scope metrics:read.
create function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea,
    p_trace_parent text, p_by_polling boolean, p_disturbs boolean, p_override_busy boolean
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason,
                          expires_at, deadline_at, run_seconds, idempotency_key, request_hash, trace_parent, by_polling,
                          override_busy)
    select p_id, h.tenant_id, h.device_id, h.grant_id, p_operator_id, p_kind, p_arguments, p_reason,
           least(clock_timestamp() + p_start_within, h.ends_at), least(clock_timestamp() + p_start_within, h.ends_at),
           p_run_seconds, p_idempotency_key, p_request_hash, p_trace_parent, coalesce(p_by_polling, false),
           coalesce(p_override_busy, false)
      from (
            select d.tenant_id, d.id as device_id, g.id as grant_id, g.starts_at, g.ends_at
              from devices d
              join people p on p.id = p_operator_id and p.active and p.role = 'operator'
              join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
               and (not coalesce(p_override_busy, false) or 'busy:override' = any (g.scopes))
             where d.id = p_device_id and d.state = 'active'
               and (p_grant_id is null or g.id = p_grant_id)
               and (p_queue
                    or exists (select from links l where l.device_id = d.id and l.closed_at is null and l.has_agent))
               and (p_by_polling is not false or device_next_poll_by(d.id, clock_timestamp()) is null)
               and (coalesce(p_override_busy, false) or not coalesce(p_disturbs, p_scope <> 'metrics:read')
                    or busy_lock_in_force(d.id, clock_timestamp()) is null)
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
    p_trace_parent text, p_by_polling boolean
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    select * from command_create(p_id, p_operator_id, p_device_id, p_grant_id, p_scope, p_kind, p_arguments, p_reason,
                                 p_start_within, p_run_seconds, p_queue, p_idempotency_key, p_request_hash, p_trace_parent,
                                 p_by_polling, null, false)
$$;

revoke execute on function command_create(
    uuid, uuid, uuid, uuid, text, text, jsonb, text, interval, integer, boolean, text, bytea, text, boolean, boolean, boolean)
    from public;
grant execute on function command_create(
    uuid, uuid, uuid, uuid, text, text, jsonb, text, interval, integer, boolean, text, bytea, text, boolean, boolean, boolean)
    to cloudlink_app;
