//! This node among others: its lease in the database, and hints to and from the others over NATS.
//!
//! Postgres says who is there; NATS only makes it fast. A node alone holds a lease as well, so that no two of one name serve, and
//! has nobody to tell.

pub(crate) mod lease;
pub(crate) mod relay;

pub(crate) use lease::{Lease, Standing};
pub(crate) use relay::Relay;
