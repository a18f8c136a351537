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

-- Null: all that the person may do. Otherwise only routes of these scopes of the API.
alter table api_tokens add column scopes text[] check (cardinality(scopes) > 0);
-- api: made by hand; session: by a sign-in from the command line; browser: by a sign-in of a browser, in a cookie; bootstrap: works once.
alter table api_tokens add column kind text not null default 'api' check (kind in ('api', 'session', 'browser', 'bootstrap'));
alter table api_tokens add column used_up_at timestamptz;

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

-- Sign-ins that failed, by what they are counted by: a person, or an address.
create table sign_in_failures (
    key          text primary key check (char_length(key) between 1 and 256),
    failures     integer not null default 0,
    first_at     timestamptz not null default clock_timestamp(),
    locked_until timestamptz
);

grant select, insert, update, delete on sign_ins, sign_in_failures to cloudlink_app;
alter table sign_ins enable row level security;
create policy app on sign_ins to cloudlink_app using (true) with check (true);
alter table sign_in_failures enable row level security;
create policy app on sign_in_failures to cloudlink_app using (true) with check (true);
