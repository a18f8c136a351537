-- As before; what a device is and can do is what it has said last, by its link or by a poll since.
create or replace function rollout_decide(p rollouts, p_devices uuid[], p_at timestamptz)
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
                when coalesce(q.agent, l.agent) = p.unless_agent then 'version'
                when p.kind <> all (coalesce(q.capabilities, case when l.has_agent then l.capabilities end)) then 'not_able'
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
      left join polls q on q.device_id = (c.device).id
       and (l.device_id is null or l.connected_at < q.polled_at and not (l.closed_at is null and l.has_agent))
      left join grants g on g.id = p.grant_id and grant_covers(g, c.device, p.requested_by, p.scope) and grant_in_force(g, p_at)
       and exists (select from people o where o.id = p.requested_by and o.active and o.role = 'operator')
$$;
