-- How a tenant lets operators in: somebody asks, the tenant's people decide, and a grant comes of it. Or the tenant has said
-- before what it allows without being asked.

-- How many different people of the tenant must approve a request.
alter table tenants add column approvals_needed integer not null default 1 check (approvals_needed between 1 and 2);
-- Whether every grant of this tenant must be signed with a key that the tenant has enrolled.
alter table tenants add column signed_grants boolean not null default false;
-- How long recordings of its support sessions are kept.
alter table tenants add column recording_keep_days integer not null default 365 check (recording_keep_days between 1 and 3650);

-- The keys with which a tenant's own tools sign grants. The private half is never here.
create table signing_keys (
    id         uuid primary key,
    tenant_id  uuid not null references tenants,
    -- What it is called.
    name       text not null check (char_length(name) between 1 and 128),
    algorithm  text not null check (algorithm in ('ed25519', 'p256')),
    -- SubjectPublicKeyInfo, DER.
    public_key bytea not null unique check (octet_length(public_key) between 32 and 512),
    created_by uuid not null references people,
    created_at timestamptz not null default clock_timestamp(),
    revoked_at timestamptz
);
create index signing_keys_tenant on signing_keys (tenant_id);

create table access_requests (
    id           uuid primary key,
    tenant_id    uuid not null references tenants,
    -- The operator who asks, and for whom the grant will be.
    requested_by uuid not null references people,
    scopes       text[] not null check (cardinality(scopes) > 0 and array_position(scopes, null) is null),
    device_ids   uuid[] not null check (cardinality(device_ids) between 1 and 1000),
    reason       text not null check (char_length(reason) between 1 and 1024),
    -- Number or address of the ticket that it is about.
    ticket       text check (char_length(ticket) between 1 and 256),
    created_at   timestamptz not null default clock_timestamp(),
    -- Nobody can answer after that.
    answer_by    timestamptz not null,
    -- Until when access is asked for.
    access_until timestamptz not null,
    -- As of its tenant's policy when it was made.
    approvals_needed integer not null check (approvals_needed between 1 and 2),
    -- Null: open, or over because `answer_by` has passed.
    outcome      text check (outcome in ('approved', 'denied', 'withdrawn')),
    closed_at    timestamptz,
    -- What came of it.
    grant_id     uuid,
    version      bigint not null default 1,
    check ((outcome is null) = (closed_at is null)),
    check ((outcome is not distinct from 'approved') = (grant_id is not null)),
    check (answer_by > created_at and access_until > created_at)
);
create index access_requests_tenant on access_requests (tenant_id, created_at desc, id desc);
create index access_requests_operator on access_requests (requested_by, created_at desc, id desc);
create index access_requests_open on access_requests (answer_by) where outcome is null;

-- What a request is at `at`, in the words of the API. The one place that says so.
create function access_request_state(r access_requests, at timestamptz) returns text
    language sql immutable
    as $$ select coalesce(r.outcome, case when least(r.answer_by, r.access_until) <= at then 'expired' else 'open' end) $$;

-- Each person's answer. An approval may give less than was asked for; the grant is what all of them approve.
create table access_decisions (
    request_id   uuid not null references access_requests,
    tenant_id    uuid not null references tenants,
    person_id    uuid not null references people,
    decision     text not null check (decision in ('approve', 'deny')),
    scopes       text[] check (cardinality(scopes) > 0),
    device_ids   uuid[] check (cardinality(device_ids) > 0),
    access_until timestamptz,
    comment      text check (char_length(comment) between 1 and 1024),
    created_at   timestamptz not null default clock_timestamp(),
    primary key (request_id, person_id)
);

-- What a tenant allows without being asked each time: scopes, at which hours, for how long at most.
create table access_policies (
    id          uuid primary key,
    tenant_id   uuid not null references tenants,
    name        text not null check (char_length(name) between 1 and 128),
    scopes      text[] not null check (cardinality(scopes) > 0),
    -- Null: all of the tenant's devices.
    device_ids  uuid[] check (cardinality(device_ids) between 1 and 1000),
    selector    jsonb check (jsonb_typeof(selector) = 'object' and selector <> '{}'),
    -- Null: every operator.
    operator_ids uuid[] check (cardinality(operator_ids) > 0),
    -- Days of the week on which it holds: 1 is Monday (ISO 8601).
    days        integer[] not null check (cardinality(days) between 1 and 7 and days <@ array[1, 2, 3, 4, 5, 6, 7]),
    -- From and until which minute of the day, in `time_zone`. The whole day: 0 and 1440. An hour that does not exist on a day is none.
    from_minute integer not null check (from_minute between 0 and 1439),
    to_minute   integer not null check (to_minute between 1 and 1440),
    time_zone   text not null,
    -- The longest access under it.
    max_seconds integer not null check (max_seconds between 60 and 31622400),
    created_by  uuid not null references people,
    created_at  timestamptz not null default clock_timestamp(),
    revoked_at  timestamptz,
    check (device_ids is null or selector is null),
    check (from_minute < to_minute)
);
create index access_policies_tenant on access_policies (tenant_id);

-- Where a grant came from, and the tenant's own signature.
alter table grants add column request_id uuid references access_requests;
alter table grants add column policy_id uuid references access_policies;
-- The grant as the tenant's tool signed it (JWS, compact); its content says the same as the row.
alter table grants add column statement text check (octet_length(statement) <= 65536);
alter table grants add column signing_key_id uuid references signing_keys;
alter table grants add check ((statement is null) = (signing_key_id is null));
alter table access_requests add foreign key (grant_id) references grants deferrable initially deferred;

grant select, insert, update on signing_keys, access_requests, access_decisions, access_policies to cloudlink_app;
grant select on signing_keys, access_requests, access_decisions, access_policies to cloudlink_tenant;
grant insert on signing_keys, access_decisions, access_policies to cloudlink_tenant;
grant update (revoked_at) on signing_keys, access_policies to cloudlink_tenant;
grant update (outcome, closed_at, grant_id, version) on access_requests to cloudlink_tenant;
grant update (approvals_needed, signed_grants, recording_keep_days) on tenants to cloudlink_tenant;

do $$
declare
    t text;
begin
    foreach t in array array['signing_keys', 'access_requests', 'access_decisions', 'access_policies'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy app on %I to cloudlink_app using (true) with check (true)', t);
        execute format('create policy tenant on %I to cloudlink_tenant
                            using (tenant_id = current_tenant()) with check (tenant_id = current_tenant())', t);
    end loop;
end $$;
