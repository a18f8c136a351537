-- Rollouts: the same command to many devices. What becomes of each device is its command's state; nothing is counted beside that.

create table rollouts (
    id                    uuid primary key,
    tenant_id             uuid not null references tenants,
    -- Every command of it is made under this grant, which is asked again at each.
    grant_id              uuid not null references grants,
    requested_by          uuid not null references people,
    -- The same for the audit log.
    actor                 jsonb not null,
    kind                  text not null,
    arguments             jsonb not null,
    scope                 text not null,
    by_polling            boolean not null,
    -- Whether it has to wait for a device that is busy.
    disturbs              boolean not null,
    reason                text not null check (char_length(reason) between 1 and 1024),
    -- As it was asked for, and what it meant then, groups included.
    selector_text         text not null,
    selector              jsonb not null check (jsonb_typeof(selector) = 'object' and selector <> '{}'),
    canaries              integer not null check (canaries >= 0),
    batch                 integer not null check (batch > 0),
    -- Devices begun within a minute.
    rate                  integer not null check (rate > 0),
    abort_after           integer not null check (abort_after > 0),
    -- How soon a device must begin, and whether its command may wait for its link.
    start_within_seconds  integer not null check (start_within_seconds > 0),
    may_queue             boolean not null,
    lasts_seconds         integer not null check (lasts_seconds > 0),
    -- Devices whose agent is this one are left out; null: none.
    unless_agent          text,
    -- The maintenance window; all null: at any time. Hours over midnight belong to the day on which they begin.
    window_days           integer[],
    window_from_minute    integer check (window_from_minute between 0 and 1439),
    window_to_minute      integer check (window_to_minute between 1 and 1440),
    -- For devices without the label "timezone".
    window_time_zone      text,
    plan_hash             bytea check (octet_length(plan_hash) = 32),
    -- The transitions are in the server's model::rollout.
    state                 text not null default 'planned' check (state in
                              ('planned', 'running', 'paused', 'halted', 'cancelling', 'expiring', 'finished', 'cancelled', 'expired')),
    forgiven              integer not null default 0,
    is_unproven_fine      boolean not null default false,
    created_at            timestamptz not null default clock_timestamp(),
    begun_at              timestamptz,
    ends_at               timestamptz,
    finished_at           timestamptz,
    -- When something may be to be done for it. Null before it begins and when it is over.
    look_at               timestamptz,
    constraint rollouts_window check (num_nulls(window_days, window_from_minute, window_to_minute, window_time_zone) in (0, 4)),
    constraint rollouts_finished check ((state in ('finished', 'cancelled', 'expired')) = (finished_at is not null)),
    constraint rollouts_begun check ((state = 'planned') = (begun_at is null) and (begun_at is null) = (ends_at is null)),
    constraint rollouts_looked_at check ((state in ('planned', 'finished', 'cancelled', 'expired')) = (look_at is null))
);
create index rollouts_look on rollouts (look_at) where look_at is not null;
create index rollouts_tenant_created on rollouts (tenant_id, created_at desc, id desc);
create index rollouts_created on rollouts (created_at desc, id desc);
create index rollouts_planned on rollouts (requested_by, created_at) where state = 'planned';

create table rollout_targets (
    rollout_id  uuid not null references rollouts on delete cascade,
    tenant_id   uuid not null references tenants,
    device_id   uuid not null references devices,
    -- Their order; those that are out come last.
    place       integer not null,
    -- Why it is out; null: it is in.
    why_out     text,
    -- By whose clocks the window is told.
    time_zone   text,
    command_id  uuid unique references commands,
    begun_at    timestamptz,
    -- Why it is in and got no command.
    why_skipped text,
    primary key (rollout_id, place),
    unique (rollout_id, device_id),
    check ((command_id is null) = (begun_at is null)),
    check (num_nonnulls(why_out, command_id, why_skipped) <= 1)
);

grant select, insert, update on rollouts, rollout_targets to cloudlink_app;
-- Plans that nobody applied; the policy below keeps everything else. Their targets go with them.
grant delete on rollouts to cloudlink_app;
grant select, update (state, forgiven, is_unproven_fine, finished_at, look_at) on rollouts to cloudlink_tenant;
grant select, update (why_skipped) on rollout_targets to cloudlink_tenant;
alter table rollouts enable row level security;
create policy app on rollouts to cloudlink_app using (true) with check (true);
create policy only_plans on rollouts as restrictive for delete to cloudlink_app using (state = 'planned');
create policy tenant on rollouts to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());
alter table rollout_targets enable row level security;
create policy app on rollout_targets to cloudlink_app using (true) with check (true);
create policy tenant on rollout_targets to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());

