-- Who decides on access, and how: by these functions alone. A grant comes of a request in the statement that closes it, with the
-- database's clock; no operator and no administrator has a part in it.

-- access: an operator asks. grant, extension: one person of the tenant proposes what another one must approve.
alter table access_requests add column kind text not null default 'access' check (kind in ('access', 'grant', 'extension'));
-- Of a proposed grant: for whom it will be; null: every operator. Access that an operator asks for is for that operator alone.
alter table access_requests add column operator_ids uuid[] check (cardinality(operator_ids) > 0);
alter table access_requests add column selector jsonb check (jsonb_typeof(selector) = 'object' and selector <> '{}');
-- Of a proposed grant that begins later; null: with the last approval.
alter table access_requests add column starts_at timestamptz;
-- Of an extension: the grant whose end is to be moved.
alter table access_requests add column extends_id uuid references grants;
-- When it was told that nobody had answered in time.
alter table access_requests add column expiry_told_at timestamptz;
alter table access_requests alter column device_ids drop not null;
alter table access_requests add constraint access_requests_devices_or_selector check ((device_ids is null) <> (selector is null));
alter table access_requests add check ((kind = 'extension') = (extends_id is not null));
alter table access_requests add check (kind <> 'access' or (device_ids is not null and operator_ids is null and starts_at is null));
create index access_requests_untold on access_requests (least(answer_by, access_until))
    where outcome is null and expiry_told_at is null;

-- The second person, where two must approve. Without one, such a policy allows nothing.
alter table access_policies add column approved_by uuid references people;
alter table access_policies add column approved_at timestamptz;
alter table access_policies add column revoked_by uuid references people;
alter table access_policies add check ((approved_by is null) = (approved_at is null));
alter table access_policies add check (approved_by is distinct from created_by);

-- Who has asked for one approval to be enough again, and until when somebody else may agree.
alter table tenants add column fewer_approvals_by uuid references people;
alter table tenants add column fewer_approvals_until timestamptz;
alter table tenants add check ((fewer_approvals_by is null) = (fewer_approvals_until is null));

-- When the tenant was told that the grant's time was up. What ended before there were notices is no news.
alter table grants add column end_told_at timestamptz;
update grants set end_told_at = clock_timestamp() where ends_at <= clock_timestamp();
create index grants_end_untold on grants (ends_at) where end_told_at is null and revoked_at is null;
create index grants_policy on grants (policy_id) where policy_id is not null;

-- What the server writes itself, it writes by the functions below. It keeps the right to note what it has told.
revoke insert, update on grants, access_requests, access_decisions, access_policies from cloudlink_app;
grant update (expiry_told_at) on access_requests to cloudlink_app;
grant update (end_told_at, receipted_at) on grants to cloudlink_app;
revoke update on tenants from cloudlink_app;
grant update (name, grant_max_seconds) on tenants to cloudlink_app;
revoke update (approvals_needed) on tenants from cloudlink_tenant;
revoke update on access_requests from cloudlink_tenant;
revoke insert on access_decisions, access_policies from cloudlink_tenant;
grant insert (id, tenant_id, name, scopes, device_ids, selector, operator_ids, days, from_minute, to_minute, time_zone,
              max_seconds, created_by), update (revoked_at, revoked_by) on access_policies to cloudlink_tenant;

-- What a tenant's transaction makes by itself is made by one of the tenant's people, and by that one alone only where one is enough.
-- Not `security definer`: the functions below act as the owner, and have looked at all of it.
create function grants_by_tenant() returns trigger
    language plpgsql set search_path = public, pg_temp
    as $$
begin
    if current_user not in ('cloudlink_app', 'cloudlink_tenant') or (tg_op = 'UPDATE' and new.ends_at <= old.ends_at) then
        return new;
    end if;
    -- It has the rights of a tenant's transaction as well, being a member of that role.
    if current_user = 'cloudlink_app' then
        raise exception 'only a tenant lets somebody in' using errcode = 'insufficient_privilege';
    end if;
    if (select approvals_needed from tenants where id = new.tenant_id) is distinct from 1 then
        raise exception 'a second person of the tenant must approve'
            using errcode = 'check_violation', constraint = 'grants_approved';
    end if;
    if tg_op = 'INSERT' and (new.request_id is not null or new.policy_id is not null
                             or not is_person_of(new.created_by, new.tenant_id)) then
        raise exception 'a grant is given by one of its tenant''s people'
            using errcode = 'check_violation', constraint = 'grants_by_tenant';
    end if;
    return new;
