-- Commands and audit entries by the thousand: one call for all of them, where each had one of its own.

-- Adds entries to the chain of a tenant, in their order. What is said of audit_append() holds for it: call this last in a transaction.
create function audit_append_all(p_tenant_id uuid, p_actors jsonb[], p_actions text[], p_subjects jsonb[], p_details jsonb[])
    returns bigint
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    chain audit_chains;
    at timestamptz;
    entry text;
    ats timestamptz[] := '{}';
    entries text[] := '{}';
    hashes bytea[] := '{}';
begin
    -- The role, too: one that was taken without its tenant writes nowhere.
    if current_tenant() is distinct from p_tenant_id
       and (current_tenant() is not null or current_setting('role') = 'cloudlink_tenant') then
        raise exception 'tenant % cannot write into the audit log of %', current_tenant(), p_tenant_id
            using errcode = 'insufficient_privilege';
    end if;
    insert into audit_chains values (p_tenant_id, 0, decode(repeat('00', 32), 'hex')) on conflict do nothing;
    -- Serialises the writers of one chain until they commit.
    select * into chain from audit_chains where tenant_id = p_tenant_id for update;
    for i in 1 .. cardinality(p_actors) loop
        -- Read after the wait for the lock, so that times do not run backwards along the chain.
        at := clock_timestamp();
        entry := jsonb_build_object(
            'version', 1, 'tenant', p_tenant_id, 'seq', chain.seq + i,
            'at', to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'actor', p_actors[i], 'action', p_actions[i], 'subject', p_subjects[i], 'details', p_details[i])::text;
        chain.hash := sha256(chain.hash || convert_to(entry, 'UTF8'));
        ats := ats || at;
        entries := entries || entry;
        hashes := hashes || chain.hash;
    end loop;
    insert into audit
    select p_tenant_id, chain.seq + e.place, e.at, e.action, e.entry, e.hash
      from unnest(ats, p_actions, entries, hashes) with ordinality as e(at, action, entry, hash, place);
    -- Once: each update would leave a version of the row, and all are looked at again until the transaction ends.
    chain.seq := chain.seq + cardinality(p_actors);
    update audit_chains set seq = chain.seq, hash = chain.hash where tenant_id = p_tenant_id;
    return chain.seq;
end $$;

revoke execute on function audit_append_all from public;
grant execute on function audit_append_all to cloudlink_app, cloudlink_tenant;

create or replace function audit_append(p_tenant_id uuid, p_actor jsonb, p_action text, p_subject jsonb, p_details jsonb)
    returns bigint
    language sql security definer set search_path = public, pg_temp
    as $$
    select audit_append_all(p_tenant_id, array[p_actor], array[p_action], array[p_subject], array[p_details])
$$;

-- Makes each command that a grant in force covers at that moment, and gives those that were made. What is asked for is an array of
-- objects; `disturbs` says whether the kind has to wait for a device that is busy, null of it is what older versions say: those
-- heed every lock, except for what only measures.
create function commands_create(p_asked jsonb) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason,
                          expires_at, deadline_at, run_seconds, idempotency_key, request_hash, trace_parent, by_polling,
                          override_busy)
    select a.id, h.tenant_id, h.device_id, h.grant_id, a.operator_id, a.kind, a.arguments, a.reason,
           least(clock_timestamp() + make_interval(secs => a.start_within_seconds), h.ends_at),
           least(clock_timestamp() + make_interval(secs => a.start_within_seconds), h.ends_at),
           a.run_seconds, a.idempotency_key, decode(a.request_hash, 'hex'), a.trace_parent, coalesce(a.by_polling, false),
           coalesce(a.override_busy, false)
      from jsonb_to_recordset(p_asked) as a(
               id uuid, operator_id uuid, device_id uuid, grant_id uuid, scope text, kind text, arguments jsonb, reason text,
               start_within_seconds float8, run_seconds integer, may_queue boolean, idempotency_key text, request_hash text,
               trace_parent text, by_polling boolean, disturbs boolean, override_busy boolean)
     cross join lateral (
            select d.tenant_id, d.id as device_id, g.id as grant_id, g.starts_at, g.ends_at
              from devices d
              join people p on p.id = a.operator_id and p.active and p.role = 'operator'
              join grants g on grant_covers(g, d, p.id, a.scope) and grant_in_force(g, clock_timestamp())
               and (not coalesce(a.override_busy, false) or 'busy:override' = any (g.scopes))
             where d.id = a.device_id and d.state = 'active'
               and (a.grant_id is null or g.id = a.grant_id)
               and (a.may_queue
                    or exists (select from links l where l.device_id = d.id and l.closed_at is null and l.has_agent))
               and (a.by_polling is not false or device_next_poll_by(d.id, clock_timestamp()) is null)
               and (coalesce(a.override_busy, false) or not coalesce(a.disturbs, a.scope <> 'metrics:read')
                    or busy_lock_in_force(d.id, clock_timestamp()) is null)
             order by grant_is_signed_as_wanted(g) desc, g.ends_at desc
             limit 1
               for share of g, d, p) h
     where h.starts_at <= clock_timestamp() and clock_timestamp() < h.ends_at
    returning *
$$;

revoke execute on function commands_create from public;
grant execute on function commands_create to cloudlink_app;

-- What nodes of the version before call: one way to make a command, whoever asks.
create or replace function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea,
    p_trace_parent text, p_by_polling boolean, p_disturbs boolean, p_override_busy boolean
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    select * from commands_create(jsonb_build_array(jsonb_build_object(
        'id', p_id, 'operator_id', p_operator_id, 'device_id', p_device_id, 'grant_id', p_grant_id, 'scope', p_scope,
        'kind', p_kind, 'arguments', p_arguments, 'reason', p_reason,
        'start_within_seconds', extract(epoch from p_start_within), 'run_seconds', p_run_seconds, 'may_queue', p_queue,
        'idempotency_key', p_idempotency_key, 'request_hash', encode(p_request_hash, 'hex'), 'trace_parent', p_trace_parent,
        'by_polling', p_by_polling, 'disturbs', p_disturbs, 'override_busy', p_override_busy)))
$$;
