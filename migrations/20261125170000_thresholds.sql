-- Rules over what devices measure: what is above or below a value for long enough is told to webhooks, and when it is not any more. For each
-- site (the label of this name) not more often than once in a while.

create table thresholds (
    id                uuid primary key,
    tenant_id         uuid not null references tenants,
    name              text not null check (char_length(name) between 1 and 63),
    -- As samples have it, or no_contact_seconds.
    metric            text not null check (char_length(metric) between 1 and 63),
    comparison        text not null check (comparison in ('above', 'below')),
    value             double precision not null,
    -- At this value, or beyond it on the good side, it is over.
    clear_value       double precision not null,
    -- How long it must last before it counts.
    for_seconds       integer not null check (for_seconds between 0 and 86400),
    -- As in grants; without groups.
    selector          jsonb not null check (jsonb_typeof(selector) = 'object' and selector <> '{}'),
    severity          text not null check (severity in ('info', 'warning', 'critical')),
    -- How long nothing more is told of a site after something was.
    hold_down_seconds integer not null check (hold_down_seconds between 0 and 86400),
    created_by        uuid not null references people,
    created_at        timestamptz not null default clock_timestamp(),
    -- What it had told of is told to be over, and then nobody looks at it any more.
    deleted_at        timestamptz,
    -- Grows with each change: the ETag of the resource.
    version           bigint not null default 1,
    -- When somebody is to go on with it; null: never.
    due_at            timestamptz default clock_timestamp(),
    -- The last device that this round has looked at; null: none yet.
    reached           uuid,
    check (case comparison when 'above' then clear_value <= value else clear_value >= value end)
);
create unique index thresholds_name on thresholds (tenant_id, name) where deleted_at is null;
create index thresholds_due on thresholds (due_at) where due_at is not null;

-- Devices that are not as they should be by a rule, or of which somebody still has to be told that they are again. No row: all is well.
create table threshold_states (
    threshold_id  uuid not null references thresholds,
    device_id     uuid not null references devices,
    tenant_id     uuid not null references tenants,
    -- Of this time, until all is well again.
    id            uuid not null default gen_random_uuid(),
    -- The device's site as it was when this began; empty: it had none.
    site          text not null,
    -- pending: not for long enough yet.
    state         text not null check (state in ('pending', 'firing', 'ok')),
    since         timestamptz not null,
    -- What was measured then, if anything was.
    value         double precision,
    -- A crossing of which nobody has been told.
    crossed_at    timestamptz,
    crossed_value double precision,
    -- Whether what was told last is that it had crossed.
    told          boolean not null default false,
    primary key (threshold_id, device_id),
    check (not (told and crossed_at is not null))
);
create index threshold_states_tenant on threshold_states (tenant_id, since desc, id desc) where state <> 'ok';
create index threshold_states_untold on threshold_states (threshold_id) where crossed_at is not null or told and state <> 'firing';

-- Sites of which a rule tells nothing more for now; what happens meanwhile is told together when that is over.
create table threshold_holds (
    threshold_id uuid not null references thresholds,
    site         text not null,
    event        text not null check (event in ('crossed', 'cleared')),
    tenant_id    uuid not null references tenants,
    until        timestamptz not null,
    primary key (threshold_id, site, event)
);

grant select, update (due_at, reached) on thresholds to cloudlink_app;
grant select, insert (id, tenant_id, name, metric, comparison, value, clear_value, for_seconds, selector, severity, hold_down_seconds, created_by),
      update (name, comparison, value, clear_value, for_seconds, selector, severity, hold_down_seconds, deleted_at, version)
   on thresholds to cloudlink_tenant;
grant select, insert, update, delete on threshold_states, threshold_holds to cloudlink_app;
grant select on threshold_states to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['thresholds', 'threshold_states', 'threshold_holds'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;
create policy in_the_name_of_its_people on thresholds as restrictive for insert to cloudlink_tenant
    with check (is_person_of(created_by, tenant_id));