end $$;

-- Whether this is somebody of the tenant, who may act.
create function is_person_of(p_person_id uuid, p_tenant_id uuid) returns boolean
    language sql stable
    as $$
    select exists (select from people p where p.id = p_person_id and p.active and p.role = 'tenant' and p.tenant_id = p_tenant_id)
$$;

create trigger grants_by_tenant before insert or update of ends_at on grants
    for each row execute function grants_by_tenant();

create function access_policies_by_tenant() returns trigger
    language plpgsql set search_path = public, pg_temp
    as $$
begin
    if current_user = 'cloudlink_app' then
        raise exception 'only a tenant makes policies' using errcode = 'insufficient_privilege';
    end if;
    if current_user = 'cloudlink_tenant' and not is_person_of(new.created_by, new.tenant_id) then
        raise exception 'a policy is made by one of its tenant''s people'
            using errcode = 'check_violation', constraint = 'access_policies_by_tenant';
    end if;
    return new;
end $$;
create trigger access_policies_by_tenant before insert on access_policies
    for each row execute function access_policies_by_tenant();

-- A policy that was taken back stays so.
create trigger revocation_is_final before update on access_policies
    for each row when (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)
    execute function revocation_is_final();

-- What was decided stays decided.
create function access_request_end_is_final() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'access request % is closed', old.id
        using errcode = 'check_violation', constraint = 'access_request_end_is_final';
end $$;
create trigger access_request_end_is_final before update on access_requests
    for each row when (old.outcome is not null) execute function access_request_end_is_final();

-- Whether the policy allows anything at all, where so many people must approve.
create function access_policy_in_force(p access_policies, approvals_needed integer) returns boolean
    language sql immutable
    as $$ select p.revoked_at is null and (approvals_needed < 2 or p.approved_by is not null) $$;

-- Whether all of the time from `p_from` to `p_until` lies in the policy's hours, on its days, by the clocks of its time zone. Each
-- moment counts by what those clocks show then: an hour that they skip is in no policy, one that they repeat is in twice.
create function access_policy_holds(p access_policies, p_from timestamptz, p_until timestamptz) returns boolean
    language plpgsql stable cost 10000 set search_path = public, pg_temp
    as $$
begin
    if p_until <= p_from then
        return false;
    end if;
    if p.from_minute = 0 and p.to_minute = 1440 then
        return not exists (
            select from generate_series((p_from at time zone p.time_zone)::date::timestamp,
                                        ((p_until - interval '1 microsecond') at time zone p.time_zone)::date::timestamp,
                                        interval '1 day') day
             where extract(isodow from day)::integer <> all (p.days));
    end if;
    -- Two days at most follow one another without a gap, where clocks skip the hours between them.
    if p_until - p_from > interval '50 hours' then
        return false;
    end if;
    -- Clocks change, and hours begin and end, at whole minutes: between two of them nothing can happen.
    return not exists (
        select from (select p_from as at
                     union all
                     select generate_series(date_trunc('minute', p_from, 'UTC') + interval '1 minute',
                                            p_until - interval '1 microsecond', interval '1 minute')) moment
         cross join lateral (select moment.at at time zone p.time_zone as shown) clock
         where extract(isodow from shown)::integer <> all (p.days)
            or extract(hour from shown) * 60 + extract(minute from shown) < p.from_minute
            or extract(hour from shown) * 60 + extract(minute from shown) >= p.to_minute);
exception
    -- A time zone that this database no longer knows.
    when invalid_parameter_value then return false;
end $$;

