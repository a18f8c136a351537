-- As before, but: no partition of hours goes before its hours are added up, which would find no place any more. Who has to wait for a reader
-- keeps all that write waiting behind it, so that it waits for a moment only, and is called again later.
create or replace function samples_keep(p_days integer, p_five_minutes_days integer, p_hour_days integer) returns integer
    language plpgsql security definer set search_path = public, pg_temp set lock_timeout = '200ms'
    as $$
declare
    -- A Monday.
    origin  constant timestamptz := '2000-01-03 00:00:00+00';
    now_at  constant timestamptz := clock_timestamp();
    dropped integer := 0;
    kept    record;
    part    record;
    first   timestamptz;
    name    text;
begin
    if not pg_try_advisory_xact_lock(7401228190313771) then
        return null;
    end if;
    for kept in
        select t.* from (values
            ('samples', interval '1 day', p_days, (select until from sample_progress where resolution = 'five_minutes')),
            ('samples_five_minutes', interval '7 days', p_five_minutes_days,
             (select until from sample_progress where resolution = 'hour')),
            ('samples_hour', interval '28 days', p_hour_days, (select until from sample_progress where resolution = 'hour'))
        ) as t (parent, span, days, added_up)
    loop
        -- What waited in a node for the database may be a day old.
        first := date_bin(kept.span, now_at - interval '1 day', origin);
        while first < now_at + interval '3 days' loop
            name := kept.parent || to_char(first at time zone 'utc', '_YYYYMMDD');
            if to_regclass('public.' || name) is null then
                -- Made by itself and then attached, it keeps nobody from writing.
                execute format('create table public.%I (like public.%I including all)', name, kept.parent);
                execute format('alter table public.%I enable row level security', name);
                execute format('alter table public.%I attach partition public.%I for values from (%L) to (%L)',
                               kept.parent, name, first, first + kept.span);
            end if;
            first := first + kept.span;
        end loop;
        for part in
            select c.relname::text as name, to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp at time zone 'utc' as first
              from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = format('public.%I', kept.parent)::regclass and c.relname ~ ('^' || kept.parent || '_[0-9]{8}$')
        loop
            if part.first + kept.span <= least(now_at - make_interval(days => kept.days), kept.added_up) then
                -- The rows are what is to go. No version reads a partition by its name.
                execute format('drop table public.%I', part.name); -- at run time
                dropped := dropped + 1;
            end if;
        end loop;
    end loop;
    return dropped;
end $$;
