-- What devices measured, for as long as it is kept: samples as they came, and what they come to in five minutes and in an hour.
--
-- Each table is in partitions by time, which samples_keep() makes ahead and drops as a whole. There is no default partition: rows
-- would gather there that nobody drops, and keep partitions from being made.

create table samples (
    -- Neither of them is looked up for each row: only links write here, whose device and tenant the database has just told.
    device_id           uuid not null,
    tenant_id           uuid not null,
    -- When it came, by the database's clock.
    at                  timestamptz not null,
    -- What a device cannot measure is null.
    memory_used_bytes   bigint,
    memory_total_bytes  bigint,
    disk_used_bytes     bigint,
    disk_total_bytes    bigint,
    uptime_seconds      bigint,
    -- How far the device's clock is ahead of the server's.
    clock_offset_ms     bigint,
    cpu_percent         real,
    temperature_celsius real,
    load_1m             real,
    load_5m             real,
    load_15m            real,
    primary key (device_id, at)
) partition by range (at);
-- Rows come in the order of time: this finds five minutes of all devices, and takes next to nothing.
create index samples_at on samples using brin (at) with (pages_per_range = 32, autosummarize = on);

create table samples_five_minutes (
    device_id uuid not null,
    tenant_id uuid not null,
    -- When the five minutes began.
    at        timestamptz not null,
    -- Four numbers a metric: how many samples had it, the least, the most, and the mean. The metrics are in the order of
    -- `Metric::ALL` of the server, to which a new one is added at the end.
    stats     real[] not null,
    primary key (device_id, at)
) partition by range (at);
create index samples_five_minutes_at on samples_five_minutes using brin (at) with (pages_per_range = 32, autosummarize = on);

create table samples_hour (
    device_id uuid not null,
    tenant_id uuid not null,
    at        timestamptz not null,
    stats     real[] not null,
    primary key (device_id, at)
) partition by range (at);

-- Up to when samples are added up.
create table sample_progress (
    resolution text primary key check (resolution in ('five_minutes', 'hour')),
    until      timestamptz not null
);
insert into sample_progress values
    ('five_minutes', date_bin('5 minutes', clock_timestamp(), '2000-01-03 00:00:00+00')),
    ('hour', date_bin('1 hour', clock_timestamp(), '2000-01-03 00:00:00+00'));

-- The beginnings of five minutes to which samples came late: they are to be added up again. As often as it happens.
create table samples_late (
    at timestamptz not null
);

-- Makes the partitions of the next days, and drops those of which all is older than so many days. None goes before it is added
-- up. Gives how many it dropped, and null while another node does the same. With the rights of the tables' owner, who alone may.
create function samples_keep(p_days integer, p_five_minutes_days integer, p_hour_days integer) returns integer
    language plpgsql security definer set search_path = public, pg_temp set lock_timeout = '2s'
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
            ('samples_hour', interval '28 days', p_hour_days, 'infinity'::timestamptz)
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
                execute format('drop' || ' table public.%I', part.name);
                dropped := dropped + 1;
            end if;
        end loop;
    end loop;
    return dropped;
end $$;
revoke execute on function samples_keep from public;
grant execute on function samples_keep to cloudlink_app;
-- So that there is room for rows from the beginning.
select samples_keep(36500, 36500, 36500);

-- The partitions themselves are nobody's to read or write: rights and policies are those of the table that is asked for.
grant select, insert on samples to cloudlink_app;
grant select, insert, update on samples_five_minutes, samples_hour to cloudlink_app;
grant select, update on sample_progress to cloudlink_app;
grant select, insert, delete on samples_late to cloudlink_app;
grant select on samples, samples_five_minutes, samples_hour to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['samples', 'samples_five_minutes', 'samples_hour'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;
