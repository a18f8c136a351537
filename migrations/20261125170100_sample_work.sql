-- What is being added up of samples, some devices a transaction: five minutes or an hour, and the device up to which it is done. Whoever
-- goes on with it holds the row of sample_progress for five minutes. What is begun is gone on with before anything else is.
create table sample_work (
    resolution text not null check (resolution in ('five_minutes', 'hour')),
    at         timestamptz not null,
    -- Null: none yet.
    reached    uuid,
    primary key (resolution, at)
);
grant select, insert, update, delete on sample_work to cloudlink_app;
