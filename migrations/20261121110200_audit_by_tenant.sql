-- A transaction on behalf of a tenant writes into that tenant's chain only.
create or replace function audit_append(p_tenant_id uuid, p_actor jsonb, p_action text, p_subject jsonb, p_details jsonb)
    returns bigint
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    chain audit_chains;
    at timestamptz;
    entry text;
begin
    -- The role, too: one that was taken without its tenant writes nowhere.
    if current_tenant() is distinct from p_tenant_id
       and (current_tenant() is not null or current_setting('role') = 'cloudlink_tenant') then
        raise exception 'tenant % cannot write into the audit log of %', current_tenant(), p_tenant_id
            using errcode = 'insufficient_privilege';
    end if;
    insert into audit_chains values (p_tenant_id, 0, decode(repeat('00', 32), 'hex')) on conflict do nothing;
    -- Serialises the writers of one chain until they commit: call this last in a transaction.
    select * into chain from audit_chains where tenant_id = p_tenant_id for update;
    -- Read after the wait for the lock, so that times do not run backwards along the chain.
    at := clock_timestamp();
    chain.seq := chain.seq + 1;
    entry := jsonb_build_object(
        'version', 1, 'tenant', p_tenant_id, 'seq', chain.seq,
        'at', to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'actor', p_actor, 'action', p_action, 'subject', p_subject, 'details', p_details)::text;
    chain.hash := sha256(chain.hash || convert_to(entry, 'UTF8'));
    insert into audit values (p_tenant_id, chain.seq, at, p_action, entry, chain.hash);
    update audit_chains set seq = chain.seq, hash = chain.hash where tenant_id = p_tenant_id;
    return chain.seq;
end $$;
