-- A grant for devices with certain labels is for those that have them. Whoever takes a label away ends what goes on under such a
-- grant: until now it went on to the grant's end, and only new things were refused.

create or replace function support_session_over(s support_sessions, g grants, d devices, p people, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'grant_revoked'
        when d.state <> 'active' then 'device_revoked'
        when not p.active or p.role <> 'operator' then 'operator_shut_out'
        when d.quarantined_at is not null then 'quarantined'
        when not grant_in_force(g, at) then 'grant_ended'
        when not coalesce(d.id = any (g.device_ids), d.labels @> g.selector) then 'grant_revoked'
    end
$$;

create or replace function opening_over(o openings, g grants, d devices, p people, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'grant_revoked'
        when d.state <> 'active' then 'device_revoked'
        when not p.active then 'operator_shut_out'
        when d.quarantined_at is not null then 'quarantined'
        when o.expires_at <= at or not grant_in_force(g, at) then 'expired'
        when not coalesce(d.id = any (g.device_ids), d.labels @> g.selector) then 'grant_revoked'
    end
$$;
