-- The nodes of the cluster, as the database's clock sees them. A node holds a lease; what one had whose lease has ended, the others close.

create table nodes (
    name         text primary key check (char_length(name) between 1 and 64),
    -- Of its data directory: who comes back with it takes the name at once, anybody else only after the lease.
    instance     uuid not null,
    -- Of this run of the process.
    life         uuid not null,
    version      text not null,
    -- Where other nodes reach it. Null: it works alone.
    address      text,
    started_at   timestamptz not null default clock_timestamp(),
    renewed_at   timestamptz not null default clock_timestamp(),
    lease        interval not null check (lease > '0'),
    leased_until timestamptz not null,
    -- Since when it has held its lease without a gap. Only who has reached the database for as long as a lease lasts may say of
    -- others that they are gone: when the database itself was away, all of them have let their leases run out.
    steady_since timestamptz not null default clock_timestamp(),
    -- When what it had was closed, by itself or by others.
    gone_at      timestamptz
);

grant select, insert, update, delete on nodes to cloudlink_app;
