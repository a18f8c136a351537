-- The newest link of each device. Only the holder of the newest epoch may write its row.

create table links (
    device_id          uuid primary key references devices,
    tenant_id          uuid not null references tenants,
    epoch              bigint not null check (epoch > 0),
    -- Name of the node that serves it.
    node               text not null,
    transport          text not null check (transport in ('websocket', 'openvpn', 'polling')),
    certificate_serial bytea not null references certificates,
    remote_address     inet not null,
    boot_id            text not null,
    agent              text not null,
    os                 text not null,
    hostname           text not null,
    -- Device clock minus server clock at the start of the link.
    clock_offset_ms    bigint not null,
    capabilities       text[] not null,
    connected_at       timestamptz not null default clock_timestamp(),
    -- When the device was last heard of; written in batches, so it lags by some seconds.
    proven_at          timestamptz not null default clock_timestamp(),
    closed_at          timestamptz,
    close_reason       text,
    check ((closed_at is null) = (close_reason is null))
);
create index links_node_live on links (node) where closed_at is null;

-- Each boot of a device that was seen: the proof of a reboot.
create table device_boots (
    device_id  uuid not null references devices,
    tenant_id  uuid not null references tenants,
    boot_id    text not null,
    seen_at    timestamptz not null default clock_timestamp(),
    primary key (device_id, boot_id)
);
