-- The only way to make an opening: the check of the grant and the insert are one statement, with the database's clock. No role
-- of the server may insert into the table.
--
-- A port may be opened several times at once, by other operators or under other grants: each opening ends by itself, and the
-- port is closed with the last one.
create function opening_create(
    p_id uuid, p_operator_id uuid, p_device_id uuid, p_grant_id uuid, p_port integer, p_reason text, p_open_for interval,
    p_openings_max integer
) returns setof openings
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    -- One after the other, for a device: the next statement sees what the one before has made.
    perform from devices where id = p_device_id for no key update;
    -- Locked like those of a command: when the grant is revoked, or the operator shut out, at the same moment, either that comes
    -- first, and is seen here, or it waits, and then finds the opening to end.
    return query
    insert into openings (id, tenant_id, device_id, grant_id, opened_by, port, reason, expires_at)
    select p_id, d.tenant_id, d.id, g.id, p.id, p_port, p_reason,
           least(clock_timestamp() + p_open_for, g.ends_at)
      from devices d
      join people p on p.id = p_operator_id and p.active and p.role = 'operator'
      join grants g on grant_covers(g, d, p.id, 'tcp:open') and grant_in_force(g, clock_timestamp())
     where d.id = p_device_id and d.state = 'active' and d.quarantined_at is null
       and (p_grant_id is null or g.id = p_grant_id)
       -- A link without a tunnel has no IP path.
       and exists (select from links l where l.device_id = d.id and l.closed_at is null and l.tunnel_id is not null)
       and (select count(*) from openings o where o.device_id = d.id and o.ended_at is null) < p_openings_max
     order by g.ends_at desc
     limit 1
       for share of g, d, p
    returning *;
end $$;
revoke execute on function opening_create from public;
grant execute on function opening_create to cloudlink_app;

-- Whether the opening holds at `at`: it, its grant, its device and its operator. The one place that says so. What it is ended
-- with where it does not.
create function opening_over(o openings, g grants, d devices, p people, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'grant_revoked'
        when d.state <> 'active' then 'device_revoked'
        when not p.active then 'operator_shut_out'
        when d.quarantined_at is not null then 'quarantined'
        when o.expires_at <= at or not grant_in_force(g, at) then 'expired'
    end
$$;

-- What is over stays over.
create function opening_end_is_final() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'opening % has ended', old.id using errcode = 'check_violation', constraint = 'opening_end_is_final';
end $$;
create trigger opening_end_is_final before update on openings
    for each row when (old.ended_at is not null) execute function opening_end_is_final();
