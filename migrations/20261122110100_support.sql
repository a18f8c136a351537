-- Support sessions: live streams to a device under a grant, and their recordings.

create table support_sessions (
    id           uuid primary key,
    tenant_id    uuid not null references tenants,
    device_id    uuid not null references devices,
    grant_id     uuid not null references grants,
    opened_by    uuid not null references people,
    kind         text not null check (kind in ('terminal', 'forward', 'file')),
    -- What it is to: {} for a terminal, {"host", "port", "via": "agent" | "node"} for a forward,
    -- {"path", "direction": "to_device" | "from_device"} for a file.
    target       jsonb not null check (jsonb_typeof(target) = 'object'),
    reason       text not null check (char_length(reason) between 1 and 1024),
    -- The node that serves it.
    node         text not null,
    created_at   timestamptz not null default clock_timestamp(),
    -- The end of its grant, as of when it was looked at last.
    expires_at   timestamptz not null,
    -- When its first stream was there.
    started_at   timestamptz,
    ended_at     timestamptz,
    -- closed, exited, grant_ended, grant_revoked, device_revoked, operator_shut_out, quarantined, device_gone, refused,
    -- recording_failed, node_lost, idle
    end_reason   text,
    -- From the moment at which it had to be over (the grant's end, or the revocation) to the last byte of its last stream.
    cut_off_ms   integer check (cut_off_ms >= 0),
    bytes_to_device   bigint not null default 0,
    bytes_from_device bigint not null default 0,
    -- What kind of session it was has its figures here: exit status, digests, connections.
    result       jsonb not null default '{}' check (jsonb_typeof(result) = 'object'),
    check ((ended_at is null) = (end_reason is null))
);
create index support_sessions_live on support_sessions (node) where ended_at is null;
create index support_sessions_device on support_sessions (device_id, created_at desc, id desc);
create index support_sessions_grant on support_sessions (grant_id);
create index support_sessions_tenant on support_sessions (tenant_id, created_at desc, id desc);
create index support_sessions_created on support_sessions (created_at desc, id desc);
create index support_sessions_person on support_sessions (opened_by, created_at desc);

-- Who else was there: operators who joined, people of the tenant who watched.
create table support_guests (
    id         uuid primary key,
    session_id uuid not null references support_sessions,
    tenant_id  uuid not null references tenants,
    person_id  uuid not null references people,
    joined_at  timestamptz not null default clock_timestamp(),
    left_at    timestamptz
);
create index support_guests_session on support_guests (session_id);

-- What was recorded: one recording a session.
create table recordings (
    session_id  uuid primary key references support_sessions,
    tenant_id   uuid not null references tenants,
    -- asciicast-v2 for terminals, events-v1 (JSON lines) for the rest.
    format      text not null check (format in ('asciicast-v2', 'events-v1')),
    started_at  timestamptz not null default clock_timestamp(),
    -- Null: it is still being written, or was cut short.
    finished_at timestamptz,
    -- The server that wrote it went away in the middle: what is there is whole up to its last chunk.
    is_cut_short boolean not null default false,
    bytes       bigint not null default 0,
    -- SHA-256 of the whole text, when it is finished or was found cut short.
    digest      bytea check (octet_length(digest) = 32),
    -- By retention. The row stays, with its digest.
    deleted_at  timestamptz
);
create index recordings_tenant on recordings (tenant_id, started_at desc);
create index recordings_kept on recordings (started_at) where deleted_at is null;

-- The text in pieces, each encrypted (AES-256-GCM; docs/SUPPORT.md says with which key, nonce and additional data).
create table recording_chunks (
    session_id uuid not null references recordings,
    tenant_id  uuid not null references tenants,
    seq        integer not null check (seq >= 0),
    at         timestamptz not null default clock_timestamp(),
    sealed     bytea not null check (octet_length(sealed) <= 1048576),
    primary key (session_id, seq)
);

-- The only way to make a session: the check of the grant and the insert are one statement, with the database's clock. No role of
-- the server may insert into the table.
create function support_session_create(
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
    select p_id, d.tenant_id, d.id, g.id, p.id, p_kind, p_target, p_reason, p_node, g.ends_at
      from devices d
      join people p on p.id = p_operator_id and p.active and p.role = 'operator'
      join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
     where d.id = p_device_id and d.state = 'active' and d.quarantined_at is null
       and (p_grant_id is null or g.id = p_grant_id)
       and exists (select from links l where l.device_id = d.id and l.closed_at is null)
       and (select count(*) from support_sessions s where s.device_id = d.id and s.ended_at is null) < p_sessions_max
     order by g.ends_at desc
     limit 1
       for share of g, d, p
    returning *;
end $$;
revoke execute on function support_session_create from public;
grant execute on function support_session_create to cloudlink_app;

-- Whether the session must be over at `at`, and why: it, its grant, its device and its operator. The one place that says so.
create function support_session_over(s support_sessions, g grants, d devices, p people, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'grant_revoked'
        when d.state <> 'active' then 'device_revoked'
        when not p.active or p.role <> 'operator' then 'operator_shut_out'
        when d.quarantined_at is not null then 'quarantined'
        when not grant_in_force(g, at) then 'grant_ended'
    end
$$;

-- Whether somebody may be there beside the operator who opened the session: another operator under a grant of its own, people of
-- the tenant to watch.
create function support_guest_may(s support_sessions, d devices, p people, scope text, operates boolean) returns boolean
    language sql stable
    as $$
    select p.active
       and case p.role
               when 'operator' then exists (
                   select from grants g where grant_covers(g, d, p.id, scope) and grant_in_force(g, clock_timestamp()))
               when 'tenant' then p.tenant_id = s.tenant_id and not operates
               else false
           end
$$;

-- What is over stays over; only its figures may follow.
create function support_session_end_is_final() returns trigger
    language plpgsql
    as $$
begin
    if new.ended_at is distinct from old.ended_at or new.end_reason is distinct from old.end_reason
       or new.expires_at is distinct from old.expires_at then
        raise exception 'support session % has ended', old.id
            using errcode = 'check_violation', constraint = 'support_session_end_is_final';
    end if;
    return new;
end $$;
create trigger support_session_end_is_final before update on support_sessions
    for each row when (old.ended_at is not null) execute function support_session_end_is_final();

-- What the tenant is told when a grant is over: a signed statement of all that was done under it.
create table receipts (
    grant_id  uuid primary key references grants,
    tenant_id uuid not null references tenants,
    made_at   timestamptz not null default clock_timestamp(),
    -- JWS, compact.
    statement text not null
);
create index receipts_tenant on receipts (tenant_id, made_at desc);
-- Those that are to have one yet, or whose time is still to come.
alter table grants add column receipted_at timestamptz;
create index grants_without_receipt on grants (ends_at) where receipted_at is null;

-- For receipts: who or what has this id, by name.
create function named(p_id uuid, p_table text) returns jsonb
    language sql stable
    as $$
    select jsonb_build_object('id', p_id, 'name', coalesce(
               case p_table when 'people' then (select name from people where id = p_id)
                            when 'devices' then (select name from devices where id = p_id) end, ''))
     where p_id is not null
$$;

-- The end of a tenant's audit log, held where it is until the transaction is over.
create function audit_head(p_tenant_id uuid) returns audit_chains
    language sql security definer set search_path = public, pg_temp
    as $$ select * from audit_chains where tenant_id = p_tenant_id for update $$;
revoke execute on function audit_head from public;
grant execute on function audit_head to cloudlink_app;

grant select, update on support_sessions to cloudlink_app;
grant select, insert, update on support_guests, recordings to cloudlink_app;
grant select, insert, delete on recording_chunks to cloudlink_app;
grant select, insert on receipts to cloudlink_app;
grant select on support_sessions, support_guests, recordings, recording_chunks, receipts to cloudlink_tenant;
grant update (ended_at, end_reason) on support_sessions to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['support_sessions', 'support_guests', 'recordings', 'recording_chunks', 'receipts'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;
