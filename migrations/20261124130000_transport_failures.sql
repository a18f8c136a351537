-- How attempts of devices to reach the server went wrong, as they told it with a link that works: each kind of failure once a device,
-- and no more than some dozens of each.

create table transport_failures (
    device_id   uuid not null references devices,
    tenant_id   uuid not null references tenants,
    transport   text not null check (transport in ('websocket', 'openvpn', 'polling')),
    stage       text not null check (stage in ('name', 'proxy', 'tcp', 'tls', 'http', 'welcome', 'tunnel', 'link', 'device')),
    code        text not null check (code ~ '^[a-z0-9_]{1,32}$'),
    -- Since it was first told, or came back after a month.
    count       bigint not null check (count > 0),
    last_at     timestamptz not null,
    primary key (device_id, transport, stage, code)
);
create index transport_failures_tenant on transport_failures (tenant_id, last_at);

grant select, insert, update, delete on transport_failures to cloudlink_app;
grant select on transport_failures to cloudlink_tenant;
alter table transport_failures enable row level security;
create policy app on transport_failures to cloudlink_app using (true) with check (true);
create policy tenant on transport_failures to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
