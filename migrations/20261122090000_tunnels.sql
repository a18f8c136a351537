-- Tunnels of OpenVPN clients. A tunnel is its device's link; an agent inside it takes that link over, and leaves it again.

-- The tunnel that carries the link, and whether an agent answers on it: without one, commands are refused.
alter table links add column tunnel_id uuid;
alter table links add column has_agent boolean not null default true;
alter table links add check ((transport = 'openvpn') = (tunnel_id is not null));
alter table links add check (has_agent or tunnel_id is not null);

-- The newest tunnel of each device, live or not: it is live when the device's live link names it.
create table tunnels (
    device_id   uuid primary key references devices,
    tenant_id   uuid not null references tenants,
    id          uuid not null unique,
    ipv4        inet not null,
    ipv6        inet not null,
    -- What the client says about itself (IV_VER, IV_PLAT).
    client      text not null,
    platform    text not null,
    cipher      text not null,
    opened_at   timestamptz not null default clock_timestamp(),
    -- Packets inside the tunnel; written in batches, so they lag by some seconds. In: from the device.
    packets_in  bigint not null default 0,
    packets_out bigint not null default 0,
    bytes_in    bigint not null default 0,
    bytes_out   bigint not null default 0,
    -- Not let through, in either direction.
    dropped     bigint not null default 0
);

-- The part of the address pool that a node gives out. A lease that has ended may be taken by another node.
create table tunnel_slices (
    slice        integer primary key check (slice >= 0),
    node         text not null unique,
    leased_until timestamptz not null
);

-- The address of each device in each slice: the same one as long as nobody else needs it.
create table tunnel_addresses (
    slice     integer not null,
    -- Counted from the start of the slice. 0 is the network, 1 the node.
    host      integer not null check (host >= 2),
    device_id uuid not null references devices,
    -- When it was last asked for. While its tunnel is live, and after, the device's link tells when it was last heard of.
    used_at   timestamptz not null default clock_timestamp(),
    primary key (slice, host),
    unique (slice, device_id)
);

grant select, insert, update, delete on tunnels, tunnel_slices, tunnel_addresses to cloudlink_app;
grant select on tunnels to cloudlink_tenant;
alter table tunnels enable row level security;
create policy app on tunnels to cloudlink_app using (true) with check (true);
create policy tenant on tunnels to cloudlink_tenant using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
