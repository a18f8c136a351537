-- Grants that a tenant signs itself (docs/SIGNED-GRANTS.md). Devices check the signatures; what is here keeps an honest server from
-- making what they would refuse.

-- Where a tenant wants its grants signed, none is made without a statement, and none is extended without a new one.
create function grants_signed() returns trigger
    language plpgsql set search_path = public, pg_temp
    as $$
begin
    if tg_op = 'UPDATE' and new.ends_at <= old.ends_at then
        return new;
    end if;
    if (select signed_grants from tenants where id = new.tenant_id)
       and (new.statement is null or tg_op = 'UPDATE' and new.statement is not distinct from old.statement) then
        raise exception 'grants of this tenant must be signed'
            using errcode = 'check_violation', constraint = 'grants_signed';
    end if;
    return new;
end $$;
create trigger grants_signed before insert or update of ends_at on grants
    for each row execute function grants_signed();

-- A key that was revoked stays so.
create trigger revocation_is_final before update on signing_keys
    for each row when (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)
    execute function revocation_is_final();

-- Without a key nobody could let anybody in any more.
create function signed_grants_need_a_key() returns trigger
    language plpgsql set search_path = public, pg_temp
    as $$
begin
    -- One after the other, for a tenant.
    perform from tenants where id = coalesce(to_jsonb(new) ->> 'tenant_id', to_jsonb(new) ->> 'id')::uuid for no key update;
    if exists (select from tenants t
                where t.id = coalesce(to_jsonb(new) ->> 'tenant_id', to_jsonb(new) ->> 'id')::uuid and t.signed_grants
                  and not exists (select from signing_keys k where k.tenant_id = t.id and k.revoked_at is null)) then
        raise exception 'signed grants need a key'
            using errcode = 'check_violation', constraint = 'signed_grants_need_a_key';
    end if;
    return null;
end $$;
create trigger signed_grants_need_a_key after update of revoked_at on signing_keys
    for each row execute function signed_grants_need_a_key();
create trigger signed_grants_need_a_key after update of signed_grants on tenants
    for each row when (new.signed_grants) execute function signed_grants_need_a_key();

-- A later statement takes the place of an earlier one.
grant update (statement, signing_key_id) on grants to cloudlink_tenant;
-- Who signs, and whether it must be, is the tenant's own affair.
revoke insert, update on signing_keys from cloudlink_app;
