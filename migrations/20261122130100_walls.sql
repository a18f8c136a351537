-- What a tenant sees of people, and in whose name something is made that lets somebody or something in.

-- Of operators a tenant sees who they are: not where they are mailed to, nor who they are at the OpenID provider. And it sees
-- nobody at all in a transaction that has forgotten which tenant it is for.
revoke select on people from cloudlink_tenant;
grant select (id, name, role, tenant_id, kind, active, created_at) on people to cloudlink_tenant;
drop policy operators on people;
create policy operators on people for select to cloudlink_tenant using (role = 'operator' and current_tenant() is not null);

-- The rest of somebody: for its own tenant, and for the server itself. Otherwise nothing.
create function person_private(p_person_id uuid, out email text, out signed_in_at timestamptz, out signs_in boolean)
    language sql stable security definer set search_path = public, pg_temp
    as $$
    select p.email, p.signed_in_at, p.issuer is not null from people p
     where p.id = p_person_id
       and (p.tenant_id = current_tenant() or (current_tenant() is null and current_setting('role') <> 'cloudlink_tenant'))
$$;
revoke execute on function person_private from public;
grant execute on function person_private to cloudlink_app, cloudlink_tenant;

-- The server's own role has nothing of the tenants' role any more, and needs no exception.
drop policy tenant_makes_services on people;
create policy tenant_makes_services on people as restrictive for insert to cloudlink_tenant with check (kind = 'service');

-- Asks of the people that there are, and of no temporary table of that name.
alter function is_person_of set search_path = public, pg_temp;

-- In a tenant's transaction, what lets somebody in, or is told to somebody, is made in the name of one of its own people. The server
-- itself makes enrollment tokens in the name of administrators only, and webhooks of the vendor's own.
create policy in_the_name_of_its_people on signing_keys as restrictive for insert to cloudlink_tenant
    with check (is_person_of(created_by, tenant_id));
create policy in_the_name_of_its_people on enrollment_tokens as restrictive for insert to cloudlink_tenant
    with check (is_person_of(created_by, tenant_id));
create policy in_the_name_of_administrators on enrollment_tokens as restrictive for insert to cloudlink_app
    with check (exists (select from people p where p.id = created_by and p.active and p.role = 'admin'));
create policy in_the_name_of_its_people on webhooks as restrictive for insert to cloudlink_tenant
    with check (is_person_of(created_by, tenant_id));
create policy the_vendors_own on webhooks as restrictive for insert to cloudlink_app with check (tenant_id is null);
-- A token that was used is used, and is for whom it was made.
revoke update on enrollment_tokens from cloudlink_app;
grant update (used_at, device_id) on enrollment_tokens to cloudlink_app;
