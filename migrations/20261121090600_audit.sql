-- The audit log: append-only, one hash chain a tenant. The only way to write is audit_append(), inside the transaction of
-- what it records; no role of the server may insert, update or delete.
--
-- hash(n) = SHA-256(hash(n-1) || entry(n) as UTF-8), hash(0) = 32 zero bytes. The entry is the JSON text as hashed, and
-- holds its own tenant, number and time: an export can be verified offline with SHA-256 alone.

create table audit_chains (
    -- The nil UUID is the platform's own chain: what concerns no single tenant.
    tenant_id uuid primary key,
    seq       bigint not null,
    hash      bytea not null
);

create table audit (
    tenant_id uuid not null references audit_chains,
    seq       bigint not null check (seq > 0),
    at        timestamptz not null,
    action    text not null,
    entry     text not null,
    hash      bytea not null check (octet_length(hash) = 32),
    primary key (tenant_id, seq)
);

-- actor: {"kind": "person" | "device" | "server", "id": ..., "name": ...}; subject: {"kind": ..., "id": ...}.
create function audit_append(p_tenant_id uuid, p_actor jsonb, p_action text, p_subject jsonb, p_details jsonb)
    returns bigint
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    chain audit_chains;
    at timestamptz := clock_timestamp();
    entry text;
begin
    insert into audit_chains values (p_tenant_id, 0, decode(repeat('00', 32), 'hex')) on conflict do nothing;
    -- Serialises the writers of one chain until they commit: call this last in a transaction.
    select * into chain from audit_chains where tenant_id = p_tenant_id for update;
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
revoke execute on function audit_append from public;

-- Nobody rewrites history, the owner of the tables included (short of dropping the trigger, which the chain then shows).
create function audit_is_append_only() returns trigger
    language plpgsql
    as $$
begin
    raise exception 'the audit log is append-only' using errcode = 'insufficient_privilege';
end $$;
create trigger audit_is_append_only before update or delete on audit
    for each row execute function audit_is_append_only();
create trigger audit_is_never_emptied before truncate on audit
    for each statement execute function audit_is_append_only();
