-- Desired configuration: documents for devices by labels, and for one device each, merged into what each device is to have. The server
-- itself writes all of it: what is to be is checked against the tenant's schema first, which SQL cannot do.

create table configuration_documents (
    id         uuid primary key,
    tenant_id  uuid not null references tenants,
    -- For this device alone; else for all that a version's selector means, under a name.
    device_id  uuid references devices,
    name       text check (char_length(name) between 1 and 63),
    -- The newest: the ETag of the resource.
    version    bigint not null default 1,
    created_at timestamptz not null default clock_timestamp(),
    constraint configuration_documents_whose check (num_nonnulls(device_id, name) = 1)
);
create unique index configuration_documents_device on configuration_documents (device_id) where device_id is not null;
create unique index configuration_documents_name on configuration_documents (tenant_id, name) where name is not null;
create index configuration_documents_created on configuration_documents (created_at desc, id desc);

-- Never changed. A trigger lets go of the oldest.
create table configuration_versions (
    document_id   uuid not null references configuration_documents,
    tenant_id     uuid not null references tenants,
    version       bigint not null check (version > 0),
    -- JSON, an object. As text: what the device gets is this, to the digit.
    content       text not null check (octet_length(content) between 2 and 61440),
    -- As it was written, and what it meant then, groups included; null for a device's own.
    selector_text text,
    selector      jsonb check (jsonb_typeof(selector) = 'object' and selector <> '{}'),
    -- A higher one is merged later, and wins.
    priority      integer not null default 0,
    reason        text not null check (char_length(reason) between 1 and 1024),
    created_by    uuid not null references people,
    created_at    timestamptz not null default clock_timestamp(),
    -- The version that was brought back.
    restores      bigint,
    primary key (document_id, version),
    check ((selector is null) = (selector_text is null))
);

-- What a tenant's devices understand: every document that a device would get must be as this JSON Schema says.
create table configuration_schemas (
    tenant_id uuid primary key references tenants,
    version   bigint not null default 1,
    content   text not null check (octet_length(content) <= 32768),
    set_by    uuid not null references people,
    set_at    timestamptz not null default clock_timestamp()
);

-- What devices are to have, once however many of them have the same.
create table configuration_contents (
    tenant_id uuid not null references tenants,
    sha256    bytea not null check (octet_length(sha256) = 32),
    content   text not null check (octet_length(content) <= 61440),
    primary key (tenant_id, sha256)
);

create table device_configurations (
    device_id        uuid primary key references devices,
    tenant_id        uuid not null references tenants,
    -- What it is to have. 0: there was never anything.
    version          bigint not null default 0,
    sha256           bytea,
    desired_at       timestamptz not null default clock_timestamp(),
    -- Its labels have changed, and nobody has looked yet what that comes to.
    is_stale         boolean not null default false,
    -- Why it is not given what its documents come to now.
    invalid          text check (char_length(invalid) between 1 and 1024),
    invalid_at       timestamptz,
    -- What it told: the newest that is on its disk, the newest that is applied, and the newest of which it said whether it is; with the
    -- reason, if it is not.
    held_version     bigint not null default 0,
    held_sha256      bytea,
    applied_version  bigint not null default 0,
    reported_version bigint not null default 0,
    error            text,
    reported_at      timestamptz,
    foreign key (tenant_id, sha256) references configuration_contents,
    check ((version = 0) = (sha256 is null)),
    check ((invalid is null) = (invalid_at is null))
);
create index device_configurations_content on device_configurations (tenant_id, sha256);
create index device_configurations_stale on device_configurations (tenant_id) where is_stale;
-- Those that may have to be given theirs.
create index device_configurations_due on device_configurations (device_id) where version > greatest(held_version, reported_version);

grant select on configuration_documents, configuration_versions, configuration_schemas, configuration_contents, device_configurations
    to cloudlink_app, cloudlink_tenant;
grant insert (id, tenant_id, device_id, name), update (version) on configuration_documents to cloudlink_app;
grant insert on configuration_versions, configuration_contents to cloudlink_app;
grant insert, update (version, content, set_by, set_at) on configuration_schemas to cloudlink_app;
grant insert, update on device_configurations to cloudlink_app;

alter table configuration_documents enable row level security;
create policy app on configuration_documents to cloudlink_app using (true) with check (true);
create policy tenant on configuration_documents to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
alter table configuration_versions enable row level security;
create policy app on configuration_versions to cloudlink_app using (true) with check (true);
create policy tenant on configuration_versions to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
alter table configuration_schemas enable row level security;
create policy app on configuration_schemas to cloudlink_app using (true) with check (true);
create policy tenant on configuration_schemas to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
alter table configuration_contents enable row level security;
create policy app on configuration_contents to cloudlink_app using (true) with check (true);
create policy tenant on configuration_contents to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
alter table device_configurations enable row level security;
create policy app on device_configurations to cloudlink_app using (true) with check (true);
create policy tenant on device_configurations to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());

-- How a device stands. The one place that says so.
create function configuration_state(f device_configurations) returns text
    language sql immutable
    as $$
    select case
        when f.invalid is not null then 'invalid'
        when f.version = 0 then 'none'
        when f.reported_version < f.version then 'pending'
        when f.error is not null then 'failed'
        else 'applied'
    end
$$;

-- Since when it stands so.
create function configuration_since(f device_configurations) returns timestamptz
    language sql immutable
    as $$
    select case configuration_state(f)
        when 'invalid' then f.invalid_at
        when 'applied' then coalesce(f.reported_at, f.desired_at)
        when 'failed' then coalesce(f.reported_at, f.desired_at)
        else f.desired_at
    end
$$;

-- What is written down of a device, for when it comes. Null: nothing.
create function configuration_known(p_device_id uuid) returns jsonb
    language sql stable
    as $$
    select jsonb_build_object('version', f.version, 'sha256', encode(f.sha256, 'hex'), 'is_stale', f.is_stale,
                              'held_version', f.held_version, 'held_sha256', encode(f.held_sha256, 'hex'),
                              'applied_version', f.applied_version, 'reported_version', f.reported_version, 'error', f.error)
      from device_configurations f
     where f.device_id = p_device_id and (f.version > 0 or f.is_stale)
$$;

-- The newest 256 versions of a document are kept.
create function configuration_version_forget() returns trigger
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    delete from configuration_versions where document_id = new.document_id and version <= new.version - 256;
    return null;
end $$;
create trigger configuration_version_forget after insert on configuration_versions
    for each row execute function configuration_version_forget();

-- What no device is to have any more is not kept.
create function configuration_content_forget() returns trigger
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    delete from configuration_contents c
     where c.tenant_id = old.tenant_id and c.sha256 = old.sha256
       and not exists (select from device_configurations f where f.tenant_id = c.tenant_id and f.sha256 = c.sha256);
    return null;
end $$;
create trigger configuration_content_forget after update on device_configurations
    for each row when (old.sha256 is distinct from new.sha256) execute function configuration_content_forget();

-- Whoever gives a device other labels, and however: what it is to have is looked at anew.
create function configuration_is_stale() returns trigger
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    insert into device_configurations (device_id, tenant_id, is_stale)
    select new.id, new.tenant_id, true from tenants t where t.id = new.tenant_id and not t.internal
        on conflict (device_id) do update set is_stale = true;
    return null;
end $$;
create trigger configuration_is_stale after insert on devices
    for each row execute function configuration_is_stale();
create trigger configuration_is_stale_by_labels after update of labels on devices
    for each row when (old.labels is distinct from new.labels) execute function configuration_is_stale();
