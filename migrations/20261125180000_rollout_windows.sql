-- Clocks that are set forward skip an hour. A window that begins or ends within it begins or ends when that hour would have; one that is
-- wholly within it is none that day, and the next one counts, also if that is a week later.

-- The first moment that is not before this time by the clocks of that zone.
create function window_edge(p_local timestamp, p_time_zone text) returns timestamptz
    language sql stable set search_path = public, pg_temp
    as $$
    select case when p_local at time zone p_time_zone at time zone p_time_zone = p_local then p_local at time zone p_time_zone
                else (select min(m at time zone p_time_zone)
                        from generate_series(p_local, p_local + interval '1 day', interval '1 minute') m
                       where m at time zone p_time_zone at time zone p_time_zone = m) end
$$;

-- As before, by those edges. Nothing: there is no such time zone.
create or replace function window_next(p_days integer[], p_from_minute integer, p_to_minute integer, p_time_zone text, p_at timestamptz,
                                       out opens_at timestamptz, out closes_at timestamptz)
    language plpgsql stable set search_path = public, pg_temp
    as $$
begin
    select greatest(w.opens, p_at), w.closes into opens_at, closes_at
      from (select window_edge(day + make_interval(mins => p_from_minute), p_time_zone) as opens,
                   window_edge(day + make_interval(mins => p_to_minute + case when p_to_minute <= p_from_minute then 1440 else 0 end),
                               p_time_zone) as closes
              from generate_series(((p_at at time zone p_time_zone)::date - 1)::timestamp,
                                   ((p_at at time zone p_time_zone)::date + 15)::timestamp, interval '1 day') day
             where extract(isodow from day)::integer = any (p_days)) w
     where p_at < w.closes and w.opens < w.closes
     order by w.opens
     limit 1;
exception
    when invalid_parameter_value then null;
end $$;
