-- What a node says of itself that no other can know: whether it is connected to NATS, and whether the isolation of its tunnels is in
-- force. Null: it has not said anything yet, or is of a version that does not.

alter table nodes add column condition jsonb check (octet_length(condition::text) <= 1024);
