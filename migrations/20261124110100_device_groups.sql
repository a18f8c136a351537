-- Selectors with a name. Whatever takes one takes what it means at that moment: a change of a group changes nothing that was made of it.

create table device_groups (
    id         uuid primary key,
    -- Null: the vendor's own, of its operators and administrators.
    tenant_id  uuid references tenants,
    name       text not null check (char_length(name) between 1 and 63),
    -- As in grants; without groups.
    selector   jsonb not null check (jsonb_typeof(selector) = 'object' and selector <> '{}'),
    created_by uuid not null references people,
    created_at timestamptz not null default clock_timestamp(),
    deleted_at timestamptz,
    -- Grows with each change: the ETag of the resource.
    version    bigint not null default 1
);
create unique index device_groups_name on device_groups (tenant_id, name) nulls not distinct where deleted_at is null;

create function device_group_is_deleted() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'group % is deleted', old.id using errcode = 'check_violation', constraint = 'device_group_is_deleted';
end $$;
create trigger device_group_is_deleted before update on device_groups
    for each row when (old.deleted_at is not null) execute function device_group_is_deleted();

grant select, insert (id, tenant_id, name, selector, created_by), update (name, selector, deleted_at, version) on device_groups
    to cloudlink_app, cloudlink_tenant;

alter table device_groups enable row level security;
create policy app on device_groups to cloudlink_app using (true) with check (true);
create policy tenant on device_groups to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
create policy in_the_name_of_its_people on device_groups as restrictive for insert to cloudlink_tenant
    with check (is_person_of(created_by, tenant_id));
create policy the_vendors_own on device_groups as restrictive for insert to cloudlink_app with check (tenant_id is null);
