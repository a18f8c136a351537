-- Calling back a command that was sent already. Set once, by whoever asks; the node that serves the device's link then
-- sends `CommandCancel`, and the device's answer decides what became of it.
alter table commands add column cancel_requested_at timestamptz;
grant update (cancel_requested_at) on commands to cloudlink_tenant;
