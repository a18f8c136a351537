-- What the two roles may do, and which rows they see. Whoever adds a table adds its lines here, in a migration of its own;
-- a test compares the catalogue with the rule that every table with a tenant has row-level security.

grant usage on schema public to cloudlink_app, cloudlink_tenant;

grant select, insert, update on tenants, people, api_tokens, devices, certificates, enrollment_tokens, links, grants to cloudlink_app;
grant select, insert, update, delete on device_metrics, device_boots to cloudlink_app;
grant select, update on commands to cloudlink_app;
grant select on audit, audit_chains to cloudlink_app;
grant execute on function command_create, audit_append to cloudlink_app;

grant select on tenants, people, devices, certificates, enrollment_tokens, device_metrics, links, device_boots, grants, commands, audit
    to cloudlink_tenant;
grant insert, update on enrollment_tokens, grants to cloudlink_tenant;
grant update (name, labels, state, revoked_at, version) on devices to cloudlink_tenant;
grant update (state, revoked_at) on certificates to cloudlink_tenant;
grant update (state, deadline_at, finished_at, code, message) on commands to cloudlink_tenant;
grant execute on function audit_append to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['devices', 'certificates', 'enrollment_tokens', 'device_metrics', 'links', 'device_boots',
                             'grants', 'commands', 'audit', 'people'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;

alter table tenants enable row level security;
create policy app on tenants to cloudlink_app using (true) with check (true);
create policy tenant on tenants to cloudlink_tenant using (id = current_tenant());

-- A tenant names operators in its grants, so it sees who they are.
create policy operators on people for select to cloudlink_tenant using (role = 'operator');

alter table api_tokens enable row level security;
create policy app on api_tokens to cloudlink_app using (true) with check (true);
