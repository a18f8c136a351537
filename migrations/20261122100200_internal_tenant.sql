-- The tenant of the devices with which nodes prove their isolation has no people, and nobody enrolls into it, permits anything of
-- it, or is told that it is there: as far as anybody can say, there is no such tenant.
create function internal_tenant_refuse() returns trigger
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    if exists (select from tenants where id = new.tenant_id and internal) then
        raise exception 'there is no such tenant'
            using errcode = 'foreign_key_violation', constraint = tg_table_name || '_tenant_id_fkey';
    end if;
    return new;
end $$;

create trigger internal_tenant_refuse before insert or update of tenant_id on people
    for each row execute function internal_tenant_refuse();
create trigger internal_tenant_refuse before insert or update of tenant_id on enrollment_tokens
    for each row execute function internal_tenant_refuse();
create trigger internal_tenant_refuse before insert or update of tenant_id on grants
    for each row execute function internal_tenant_refuse();