create function rollout_is_over() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'rollout % is over', old.id using errcode = 'check_violation', constraint = 'rollout_is_over';
end $$;
create trigger rollout_is_over before update on rollouts
    for each row when (old.finished_at is not null) execute function rollout_is_over();

-- A window that is open at `p_at`, since then, or the next one. Nothing: there is none within nine days, or no such time zone.
create function window_next(p_days integer[], p_from_minute integer, p_to_minute integer, p_time_zone text, p_at timestamptz,
                            out opens_at timestamptz, out closes_at timestamptz)
    language plpgsql stable set search_path = public, pg_temp
    as $$
begin
    select greatest(w.opens, p_at), w.closes into opens_at, closes_at
      from (select (day + make_interval(mins => p_from_minute)) at time zone p_time_zone as opens,
                   (day + make_interval(mins => p_to_minute + case when p_to_minute <= p_from_minute then 1440 else 0 end))
                       at time zone p_time_zone as closes
              from generate_series(((p_at at time zone p_time_zone)::date - 1)::timestamp,
                                   ((p_at at time zone p_time_zone)::date + 8)::timestamp, interval '1 day') day
             where extract(isodow from day)::integer = any (p_days)) w
     where p_at < w.closes and w.opens < w.closes
     order by w.opens
     limit 1;
exception
    when invalid_parameter_value then null;
end $$;

-- Which devices the rollout is for at `p_at`, and why one is out. With `p_devices`: of these, whatever the selector says.
create function rollout_decide(p rollouts, p_devices uuid[], p_at timestamptz)
    returns table (device_id uuid, why_out text, time_zone text, opens_at timestamptz)
    language sql stable set search_path = public, pg_temp
    as $$
    with candidate as materialized (
        select d as device,
               case when p.window_days is not null then coalesce(d.labels ->> 'timezone', p.window_time_zone) end as time_zone
          from devices d
         where d.tenant_id = p.tenant_id
           and case when p_devices is null then labels_match(d.labels, p.selector) else d.id = any (p_devices) end
    ), zone as materialized (
        select z.time_zone, w.opens_at
          from (select distinct c.time_zone from candidate c where c.time_zone is not null) z
          left join lateral window_next(p.window_days, p.window_from_minute, p.window_to_minute, z.time_zone, p_at) w on true
    )
    select (c.device).id,
           case when (c.device).state <> 'active' then 'device_revoked'
                when g.id is null then 'grant'
                when p.window_days is not null and z.opens_at is null then 'time_zone'
                when z.opens_at >= coalesce(p.ends_at, p_at + make_interval(secs => p.lasts_seconds)) then 'window'
                when z.opens_at >= g.ends_at then 'grant_ends'
                when p.disturbs and busy_lock_in_force((c.device).id, p_at) is not null then 'busy'
                when l.agent = p.unless_agent then 'version'
                when l.has_agent and p.kind <> all (l.capabilities) then 'not_able'
                when l.closed_at is null and l.has_agent then null
                when device_next_poll_by((c.device).id, p_at) is not null
                     then case when not p.by_polling or not p.may_queue then 'polling' end
                when p.may_queue then null
                when l.closed_at is null and not l.has_agent then 'no_agent'
                else 'not_linked'
           end,
           c.time_zone, z.opens_at
      from candidate c
      left join zone z on z.time_zone = c.time_zone
      left join links l on l.device_id = (c.device).id
      left join grants g on g.id = p.grant_id and grant_covers(g, c.device, p.requested_by, p.scope) and grant_in_force(g, p_at)
       and exists (select from people o where o.id = p.requested_by and o.active and o.role = 'operator')
$$;

-- What a plan says: what is done and how, to which devices in which order, and why to no others.
create function rollout_hash(p_id uuid) returns bytea
    language sql stable set search_path = public, pg_temp
    as $$
    select sha256(convert_to(
               jsonb_build_array(r.id, r.grant_id, r.requested_by, r.kind, r.arguments, r.reason, r.selector, r.canaries, r.batch, r.rate,
                                 r.abort_after, r.start_within_seconds, r.may_queue, r.lasts_seconds, r.unless_agent, r.window_days,
                                 r.window_from_minute, r.window_to_minute, r.window_time_zone)::text
               || coalesce((select string_agg(concat_ws(' ', t.device_id, coalesce(t.why_out, '-'), coalesce(t.time_zone, '-')), E'\n'
                                              order by t.place)
                              from rollout_targets t where t.rollout_id = r.id), ''), 'UTF8'))
      from rollouts r where r.id = p_id
$$;
