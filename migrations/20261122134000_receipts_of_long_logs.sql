-- A receipt looks for all that is about its grant, and holds the tenant's audit log meanwhile: whoever writes there waits. It must
-- not read years of it for the sake of an hour.
create index audit_tenant_at on audit (tenant_id, at);
create index openings_grant on openings (grant_id);
