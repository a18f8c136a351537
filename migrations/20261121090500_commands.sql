-- Commands. The only way to make one is command_create(): the check of the grant and the insert are one statement, with
-- the database's clock. No role of the server may insert into the table.

create table commands (
    id              uuid primary key,
    tenant_id       uuid not null references tenants,
    device_id       uuid not null references devices,
    grant_id        uuid not null references grants,
    requested_by    uuid not null references people,
    kind            text not null,
    arguments       jsonb not null,
    reason          text not null check (char_length(reason) between 1 and 1024),
    -- The transitions are in the server's model::command; a final state never changes (trigger below).
    state           text not null default 'queued' check (state in
                        ('queued', 'sent', 'accepted', 'running',
                         'succeeded', 'failed', 'refused', 'expired', 'cancelled', 'unconfirmed')),
    created_at      timestamptz not null default clock_timestamp(),
    -- Not begun on the device after this. Never later than the end of the grant.
    expires_at      timestamptz not null,
    -- When the server gives up on the present state. Null in a final state.
    deadline_at     timestamptz,
    -- How long the device may take from `accepted` to a final state.
    run_seconds     integer not null check (run_seconds between 1 and 86400),
    -- Epoch of the link that it was sent over; only that link or a newer one may report.
    sent_epoch      bigint,
    sent_at         timestamptz,
    accepted_at     timestamptz,
    finished_at     timestamptz,
    -- Boot id of the device when it was sent: another one later proves a reboot.
    boot_id         text,
    -- Set when the link was lost after `running`: proves a shutdown unless the same boot comes back.
    link_lost_at    timestamptz,
    percent         smallint check (percent between 0 and 100),
    -- Why it ended as it did: stable code, and words for people.
    code            text,
    message         text,
    -- Structured result of the command's kind.
    data            jsonb,
    -- What proves the result: {"kind": "device_report" | "boot_id" | "link_lost", ...}.
    proof           jsonb,
    idempotency_key text check (char_length(idempotency_key) between 1 and 128),
    -- SHA-256 of the request that used the key: the same key with another request is refused.
    request_hash    bytea not null check (octet_length(request_hash) = 32),
    unique (requested_by, idempotency_key),
    constraint commands_final_or_deadline check
        ((state in ('queued', 'sent', 'accepted', 'running')) = (deadline_at is not null)),
    constraint commands_final_finished check
        ((state in ('queued', 'sent', 'accepted', 'running')) = (finished_at is null))
);
create index commands_device_open on commands (device_id) where finished_at is null;
create index commands_grant_open on commands (grant_id) where finished_at is null;
create index commands_deadline on commands (deadline_at) where finished_at is null;
create index commands_tenant_created on commands (tenant_id, created_at desc, id desc);
create index commands_created on commands (created_at desc, id desc);

create function commands_final_is_final() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'command % is already %', old.id, old.state using errcode = 'check_violation', constraint = 'commands_final_is_final';
end $$;
create trigger commands_final_is_final before update on commands
    for each row when (old.finished_at is not null) execute function commands_final_is_final();

-- Creates a command if, at this very moment, a grant allows it; no row otherwise. The grant is locked (`for share`), so a
-- revocation either comes first, and is seen here, or waits, and then finds the command to cancel.
--
-- Without `queue_for` the command is now or never: the device must have a live link.
create function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason,
                          expires_at, deadline_at, run_seconds, idempotency_key, request_hash)
    select p_id, d.tenant_id, d.id, g.id, p.id, p_kind, p_arguments, p_reason,
           least(clock_timestamp() + p_start_within, g.ends_at), least(clock_timestamp() + p_start_within, g.ends_at),
           p_run_seconds, p_idempotency_key, p_request_hash
      from devices d
      join people p on p.id = p_operator_id and p.active and p.role = 'operator'
      join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
     where d.id = p_device_id and d.state = 'active'
       and (p_grant_id is null or g.id = p_grant_id)
       and (p_queue or exists (select from links l where l.device_id = d.id and l.closed_at is null))
     order by g.ends_at desc
     limit 1
       for share of g
    returning *
$$;
revoke execute on function command_create from public;
