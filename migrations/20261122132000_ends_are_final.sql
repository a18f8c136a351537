-- What has ended, and was told to have ended, stays so: also when the database's clock is put back behind the end. Until now a request that
-- had been told to be expired could be approved then, and operators were let in once more under a grant whose end the tenant had been
-- told of, or even had a receipt for.

create or replace function access_request_state(r access_requests, at timestamptz) returns text
    language sql immutable
    as $$
    select coalesce(r.outcome, case
        when r.expiry_told_at is not null or least(r.answer_by, r.access_until) <= at then 'expired'
        else 'open'
    end)
$$;

create or replace function grant_in_force(g grants, at timestamptz) returns boolean
    language sql immutable
    as $$
    select g.revoked_at is null and g.end_told_at is null and g.receipted_at is null and g.starts_at <= at and at < g.ends_at
$$;

create or replace function grant_state(g grants, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'revoked'
        when g.end_told_at is not null or g.receipted_at is not null then 'ended'
        when at < g.starts_at then 'scheduled'
        when at < g.ends_at then 'in_force'
        else 'ended'
    end
$$;

-- Nor is such an end moved, whoever tries.
create function grant_end_is_final() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'grant % has ended', old.id using errcode = 'check_violation', constraint = 'grant_end_is_final';
end $$;
create trigger grant_end_is_final before update of ends_at on grants
    for each row when ((old.end_told_at is not null or old.receipted_at is not null) and new.ends_at is distinct from old.ends_at)
    execute function grant_end_is_final();

-- As before, but for what is said of a grant that is over.
create or replace function access_request_propose(
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
    if p_extends_id is not null and grant_state(v_grant, v_now) in ('revoked', 'ended') then
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

create or replace function access_request_decide(
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
    elsif r.kind = 'extension' and grant_state(v_grant, v_now) in ('revoked', 'ended') then
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
