-- What people outside are told: an outbox. Written in the transaction of what happened, sent afterwards, at least once.

alter table people add column email text check (char_length(email) between 3 and 254);

create table webhooks (
    id              uuid primary key,
    -- Null: the vendor's own, which hears of all tenants.
    tenant_id       uuid references tenants,
    url             text not null check (char_length(url) between 8 and 2048),
    -- Which events; never empty.
    events          text[] not null check (cardinality(events) > 0),
    -- The secret for signatures, encrypted (AES-256-GCM), and never shown again.
    secret_sealed   bytea not null check (octet_length(secret_sealed) between 32 and 512),
    -- The one before it, which signs as well until then: receivers have that long to learn the new one.
    previous_sealed bytea check (octet_length(previous_sealed) between 32 and 512),
    previous_until  timestamptz,
    created_by      uuid not null references people,
    created_at      timestamptz not null default clock_timestamp(),
    -- Nothing more is sent to it.
    disabled_at     timestamptz,
    -- Since when nothing has worked, null while it does.
    failing_since   timestamptz,
    check ((previous_sealed is null) = (previous_until is null))
);
create index webhooks_tenant on webhooks (tenant_id);

-- One row an event and receiver.
create table notices (
    id           uuid primary key,
    -- The tenant that it is about. Null: about no tenant, a trial of the vendor's own webhook.
    tenant_id    uuid references tenants,
    event        text not null,
    -- What is sent; the same for all receivers.
    body         jsonb not null,
    webhook_id   uuid references webhooks,
    -- Or else the person to whom it is mailed.
    person_id    uuid references people,
    created_at   timestamptz not null default clock_timestamp(),
    attempts     integer not null default 0,
    -- When it may be tried next.
    next_at      timestamptz not null default clock_timestamp(),
    -- Until then somebody is trying it, and nobody else does.
    leased_until timestamptz,
    delivered_at timestamptz,
    -- Given up.
    failed_at    timestamptz,
    -- What the last attempt came to, in a word or a status code.
    last_result  text check (char_length(last_result) <= 256),
    check ((webhook_id is null) <> (person_id is null)),
    check (delivered_at is null or failed_at is null)
);
create index notices_due on notices (next_at) where delivered_at is null and failed_at is null;
create index notices_waiting on notices (webhook_id) where delivered_at is null and failed_at is null;
create index notices_tenant on notices (tenant_id, created_at desc);
create index notices_webhook on notices (webhook_id, created_at desc, id desc);
create index notices_created on notices (created_at);

-- Tells all receivers of an event that want it, in the transaction of what happened; on behalf of a tenant as well, which neither
-- sees the vendor's webhooks nor writes for them. Says how many there are. `p_data`: what it is about, as the API shows it.
-- `p_to_tenant`: mail goes to the tenant's people, and otherwise, or besides, to `p_person_ids`. No mail is written for
-- where there is no mail server: the setting `cloudlink.mail` of the connection says so.
create function notice_emit(p_tenant_id uuid, p_event text, p_data jsonb, p_to_tenant boolean, p_person_ids uuid[]) returns bigint
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    body jsonb;
    emitted bigint;
begin
    if current_tenant() is distinct from p_tenant_id
       and (current_tenant() is not null or current_setting('role') = 'cloudlink_tenant') then
        raise exception 'tenant % cannot tell of %', current_tenant(), p_tenant_id using errcode = 'insufficient_privilege';
    end if;
    body := jsonb_build_object(
        'type', p_event, 'timestamp', to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'tenant_id', p_tenant_id, 'data', p_data);
    insert into notices (id, tenant_id, event, body, webhook_id, person_id)
    select gen_random_uuid(), p_tenant_id, p_event, body, w.id, null
      from webhooks w
     where w.disabled_at is null and p_event = any (w.events) and (w.tenant_id = p_tenant_id or w.tenant_id is null)
    union all
    select gen_random_uuid(), p_tenant_id, p_event, body, null, p.id
      from people p
     where p.active and p.email is not null and coalesce(current_setting('cloudlink.mail', true), '') = 'on'
       and ((p_to_tenant and p.tenant_id = p_tenant_id)
            -- Of other tenants nobody, whatever the list says.
            or (p.id = any (p_person_ids) and (p.tenant_id is null or p.tenant_id = p_tenant_id)));
    get diagnostics emitted = row_count;
    return emitted;
end $$;
revoke execute on function notice_emit from public;

-- Gives a webhook of the caller's another secret. The old one signs as well for `p_keep`.
create function webhook_rotate(p_id uuid, p_sealed bytea, p_keep interval) returns boolean
    language sql security definer set search_path = public, pg_temp
    as $$
    update webhooks
       set previous_sealed = secret_sealed, previous_until = clock_timestamp() + p_keep, secret_sealed = p_sealed
     where id = p_id and disabled_at is null
       and (tenant_id = current_tenant() or (current_tenant() is null and current_setting('role') <> 'cloudlink_tenant'))
    returning true
$$;
revoke execute on function webhook_rotate from public;

-- Says where somebody is mailed to. A tenant changes nothing else of its people; which of them may do so is checked by the server.
create function email_set(p_person_id uuid, p_email text) returns boolean
    language sql security definer set search_path = public, pg_temp
    as $$
    update people set email = p_email
     where id = p_person_id
       and (tenant_id = current_tenant() or (current_tenant() is null and current_setting('role') <> 'cloudlink_tenant'))
    returning true
$$;
revoke execute on function email_set from public;

grant execute on function notice_emit, webhook_rotate, email_set to cloudlink_app, cloudlink_tenant;
grant select, insert, update on webhooks to cloudlink_app;
grant select, insert, update, delete on notices to cloudlink_app;
grant select (id, tenant_id, url, events, previous_until, created_by, created_at, disabled_at, failing_since),
      insert (id, tenant_id, url, events, secret_sealed, created_by), update (disabled_at) on webhooks to cloudlink_tenant;
-- To try one of its webhooks, and to give up what waits for one that it has disabled.
grant select, insert (id, tenant_id, event, body, webhook_id), update (failed_at, last_result) on notices to cloudlink_tenant;

alter table webhooks enable row level security;
create policy app on webhooks to cloudlink_app using (true) with check (true);
create policy tenant on webhooks to cloudlink_tenant
    using (tenant_id = current_tenant()) with check (tenant_id = current_tenant());

alter table notices enable row level security;
create policy app on notices to cloudlink_app using (true) with check (true);
-- What is sent about it to others is not the tenant's to see: the subqueries are under row-level security themselves.
create policy tenant on notices to cloudlink_tenant
    using (tenant_id = current_tenant()
           and (exists (select from webhooks w where w.id = webhook_id)
                or exists (select from people p where p.id = person_id and p.tenant_id = current_tenant())))
    with check (tenant_id = current_tenant() and exists (select from webhooks w where w.id = webhook_id));
