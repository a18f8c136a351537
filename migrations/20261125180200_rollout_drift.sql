-- Links come and go: of so many devices it may be otherwise when a plan is applied whether they can be reached, or are busy. What else a
-- person decides by must be as planned. 0 is what plans of the version before say: of none.
alter table rollouts add column drift_max integer not null default 0 check (drift_max >= 0);

-- As before, with the bound above.
create or replace function rollout_hash(p_id uuid) returns bytea
    language sql stable set search_path = public, pg_temp
    as $$
    select sha256(convert_to(
               jsonb_build_array(r.id, r.grant_id, r.requested_by, r.kind, r.arguments, r.reason, r.selector, r.canaries, r.batch, r.rate,
                                 r.abort_after, r.start_within_seconds, r.may_queue, r.lasts_seconds, r.unless_agent, r.window_days,
                                 r.window_from_minute, r.window_to_minute, r.window_time_zone, r.drift_max)::text
               || coalesce((select string_agg(concat_ws(' ', t.device_id, coalesce(t.why_out, '-'), coalesce(t.time_zone, '-')), E'\n'
                                              order by t.place)
                              from rollout_targets t where t.rollout_id = r.id), ''), 'UTF8'))
      from rollouts r where r.id = p_id
$$;

-- For which devices it would be decided otherwise at `p_at` than in the plan. `drifted`: only whether it can be reached, or is busy.
create function rollout_moved(p_id uuid, p_at timestamptz)
    returns table (device_id uuid, was text, is_now text, drifted boolean)
    language sql stable set search_path = public, pg_temp
    as $$
    select coalesce(t.device_id, n.device_id), m.was, m.is_now,
           t.time_zone is not distinct from n.time_zone
           and coalesce(m.was, 'not_linked') = any (passing) and coalesce(m.is_now, 'not_linked') = any (passing)
      from (values (array['not_linked', 'no_agent', 'polling', 'busy'])) p(passing)
     cross join ((select n.* from rollouts r cross join lateral rollout_decide(r, null, p_at) n where r.id = p_id) n
                 full join (select t.* from rollout_targets t where t.rollout_id = p_id) t on t.device_id = n.device_id)
     cross join lateral (select case when t.device_id is null then 'not_meant' else t.why_out end as was,
                                case when n.device_id is null then 'not_meant' else n.why_out end as is_now) m
     where t.device_id is null or n.device_id is null or t.why_out is distinct from n.why_out
        or t.time_zone is distinct from n.time_zone
$$;
