-- Nodes that send their devices to others, and what each says that it can take.

alter table nodes
    -- Since when it is drained. Earlier than `started_at`: that was another life of it.
    add column draining_since        timestamptz,
    -- When the last of its devices is to be gone.
    add column drain_by              timestamptz,
    -- Processor time of one handshake, as measured. Null: it has had none, or does not measure.
    add column handshake_us          integer check (handshake_us > 0),
    -- New links a second that it takes, at most.
    add column handshakes_per_second real check (handshakes_per_second > 0);