-- An operator asks. What one policy allows completely is approved at once; all else is open until the tenant's people answer.
-- Gives `open` or `approved`, or why nothing was made: `operator`, `devices` (one is unknown or revoked), `tenants` (they are of
-- several), `room` (too many that are open), `time` (over before it begins), `beyond_policy`.
create function access_request_create(
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
                          and not coalesce(d.id = any (p.device_ids), d.labels @> p.selector, true))
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

-- One of the tenant's people proposes a grant, or a later end of one, where a second person must approve it; the first approval
-- is the proposal. Gives `open`, or why nothing was made: `person`, `robot`, `grant_over`, `time`, `beyond_policy`.
create function access_request_propose(
    p_id uuid, p_person_id uuid, p_extends_id uuid, p_scopes text[], p_operator_ids uuid[], p_device_ids uuid[], p_selector jsonb,
    p_reason text, p_starts_at timestamptz, p_access_until timestamptz, p_access_for interval, p_answer_within interval
) returns text
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    v_grant grants;
    v_person people;
    v_tenant tenants;
    v_now timestamptz;
    v_start timestamptz;
    v_until timestamptz;
begin
    if p_extends_id is not null then
        select * into v_grant from grants where id = p_extends_id and tenant_id = current_tenant() for share;
        if not found then
            return 'grant_over';
        end if;
    end if;
    select * into v_person from people where id = p_person_id for share;
    if not is_person_of(p_person_id, current_tenant()) then
        return 'person';
    elsif v_person.kind <> 'human' then
        return 'robot';
    end if;
    select * into v_tenant from tenants where id = current_tenant() for share;
    v_now := clock_timestamp();
    v_start := coalesce(v_grant.starts_at, greatest(p_starts_at, v_now));
    v_until := coalesce(p_access_until, v_start + p_access_for);
    if p_extends_id is not null and (v_grant.revoked_at is not null or v_grant.ends_at <= v_now) then
        return 'grant_over';
    elsif v_until <= v_start or v_until <= v_now or v_until <= v_grant.ends_at then
        return 'time';
    elsif v_until - v_start > make_interval(secs => v_tenant.grant_max_seconds) then
        return 'beyond_policy';
    end if;
    insert into access_requests (id, tenant_id, requested_by, kind, extends_id, scopes, operator_ids, device_ids, selector, reason,
                                 starts_at, created_at, answer_by, access_until, approvals_needed)
    values (p_id, v_tenant.id, p_person_id, case when p_extends_id is null then 'grant' else 'extension' end, p_extends_id,
            coalesce(v_grant.scopes, p_scopes),
            case when p_extends_id is null then p_operator_ids else v_grant.operator_ids end,
            case when p_extends_id is null then p_device_ids else v_grant.device_ids end,
            case when p_extends_id is null then p_selector else v_grant.selector end,
            coalesce(p_reason, v_grant.reason), case when v_start > v_now then v_start end, v_now,
            least(v_now + p_answer_within, v_until, v_grant.ends_at), v_until, v_tenant.approvals_needed);
    insert into access_decisions (request_id, tenant_id, person_id, decision)
    values (p_id, v_tenant.id, p_person_id, 'approve');
    return 'open';
end $$;

-- One of the tenant's people answers. The grant is what everybody approves, and is made with the last approval that is needed, in
-- this statement; one denial ends the request. Gives `approved`, `recorded` (others must approve, too) or `denied`, `again` when
-- that person has given this answer to it before, or why it is none: `unknown`, `person`, `robot`, `wider`, `nothing_left`,
-- `operator_gone`, `grant_over`, or `is ` and the state that the request is in. Whoever calls it keeps none of it in the latter cases.
create function access_request_decide(
    p_request_id uuid, p_person_id uuid, p_decision text, p_scopes text[], p_device_ids uuid[], p_access_until timestamptz,
    p_comment text, p_grant_id uuid, p_statement text, p_signing_key_id uuid
) returns text
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    r access_requests;
    v_grant grants;
    v_person people;
    v_now timestamptz;
    v_state text;
    v_needed integer;
    v_given integer;
    v_scopes text[];
    v_devices uuid[];
    v_until timestamptz;
