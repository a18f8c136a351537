-- The two roles that the server acts as. Neither can log in: the login of `database.url` is a member of cloudlink_app,
-- and the server takes that role on each connection, so that a login with more rights is confined as well.
--
-- cloudlink_app     the server itself: devices, operators, reconcilers. Sees every tenant.
-- cloudlink_tenant  taken for one transaction on behalf of a tenant's user, together with the setting
--                   `cloudlink.tenant`. Row-level security then shows that tenant's rows only; without the setting, none.
--
-- Roles belong to the whole cluster, so two databases may be migrated at once: losing that race is not an error.
do $$
begin
    if not exists (select from pg_roles where rolname = 'cloudlink_app') then
        create role cloudlink_app nologin;
    end if;
exception when duplicate_object or unique_violation then null;
end $$;

do $$
begin
    if not exists (select from pg_roles where rolname = 'cloudlink_tenant') then
        create role cloudlink_tenant nologin;
    end if;
exception when duplicate_object or unique_violation then null;
end $$;

do $$
begin
    if not pg_has_role('cloudlink_app', 'cloudlink_tenant', 'member') then
        grant cloudlink_tenant to cloudlink_app;
    end if;
exception when duplicate_object or unique_violation or internal_error then null;
end $$;

-- The tenant on whose behalf the transaction runs; null outside of such a transaction.
create function current_tenant() returns uuid
    language sql stable parallel safe
    as $$ select nullif(current_setting('cloudlink.tenant', true), '')::uuid $$;
