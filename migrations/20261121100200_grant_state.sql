-- Where the grant stands at `at`, in the words of the API.
create function grant_state(g grants, at timestamptz) returns text
    language sql immutable
    as $$
    select case
        when g.revoked_at is not null then 'revoked'
        when at < g.starts_at then 'scheduled'
        when at < g.ends_at then 'in_force'
        else 'ended'
    end
$$;
