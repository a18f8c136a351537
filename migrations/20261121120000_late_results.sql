-- Commands of which a device has reported another end than the one that counts. The first such report goes into the audit
-- log, and the command in here: a device that says it again and again makes nothing grow.
create table late_results (
    command_id uuid primary key references commands
);
grant select, insert on late_results to cloudlink_app;
