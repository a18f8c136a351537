-- A tenant's permission: which operators may do what on which devices, from when until when, and why.

create table grants (
    id                 uuid primary key,
    tenant_id          uuid not null references tenants,
    created_by         uuid not null references people,
    reason             text not null check (char_length(reason) between 1 and 1024),
    scopes             text[] not null check (cardinality(scopes) > 0 and array_position(scopes, null) is null),
    -- Null: every operator. Never empty.
    operator_ids       uuid[] check (cardinality(operator_ids) > 0),
    -- Exactly one of the two, and never empty.
    device_ids         uuid[] check (cardinality(device_ids) > 0),
    selector           jsonb check (jsonb_typeof(selector) = 'object' and selector <> '{}'),
    starts_at          timestamptz not null,
    ends_at            timestamptz not null,
    created_at         timestamptz not null default clock_timestamp(),
    revoked_at         timestamptz,
    revoked_by         uuid references people,
    -- Grows with each change: the ETag of the resource.
    version            bigint not null default 1,
    -- The tenant's maximum when the grant was made or extended; filled by the trigger below.
    policy_max_seconds integer not null,
    constraint grants_devices_or_selector check ((device_ids is null) <> (selector is null)),
    constraint grants_ends_after_start check (ends_at > starts_at),
    constraint grants_within_policy check (ends_at - starts_at <= make_interval(secs => policy_max_seconds)),
    constraint grants_revoked_by_someone check ((revoked_at is null) = (revoked_by is null))
);
create index grants_tenant on grants (tenant_id, ends_at);

create function grants_fill_policy() returns trigger
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    select grant_max_seconds into new.policy_max_seconds from tenants where id = new.tenant_id;
    return new;
end $$;
create trigger grants_fill_policy before insert or update of starts_at, ends_at on grants
    for each row execute function grants_fill_policy();

-- Whether the grant is in force at `at`. The one place that says so.
create function grant_in_force(g grants, at timestamptz) returns boolean
    language sql immutable
    as $$ select g.revoked_at is null and g.starts_at <= at and at < g.ends_at $$;

-- Whether the grant, in force or not, lets this operator do this on this device.
create function grant_covers(g grants, d devices, operator_id uuid, scope text) returns boolean
    language sql immutable
    as $$
    select g.tenant_id = d.tenant_id
       and scope = any (g.scopes)
       and (g.operator_ids is null or operator_id = any (g.operator_ids))
       and coalesce(d.id = any (g.device_ids), d.labels @> g.selector)
$$;