begin
    -- Everybody who answers, or takes it back, waits here for the one before.
    select * into r from access_requests where id = p_request_id and tenant_id = current_tenant() for no key update;
    if not found then
        return 'unknown';
    end if;
    if r.extends_id is not null then
        select * into v_grant from grants where id = r.extends_id for no key update;
    end if;
    -- Those who approve, and the operator, stay what they are until this is done.
    perform from people where id = any (array[p_person_id, r.requested_by] || array(
        select person_id from access_decisions where request_id = r.id)) order by id for share;
    select * into v_person from people where id = p_person_id;
    if not is_person_of(p_person_id, r.tenant_id) then
        return 'person';
    end if;
    select greatest(r.approvals_needed, approvals_needed) into v_needed from tenants where id = r.tenant_id for share;
    v_now := clock_timestamp();
    v_state := access_request_state(r, v_now);
    if v_state <> 'open' then
        return case when exists (select from access_decisions d
                                  where d.request_id = r.id and d.person_id = p_person_id and d.decision = p_decision
                                    and v_state = case p_decision when 'approve' then 'approved' else 'denied' end)
               then 'again' else 'is ' || v_state end;
    elsif v_needed > 1 and v_person.kind <> 'human' then
        return 'robot';
    elsif p_decision = 'approve' and (
           (p_scopes is not null and (r.kind = 'extension' or not p_scopes <@ r.scopes))
           or (p_device_ids is not null and (r.kind = 'extension' or not coalesce(p_device_ids <@ r.device_ids, false)))
           or p_access_until > r.access_until) then
        return 'wider';
    end if;
    insert into access_decisions (request_id, tenant_id, person_id, decision, scopes, device_ids, access_until, comment)
    values (r.id, r.tenant_id, p_person_id, p_decision, p_scopes, p_device_ids, p_access_until, p_comment)
    on conflict (request_id, person_id) do update
       set decision = excluded.decision, scopes = excluded.scopes, device_ids = excluded.device_ids,
           access_until = excluded.access_until, comment = excluded.comment, created_at = excluded.created_at;
    if p_decision = 'deny' then
        update access_requests set outcome = 'denied', closed_at = v_now, version = version + 1 where id = r.id;
        return 'denied';
    end if;

    -- What all of those who count approve.
    with counting as (
        select d.* from access_decisions d join people p on p.id = d.person_id
         where d.request_id = r.id and d.decision = 'approve' and is_person_of(p.id, r.tenant_id)
           and (v_needed = 1 or p.kind = 'human')
    )
    select (select count(*) from counting),
           (select least(r.access_until, min(access_until)) from counting),
           array(select scope from unnest(r.scopes) scope
                  where not exists (select from counting where scope <> all (scopes)) order by scope),
           array(select d.id from devices d
                  where d.id = any (r.device_ids) and d.tenant_id = r.tenant_id and d.state = 'active'
                    and not exists (select from counting where d.id <> all (device_ids)) order by d.id)
      into v_given, v_until, v_scopes, v_devices;
    if v_until <= greatest(v_now, r.starts_at, v_grant.ends_at) or v_scopes = '{}'
       or (r.kind <> 'extension' and r.device_ids is not null and v_devices = '{}') then
        return 'nothing_left';
    elsif r.kind = 'access' and not exists (
        select from people p where p.id = r.requested_by and p.active and p.role = 'operator') then
        return 'operator_gone';
    elsif r.kind = 'extension' and (v_grant.revoked_at is not null or v_grant.ends_at <= v_now) then
        return 'grant_over';
    end if;
    if v_given < v_needed then
        update access_requests set version = version + 1 where id = r.id;
        return 'recorded';
    end if;

    -- The one place where a request becomes a grant. A statement that the tenant has signed says the same as the row: whoever
    -- calls this compares them before it commits.
    if r.kind = 'extension' then
        update grants
           set ends_at = v_until, version = version + 1, statement = coalesce(p_statement, statement),
               signing_key_id = coalesce(p_signing_key_id, signing_key_id)
         where id = v_grant.id;
    else
        insert into grants (id, tenant_id, created_by, reason, scopes, operator_ids, device_ids, selector, starts_at, ends_at,
                            policy_max_seconds, request_id, statement, signing_key_id)
        values (p_grant_id, r.tenant_id, p_person_id, r.reason, v_scopes,
                case when r.kind = 'access' then array[r.requested_by] else r.operator_ids end,
                case when r.device_ids is not null then v_devices end, r.selector,
                greatest(v_now, r.starts_at), v_until, 0, r.id, p_statement, p_signing_key_id);
    end if;
    update access_requests
       set outcome = 'approved', closed_at = v_now, version = version + 1,
           grant_id = case when r.kind = 'extension' then v_grant.id else p_grant_id end
     where id = r.id;
    return 'approved';
