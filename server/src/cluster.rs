//! This node among others: its lease in the database, hints to and from the others over NATS, and the internal port over which
//! nodes pass on what one of them alone can do.
//!
//! ```text
//! people, devices ──> any node ──┬─ what needs no link: here, for all nodes have one database
//!                                └─ a support session or its stream: peer ──(internal port)──> internal, on the link's node
//! ```
//!
//! Postgres says who is there; NATS only makes it fast. A node alone holds a lease as well, so that no two of one name serve, and
//! has nobody to tell.

pub(crate) mod internal;
pub(crate) mod lease;
pub(crate) mod peer;
pub(crate) mod relay;
pub(crate) mod tenure;

pub(crate) use lease::Lease;
pub(crate) use peer::Peers;
pub(crate) use relay::Relay;
pub(crate) use tenure::Standing;
