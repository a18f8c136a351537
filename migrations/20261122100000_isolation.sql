-- Isolation: how it was watched and proven, what was opened for support, and who tried to get around it.

-- The tenant of the devices with which nodes prove their isolation. It has no people, and nobody is shown it.
alter table tenants add column internal boolean not null default false;
create unique index tenants_internal on tenants (internal) where internal;

-- When what is in force differed from what is declared.
create table isolation_drifts (
    id          uuid primary key,
    node        text not null,
    found_at    timestamptz not null default clock_timestamp(),
    -- Null: it could not be repaired yet.
    repaired_at timestamptz,
    kind        text not null check (kind in ('rules', 'setting', 'interface')),
    -- What was different, in words: an array of texts.
    differences jsonb not null check (jsonb_typeof(differences) = 'array')
);
create index isolation_drifts_node on isolation_drifts (node, found_at desc);

-- What the devices of a node's own tried, and what came of it. One row each time.
create table isolation_proofs (
    id          uuid primary key,
    node        text not null,
    -- What made it: the node's start, the timer, a drift that was repaired, or somebody who asked.
    trigger     text not null check (trigger in ('start', 'timer', 'drift', 'demand')),
    started_at  timestamptz not null,
    finished_at timestamptz not null,
    -- failed: what must work did not, or the attempts could not be made; leak: what must not work did.
    outcome     text not null check (outcome in ('proven', 'failed', 'leak')),
    -- SHA-256 of the rules that were in force.
    policy_hash bytea not null check (octet_length(policy_hash) = 32),
    -- How many attempts there were.
    attempts    integer not null check (attempts >= 0),
    -- Each kind of attempt with its numbers: an array of objects.
    results     jsonb not null check (jsonb_typeof(results) = 'array')
);
create index isolation_proofs_node on isolation_proofs (node, started_at desc);
create index isolation_proofs_started on isolation_proofs (started_at);

-- Packets that devices sent and may not, a day and reason a row.
create table device_drops (
    device_id uuid not null references devices,
    tenant_id uuid not null references tenants,
    day       date not null,
    reason    text not null,
    packets   bigint not null check (packets > 0),
    first_at  timestamptz not null default clock_timestamp(),
    last_at   timestamptz not null default clock_timestamp(),
    primary key (device_id, day, reason)
);
create index device_drops_tenant on device_drops (tenant_id, day);

-- Which nodes carried tunnels of which tenants on which days.
create table tunnel_days (
    tenant_id uuid not null references tenants,
    day       date not null,
    node      text not null,
    primary key (tenant_id, day, node)
);

-- A device in quarantine keeps its link; nothing else of it is let through, in either direction.
alter table devices add column quarantined_at timestamptz;
-- Null: the server itself.
alter table devices add column quarantined_by uuid references people;
alter table devices add column quarantine_reason text check (char_length(quarantine_reason) between 1 and 1024);
alter table devices add check ((quarantined_at is null) = (quarantine_reason is null));
create index devices_quarantined on devices (quarantined_at) where quarantined_at is not null;

-- A port of a device that the node it is linked to may reach, under a grant. The kernel closes it: this is the record, and what
-- the kernel is told.
create table openings (
    id         uuid primary key,
    tenant_id  uuid not null references tenants,
    device_id  uuid not null references devices,
    grant_id   uuid not null references grants,
    opened_by  uuid not null references people,
    port       integer not null check (port between 1 and 65535),
    reason     text not null check (char_length(reason) between 1 and 1024),
    created_at timestamptz not null default clock_timestamp(),
    -- Never later than the end of the grant.
    expires_at timestamptz not null,
    -- When the kernel of the device's node had it.
    opened_at  timestamptz,
    ended_at   timestamptz,
    -- expired, closed, grant_revoked, device_revoked, operator_shut_out, quarantined
    end_reason text,
    check ((ended_at is null) = (end_reason is null))
);
create index openings_device_open on openings (device_id) where ended_at is null;
create index openings_grant_open on openings (grant_id) where ended_at is null;
create index openings_expires on openings (expires_at) where ended_at is null;
create index openings_tenant_created on openings (tenant_id, created_at desc, id desc);
create index openings_created on openings (created_at desc, id desc);

grant select, insert, update, delete on isolation_drifts, isolation_proofs, device_drops, tunnel_days to cloudlink_app;
grant select, update on openings to cloudlink_app;
grant select on device_drops, tunnel_days, openings to cloudlink_tenant;
grant update (ended_at, end_reason) on openings to cloudlink_tenant;
grant update (quarantined_at, quarantined_by, quarantine_reason) on devices to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['device_drops', 'tunnel_days', 'openings'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;
