-- What no device is to have any more is let go of once a statement, and not once a device: each look for another device that still is to have
-- it went past all those that this transaction had changed already, so that a change for a tenant's whole fleet took the square of its size.

create or replace function configuration_content_forget() returns trigger
    language plpgsql security definer set search_path = public, pg_temp
    as $$
begin
    delete from configuration_contents c
     using (select distinct o.tenant_id, o.sha256 from changed_from o join changed_to n using (device_id)
             where o.sha256 is distinct from n.sha256) gone
     where c.tenant_id = gone.tenant_id and c.sha256 = gone.sha256
       and not exists (select from device_configurations f where f.tenant_id = c.tenant_id and f.sha256 = c.sha256);
    return null;
end $$;

create or replace trigger configuration_content_forget after update on device_configurations
    referencing old table as changed_from new table as changed_to
    for each statement execute function configuration_content_forget();