end $$;

-- Whoever has asked takes it back. Gives `withdrawn`, `again`, `unknown`, or `is ` and the state that the
-- request is in.
create function access_request_withdraw(p_request_id uuid, p_person_id uuid) returns text
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    r access_requests;
    v_now timestamptz;
    v_state text;
begin
    select * into r from access_requests
     where id = p_request_id and requested_by = p_person_id and tenant_id = coalesce(current_tenant(), tenant_id)
       for no key update;
    if not found then
        return 'unknown';
    end if;
    v_now := clock_timestamp();
    v_state := access_request_state(r, v_now);
    if v_state <> 'open' then
        return case v_state when 'withdrawn' then 'again' else 'is ' || v_state end;
    end if;
    update access_requests set outcome = 'withdrawn', closed_at = v_now, version = version + 1 where id = r.id;
    return 'withdrawn';
end $$;

-- The second person, for a policy of a tenant in which two must approve. Gives `approved`, `again`, or why not: `unknown`,
-- `person`, `robot`, `own` (whoever made it), `revoked`.
create function access_policy_approve(p_policy_id uuid, p_person_id uuid) returns text
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    p access_policies;
begin
    select * into p from access_policies where id = p_policy_id and tenant_id = current_tenant() for no key update;
    if not found then
        return 'unknown';
    elsif not is_person_of(p_person_id, p.tenant_id) then
        return 'person';
    elsif p.revoked_at is not null then
        return 'revoked';
    elsif p.created_by = p_person_id then
        return 'own';
    elsif p.approved_by is not null then
        return 'again';
    elsif exists (select from people where id in (p_person_id, p.created_by) and kind <> 'human') then
        return 'robot';
    end if;
    update access_policies set approved_by = p_person_id, approved_at = clock_timestamp() where id = p.id;
    return 'approved';
end $$;

-- How many of the tenant's people must approve. More: at once, if there are so many. Fewer: one proposes it, another one agrees.
-- Gives `set`, `proposed`, or why not: `person`, `robot`, `too_few` (people who could approve).
create function tenant_set_approvals(p_person_id uuid, p_needed integer, p_agree_within interval) returns text
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    t tenants;
    v_now timestamptz;
begin
    select * into t from tenants where id = current_tenant() for no key update;
    v_now := clock_timestamp();
    if not is_person_of(p_person_id, t.id) then
        return 'person';
    elsif p_needed < t.approvals_needed then
        if (select kind from people where id = p_person_id) <> 'human' then
            return 'robot';
        elsif t.fewer_approvals_by is null or t.fewer_approvals_by = p_person_id or t.fewer_approvals_until <= v_now
              or not is_person_of(t.fewer_approvals_by, t.id) then
            update tenants set fewer_approvals_by = p_person_id, fewer_approvals_until = v_now + p_agree_within where id = t.id;
            return 'proposed';
        end if;
    elsif p_needed > t.approvals_needed and (
        select count(*) from people p where is_person_of(p.id, t.id) and p.kind = 'human') < p_needed then
        return 'too_few';
    end if;
    update tenants set approvals_needed = p_needed, fewer_approvals_by = null, fewer_approvals_until = null where id = t.id;
    return 'set';
end $$;

revoke execute on function access_request_create, access_request_propose, access_request_decide, access_request_withdraw,
    access_policy_approve, tenant_set_approvals from public;
grant execute on function access_request_create, access_request_withdraw to cloudlink_app;
grant execute on function access_request_propose, access_request_decide, access_request_withdraw, access_policy_approve,
    tenant_set_approvals to cloudlink_tenant;
