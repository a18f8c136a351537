-- A selector says more than labels that all must be there: one of several values, none of them, a label that is there or is not.
-- It is stored as what it was: an object of labels that must have these values, {"site": "north"}. What it says beyond that is under
-- the key "", which no label has: a line for each demand, its words between tabs, which no label has either:
-- in, notin: a key and values; present, absent: a key. A server of before, which knows only @>, finds that such a selector fits nothing.

-- Whether the labels are as these lines demand. What it does not understand fits nothing.
create function labels_meet(labels jsonb, demands text) returns boolean
    language sql immutable strict parallel safe
    as $$
    select demands <> '' and not exists (
        select from string_to_table(demands, E'\n') line
         cross join lateral (select string_to_array(line, E'\t') as words) split
         where not coalesce(case
             when words[1] = 'in' then labels ->> words[2] = any (words[3:])
             -- As Kubernetes has it: what has no such label has none of its values.
             when words[1] = 'notin' and cardinality(words) > 2 then
                 not labels ? words[2] or labels ->> words[2] <> all (words[3:])
             when words[1] = 'present' and cardinality(words) = 2 then labels ? words[2]
             when words[1] = 'absent' and cardinality(words) = 2 then not labels ? words[2]
         end, false))
$$;

-- Whether a device with these labels is meant. The one place that says so. Null without a selector.
create function labels_match(labels jsonb, selector jsonb) returns boolean
    language sql immutable parallel safe
    as $$
    select case when selector ? '' then labels @> (selector - ''::text) and labels_meet(labels, selector ->> '')
                else labels @> selector end
$$;

create or replace function grant_covers(g grants, d devices, operator_id uuid, scope text) returns boolean
    language sql immutable
    as $$
    select g.tenant_id = d.tenant_id
       and scope = any (g.scopes)
       and (g.operator_ids is null or operator_id = any (g.operator_ids))
       and coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector))
$$;

create or replace function support_session_over(s support_sessions, g grants, d devices, p people, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'grant_revoked'
        when d.state <> 'active' then 'device_revoked'
        when not p.active or p.role <> 'operator' then 'operator_shut_out'
        when d.quarantined_at is not null then 'quarantined'
        when not grant_in_force(g, at) then 'grant_ended'
        when not coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector)) then 'grant_revoked'
    end
$$;

create or replace function opening_over(o openings, g grants, d devices, p people, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'grant_revoked'
        when d.state <> 'active' then 'device_revoked'
        when not p.active then 'operator_shut_out'
        when d.quarantined_at is not null then 'quarantined'
        when o.expires_at <= at or not grant_in_force(g, at) then 'expired'
        when not coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector)) then 'grant_revoked'
    end
$$;

create or replace function access_request_create(
    p_id uuid, p_operator_id uuid, p_scopes text[], p_device_ids uuid[], p_reason text, p_ticket text,
    p_answer_by timestamptz, p_answer_within interval, p_access_until timestamptz, p_access_for interval,
    p_open_max integer, p_grant_id uuid
) returns text
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    v_tenant tenants;
    v_tenants integer;
    v_devices integer;
    v_now timestamptz;
    v_until timestamptz;
    v_policy access_policies;
begin
    -- One after the other, for an operator: the count below sees what the one before has made.
    perform from people where id = p_operator_id and active and role = 'operator' for no key update;
    if not found then
        return 'operator';
    end if;
    select count(*), count(distinct d.tenant_id) into v_devices, v_tenants
      from devices d join tenants t on t.id = d.tenant_id and not t.internal
     where d.id = any (p_device_ids) and d.state = 'active';
    if v_devices <> cardinality(p_device_ids) then
        return 'devices';
    elsif v_tenants <> 1 then
        return 'tenants';
    end if;
    select t.* into v_tenant from tenants t join devices d on d.tenant_id = t.id where d.id = p_device_ids[1] for share of t;
    v_now := clock_timestamp();
    if (select count(*) from access_requests r
         where r.requested_by = p_operator_id and access_request_state(r, v_now) = 'open') >= p_open_max then
        return 'room';
    end if;
    v_until := coalesce(p_access_until, v_now + p_access_for);
    if v_until <= v_now or p_answer_by <= v_now then
        return 'time';
    elsif v_until - v_now > make_interval(secs => v_tenant.grant_max_seconds) then
        return 'beyond_policy';
    end if;
    insert into access_requests (id, tenant_id, requested_by, scopes, device_ids, reason, ticket, created_at, answer_by,
                                 access_until, approvals_needed)
    values (p_id, v_tenant.id, p_operator_id, p_scopes, p_device_ids, p_reason, p_ticket, v_now,
            least(coalesce(p_answer_by, v_now + p_answer_within), v_until), v_until, v_tenant.approvals_needed);
    -- Nobody signs a grant that is made by itself.
    select p.* into v_policy
      from access_policies p
     where p.tenant_id = v_tenant.id and not v_tenant.signed_grants
       and access_policy_in_force(p, v_tenant.approvals_needed)
       and (p.operator_ids is null or p_operator_id = any (p.operator_ids))
       and p_scopes <@ p.scopes
       and v_until - v_now <= make_interval(secs => p.max_seconds)
       and not exists (select from devices d
                        where d.id = any (p_device_ids)
                          and not coalesce(d.id = any (p.device_ids), labels_match(d.labels, p.selector), true))
       and access_policy_holds(p, v_now, v_until)
     order by p.created_at, p.id limit 1
       for share of p;
    if not found then
        return 'open';
    end if;
    insert into grants (id, tenant_id, created_by, reason, scopes, operator_ids, device_ids, starts_at, ends_at,
                        policy_max_seconds, request_id, policy_id)
    values (p_grant_id, v_tenant.id, v_policy.created_by, p_reason, p_scopes, array[p_operator_id], p_device_ids, v_now, v_until,
            0, p_id, v_policy.id);
    update access_requests set outcome = 'approved', closed_at = v_now, grant_id = p_grant_id, version = version + 1
     where id = p_id;
    return 'approved';
end $$;
