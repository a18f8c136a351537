-- Who there is: tenants, the people (and robots) who call the API, and their tokens.

create table tenants (
    id                uuid primary key,
    name              text not null unique check (char_length(name) between 1 and 128),
    -- The longest that one grant of this tenant may run, from its start to its end.
    grant_max_seconds integer not null default 2592000 check (grant_max_seconds between 60 and 31622400),
    created_at        timestamptz not null default clock_timestamp()
);

create table people (
    id         uuid primary key,
    name       text not null unique check (char_length(name) between 1 and 128),
    role       text not null check (role in ('admin', 'operator', 'tenant')),
    -- Set for role `tenant`, and for no other.
    tenant_id  uuid references tenants,
    active     boolean not null default true,
    created_at timestamptz not null default clock_timestamp(),
    check ((role = 'tenant') = (tenant_id is not null))
);

create table api_tokens (
    id           uuid primary key,
    person_id    uuid not null references people,
    -- What it is for, as its owner named it.
    name         text not null check (char_length(name) between 1 and 128),
    -- SHA-256 of the secret. The secret itself is random (256 bits) and stored nowhere.
    secret_hash  bytea not null unique check (octet_length(secret_hash) = 32),
    created_at   timestamptz not null default clock_timestamp(),
    expires_at   timestamptz not null,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
create index api_tokens_person on api_tokens (person_id);
