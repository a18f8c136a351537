-- How fast the ways between devices and nodes were: one row a test and direction. It is written before a test begins, so that those
-- that come to nothing count as well.

create table link_tests (
    id             uuid primary key,
    device_id      uuid not null references devices,
    tenant_id      uuid not null references tenants,
    -- By which it was ordered, if the device says one of its own.
    command_id     uuid references commands,
    direction      text not null check (direction in ('download', 'upload')),
    started_at     timestamptz not null default clock_timestamp(),
    node           text not null,
    remote_address inet not null,
    -- As the client calls itself.
    client_name    text not null check (client_name ~ '^[A-Za-z0-9._ /+-]{0,64}$'),
    client_version text not null check (client_version ~ '^[A-Za-z0-9._ /+-]{0,64}$'),
    -- Null until it has ended; for ever, if its node was lost meanwhile.
    outcome        text check (outcome in ('done', 'left', 'time', 'bytes', 'protocol', 'lost')),
    seconds        double precision check (seconds >= 0),
    bytes          bigint check (bytes >= 0),
    bits_per_second bigint check (bits_per_second >= 0),
    -- What the kernel of the node knows.
    min_rtt_us     bigint check (min_rtt_us >= 0),
    retransmitted_bytes bigint check (retransmitted_bytes >= 0),
    check ((outcome is null) = (seconds is null) and (outcome is null) = (bytes is null) and (outcome is null) = (bits_per_second is null))
);
create index link_tests_device on link_tests (device_id, started_at desc, id desc);
-- Those of the last hour.
create index link_tests_tenant on link_tests (tenant_id, started_at);
create index link_tests_started on link_tests (started_at);

grant select, insert, update, delete on link_tests to cloudlink_app;
grant select on link_tests to cloudlink_tenant;
alter table link_tests enable row level security;
create policy app on link_tests to cloudlink_app using (true) with check (true);
create policy tenant on link_tests to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
