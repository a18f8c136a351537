-- What people outside are told: an outbox. Written in the transaction of what happened, sent afterwards, at least once.

alter table people add column email text check (char_length(email) between 3 and 254);

create table webhooks (
    id            uuid primary key,
    -- The nil UUID's absence: null is the vendor's own, which hears of all tenants.
    tenant_id     uuid references tenants,
    url           text not null check (char_length(url) between 8 and 2048),
    -- Which events; never empty.
    events        text[] not null check (cardinality(events) > 0),
    -- The secret for signatures, encrypted (AES-256-GCM), and never shown again.
    secret_sealed bytea not null check (octet_length(secret_sealed) between 32 and 512),
    created_by    uuid not null references people,
    created_at    timestamptz not null default clock_timestamp(),
    -- Nothing more is sent to it.
    disabled_at   timestamptz,
    -- Since when nothing has worked, null while it does.
    failing_since timestamptz
);
create index webhooks_tenant on webhooks (tenant_id);

-- One row an event and receiver.
create table notices (
    id           uuid primary key,
    -- The tenant that it is about.
    tenant_id    uuid not null references tenants,
    event        text not null,
    -- What is sent; the same for all receivers.
    body         jsonb not null,
    webhook_id   uuid references webhooks,
    -- Or else the person to whom it is mailed.
    person_id    uuid references people,
    created_at   timestamptz not null default clock_timestamp(),
    attempts     integer not null default 0,
    next_at      timestamptz not null default clock_timestamp(),
    delivered_at timestamptz,
    -- Given up.
    failed_at    timestamptz,
    -- What the last attempt came to, in a word or a status code.
    last_result  text check (char_length(last_result) <= 256),
    check ((webhook_id is null) <> (person_id is null))
);
create index notices_due on notices (next_at) where delivered_at is null and failed_at is null;
create index notices_tenant on notices (tenant_id, created_at desc);
create index notices_webhook on notices (webhook_id, created_at desc);

grant select, insert, update on webhooks to cloudlink_app;
grant select, insert, update, delete on notices to cloudlink_app;
grant select (id, tenant_id, url, events, created_by, created_at, disabled_at, failing_since),
      insert (id, tenant_id, url, events, secret_sealed, created_by), update (disabled_at) on webhooks to cloudlink_tenant;
grant select, insert on notices to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['webhooks', 'notices'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;
