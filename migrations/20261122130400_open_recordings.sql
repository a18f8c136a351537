-- Those that are being written, or were cut short and nobody has found it yet: looked for every few seconds, and always few.
create index recordings_open on recordings (session_id) where finished_at is null and not is_cut_short and deleted_at is null;
