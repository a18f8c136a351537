-- As before; a demand that is null, as in {"": null}, fits nothing: null went through `not …` as if it did not matter.
create or replace function labels_match(labels jsonb, selector jsonb) returns boolean
    language sql immutable parallel safe
    as $$
    select case when selector ? ''
                then labels @> (selector - ''::text) and coalesce(labels_meet(labels, selector ->> ''), false)
                else labels @> selector end
$$;
