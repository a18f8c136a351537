-- The newest poll of each device: what it says when no link comes about. A poll is no link. It has no epoch, and nothing here is about
-- `links`: whether a device polls is read from both.

create table polls (
    device_id          uuid primary key references devices,
    tenant_id          uuid not null references tenants,
    polled_at          timestamptz not null,
    -- When it was told to come back.
    interval_seconds   integer not null check (interval_seconds between 1 and 86400),
    -- It should have come back by then.
    next_by            timestamptz not null,
    -- From then on, without another poll, it does not count as polling any more.
    silent_at          timestamptz not null,
    certificate_serial bytea not null references certificates,
    -- Name of the node that answered.
    node               text not null,
    remote_address     inet not null,
    boot_id            text not null,
    agent              text not null,
    os                 text not null,
    hostname           text not null,
    -- Device clock minus server clock.
    clock_offset_ms    bigint not null,
    capabilities       text[] not null,
    -- What runs on the device: [{"name": …, "state": …, "kind": …}].
    running            jsonb not null check (jsonb_typeof(running) = 'array')
);

grant select, insert, update on polls to cloudlink_app;
grant select on polls to cloudlink_tenant;
alter table polls enable row level security;
create policy app on polls to cloudlink_app using (true) with check (true);
create policy tenant on polls to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());

-- When a device that polls is back, at the latest; null for one that does not poll. A live link with an agent wins over any poll, and
-- a device that was linked after its last poll has to poll again first.
create function device_next_poll_by(p_device_id uuid, p_at timestamptz) returns timestamptz
    language sql stable
    as $$
    select case when p_at < q.next_by then q.next_by else q.silent_at end
      from polls q left join links l on l.device_id = q.device_id
     where q.device_id = p_device_id and p_at < q.silent_at
       and (l.device_id is null
            or case when l.closed_at is null then not l.has_agent else l.connected_at < q.polled_at end)
$$;
