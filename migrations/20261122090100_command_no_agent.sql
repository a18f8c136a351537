-- A command that may not wait needs an agent that answers now: a tunnel without one carries no command. One that may wait
-- does so, as it does without a link: the agent may be about to start.
create or replace function command_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_scope text, p_kind text, p_arguments jsonb,
    p_reason text, p_start_within interval, p_run_seconds integer, p_queue boolean, p_idempotency_key text, p_request_hash bytea
) returns setof commands
    language sql security definer set search_path = public, pg_temp
    as $$
    insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason,
                          expires_at, deadline_at, run_seconds, idempotency_key, request_hash)
    select p_id, d.tenant_id, d.id, g.id, p.id, p_kind, p_arguments, p_reason,
           least(clock_timestamp() + p_start_within, g.ends_at), least(clock_timestamp() + p_start_within, g.ends_at),
           p_run_seconds, p_idempotency_key, p_request_hash
      from devices d
      join people p on p.id = p_operator_id and p.active and p.role = 'operator'
      join grants g on grant_covers(g, d, p.id, p_scope) and grant_in_force(g, clock_timestamp())
     where d.id = p_device_id and d.state = 'active'
       and (p_grant_id is null or g.id = p_grant_id)
       and (p_queue
            or exists (select from links l where l.device_id = d.id and l.closed_at is null and l.has_agent))
     order by g.ends_at desc
     limit 1
       for share of g, d, p
    returning *
$$;
