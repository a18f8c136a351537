-- What the last look at a rollout found, so that the next one need not read all of its devices where nothing has moved since. It says
-- nothing of how far the rollout is: that is counted from the commands.
alter table rollouts
    -- How many of its commands had not ended then.
    add column seen_open integer,
    -- The `look_at` that the look has left; another one: somebody has been there since, who does not tell the rest.
    add column seen_look_at timestamptz,
    -- When there is something to be done though no command ends; null: never.
    add column act_at timestamptz;
grant update (seen_open, seen_look_at, act_at) on rollouts to cloudlink_tenant;

-- How many are not over is asked for each that begins.
create index rollouts_tenant_look on rollouts (tenant_id) where look_at is not null;

-- Puts off those that are due and for which nothing has moved since the last look: `p_again` while commands of it are open, or else `p_idly`.
create function rollout_pass_idle(p_again interval, p_idly interval) returns bigint
    language sql set search_path = public, pg_temp
    as $$
    with due as materialized (
        select r.id, r.grant_id, r.seen_open, r.act_at
          from rollouts r
         where r.look_at <= clock_timestamp() and r.seen_look_at = r.look_at
           and (r.act_at is null or r.act_at > clock_timestamp())
           for no key update skip locked
    ), idle as materialized (
        select d.id, least(clock_timestamp() + case when d.seen_open > 0 then p_again else p_idly end, d.act_at) as look_at
          from due d
         where d.seen_open = (select count(*) from commands c join rollout_targets t on t.command_id = c.id
                               where c.grant_id = d.grant_id and c.finished_at is null and t.rollout_id = d.id)
    ), passed as (
        update rollouts r set look_at = i.look_at, seen_look_at = i.look_at from idle i where r.id = i.id returning 1
    )
    select count(*) from passed
$$;
