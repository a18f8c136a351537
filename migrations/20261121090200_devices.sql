-- Devices, what authenticates them, and how they come to be.

create table devices (
    id          uuid primary key,
    tenant_id   uuid not null references tenants,
    name        text not null check (char_length(name) between 1 and 128),
    -- Object of string to string; key and value 1 to 63 characters, at most 64 labels (checked by the server).
    labels      jsonb not null default '{}' check (jsonb_typeof(labels) = 'object' and pg_column_size(labels) <= 16384),
    state       text not null default 'active' check (state in ('active', 'revoked')),
    -- Grows with each change: the ETag of the resource.
    version     bigint not null default 1,
    enrolled_at timestamptz not null default clock_timestamp(),
    revoked_at  timestamptz,
    unique (tenant_id, name),
    check ((state = 'revoked') = (revoked_at is not null))
);
create index devices_labels on devices using gin (labels jsonb_path_ops);
create index devices_revoked_at on devices (revoked_at) where revoked_at is not null;

-- Every device certificate that was ever issued. A certificate that is not in this table is refused.
create table certificates (
    serial      bytea primary key check (octet_length(serial) between 8 and 20),
    device_id   uuid not null references devices,
    tenant_id   uuid not null references tenants,
    -- issued: not yet seen; active: used by a welcomed link; superseded: a newer one was used; revoked.
    state       text not null default 'issued' check (state in ('issued', 'active', 'superseded', 'revoked')),
    -- SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    key_hash    bytea not null check (octet_length(key_hash) = 32),
    -- The leaf, DER: handed out again when the answer to an enrollment was lost.
    der         bytea not null,
    issued_at   timestamptz not null default clock_timestamp(),
    not_after   timestamptz not null,
    used_at     timestamptz,
    revoked_at  timestamptz,
    check ((state = 'revoked') = (revoked_at is not null))
);
create index certificates_device on certificates (device_id);
create index certificates_revoked_at on certificates (revoked_at) where revoked_at is not null;

create table enrollment_tokens (
    id          uuid primary key,
    tenant_id   uuid not null references tenants,
    created_by  uuid not null references people,
    secret_hash bytea not null unique check (octet_length(secret_hash) = 32),
    -- What the enrolled device is called and labelled.
    device_name text not null check (char_length(device_name) between 1 and 128),
    labels      jsonb not null default '{}',
    created_at  timestamptz not null default clock_timestamp(),
    expires_at  timestamptz not null,
    -- Single use: set together, once.
    used_at     timestamptz,
    device_id   uuid references devices,
    check ((used_at is null) = (device_id is null))
);
create index enrollment_tokens_tenant on enrollment_tokens (tenant_id);

-- The newest report of each device.
create table device_metrics (
    device_id   uuid primary key references devices,
    tenant_id   uuid not null references tenants,
    received_at timestamptz not null,
    report      jsonb not null
);
