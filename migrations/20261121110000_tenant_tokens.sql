-- A tenant's users make, see and revoke API tokens of their own. Which person may do so is checked by the server; that nobody
-- reaches beyond the tenant, here as well. A hash once written is for nobody of a tenant to read.
grant select (id, person_id, name, created_at, expires_at, revoked_at, last_used_at),
      insert (id, person_id, name, secret_hash, expires_at),
      update (revoked_at)
   on api_tokens to cloudlink_tenant;
create policy tenant on api_tokens to cloudlink_tenant
    using (exists (select from people p where p.id = person_id and p.tenant_id = current_tenant()))
    with check (exists (select from people p where p.id = person_id and p.tenant_id = current_tenant()));
