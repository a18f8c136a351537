//! What the server knows about, without storage or transport.

pub mod command;
