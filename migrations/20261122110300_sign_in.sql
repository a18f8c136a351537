-- How people sign in: with an OpenID provider, as browsers and from the command line. Robots have accounts of their own.

-- A service account never signs in: it has tokens that somebody made for it.
alter table people add column kind text not null default 'human' check (kind in ('human', 'service'));
-- Who it is at the OpenID provider.
alter table people add column issuer text check (char_length(issuer) between 1 and 2048);
alter table people add column subject text check (char_length(subject) between 1 and 255);
alter table people add constraint people_identity unique (issuer, subject);
alter table people add check ((issuer is null) = (subject is null));
-- A service account has no identity there.
alter table people add check (kind = 'human' or issuer is null);
alter table people add column signed_in_at timestamptz;
-- Not active because of the groups that the provider named at the last sign-in: the next one may let it in again.
alter table people add column shut_out_by_groups boolean not null default false;
alter table people add check (not (active and shut_out_by_groups));

-- Names are unique among the vendor's people, and among those of each tenant: that a name is taken tells nothing about others.
alter table people drop constraint people_name_key;
create unique index people_name_key on people (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'), name);

-- A tenant makes service accounts for itself and shuts them out, and no people.
grant insert (id, name, role, tenant_id, kind), update (active, shut_out_by_groups) on people to cloudlink_tenant;
-- The server's own role is a member of the tenants' role: this holds for it as well.
create policy tenant_makes_services on people as restrictive for insert to cloudlink_tenant
    with check (current_tenant() is null or kind = 'service');
create function tenant_shuts_out_services_only() returns trigger
    language plpgsql
    as $$
begin
    if current_tenant() is not null and old.kind <> 'service' then
        raise exception 'tenant % cannot let people in or shut them out', current_tenant()
            using errcode = 'insufficient_privilege';
    end if;
    return new;
end $$;
create trigger tenant_shuts_out_services_only before update on people for each row
    when (new.active is distinct from old.active or new.shut_out_by_groups is distinct from old.shut_out_by_groups)
    execute function tenant_shuts_out_services_only();

-- Null: all that the person may do. Otherwise only routes of these scopes of the API.
alter table api_tokens add column scopes text[] check (cardinality(scopes) > 0);
-- api: made by hand; session: by a sign-in from the command line; browser: by a sign-in of a browser, in a cookie; bootstrap: works once.
alter table api_tokens add column kind text not null default 'api' check (kind in ('api', 'session', 'browser', 'bootstrap'));
alter table api_tokens add column used_up_at timestamptz;
grant select (scopes, kind, used_up_at), insert (scopes) on api_tokens to cloudlink_tenant;

-- Sign-ins that are under way in browsers.
create table sign_ins (
    -- SHA-256 of the `state` that the browser carries.
    state_hash bytea primary key check (octet_length(state_hash) = 32),
    nonce      text not null,
    -- PKCE (RFC 7636).
    verifier   text not null,
    -- Where to go afterwards: a path of ours.
    return_to  text not null check (return_to ~ '^/[^/\\]' or return_to = '/'),
    created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);
create index sign_ins_expires on sign_ins (expires_at);

-- ID tokens that were traded for a token of ours: each is good for one. Forgotten when they have expired.
create table spent_id_tokens (
    -- SHA-256 of its text.
    token_hash bytea primary key check (octet_length(token_hash) = 32),
    expires_at timestamptz not null
);
create index spent_id_tokens_expires on spent_id_tokens (expires_at);

-- Sign-ins that failed, by what they are counted by: a person, or an address.
create table sign_in_failures (
    key          text primary key check (char_length(key) between 1 and 256),
    failures     integer not null default 0,
    first_at     timestamptz not null default clock_timestamp(),
    locked_until timestamptz
);

grant select, insert, update, delete on sign_ins, spent_id_tokens, sign_in_failures to cloudlink_app;
alter table sign_ins enable row level security;
create policy app on sign_ins to cloudlink_app using (true) with check (true);
alter table sign_in_failures enable row level security;
create policy app on sign_in_failures to cloudlink_app using (true) with check (true);
alter table spent_id_tokens enable row level security;
create policy app on spent_id_tokens to cloudlink_app using (true) with check (true);
