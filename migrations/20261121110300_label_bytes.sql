-- 64 labels with keys and values of 63 characters, whatever the script: up to four bytes a character, and what jsonb adds.
alter table devices drop constraint devices_labels_check;
alter table devices add constraint devices_labels_check
    check (jsonb_typeof(labels) = 'object' and pg_column_size(labels) <= 40960);
