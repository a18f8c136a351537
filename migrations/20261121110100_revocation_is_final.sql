-- What was revoked stays revoked, whatever a query of the server does: by a trigger, since the rights alone cannot tell a
-- revocation from its reversal.
create function revocation_is_final() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'what was revoked stays revoked' using errcode = 'check_violation', constraint = 'revocation_is_final';
end $$;

create trigger revocation_is_final before update on grants
    for each row when (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)
    execute function revocation_is_final();
create trigger revocation_is_final before update on devices
    for each row when (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)
    execute function revocation_is_final();
create trigger revocation_is_final before update on certificates
    for each row when (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)
    execute function revocation_is_final();
create trigger revocation_is_final before update on api_tokens
    for each row when (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)
    execute function revocation_is_final();

-- On behalf of a tenant, of a grant only its end changes, and of an enrollment token nothing.
revoke update on grants, enrollment_tokens from cloudlink_tenant;
grant update (ends_at, revoked_at, revoked_by, version) on grants to cloudlink_tenant;
