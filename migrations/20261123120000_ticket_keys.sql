-- What session tickets of the device port are encrypted with, the same on all nodes. A key is used for one period, counted by
-- the database's clock, accepted for one more, and deleted.

create table ticket_keys (
    -- Nodes that are configured with another time have keys of their own.
    period_seconds integer not null check (period_seconds > 0),
    -- Whole periods since 1970.
    number         bigint not null,
    -- 32 bytes, encrypted with the storage key.
    sealed         bytea not null check (octet_length(sealed) between 32 and 256),
    made_at        timestamptz not null default clock_timestamp(),
    primary key (period_seconds, number)
);

grant select, insert, delete on ticket_keys to cloudlink_app;
