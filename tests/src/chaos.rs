//! A small fleet to be hurt: two nodes on one database of their own, devices that reach them through relays, and streams of
//! support sessions that are observed at both of their ends.
//!
//! The observers know nothing of the server: at the operator's end a client notes when something came, at the device's end
//! whatever the stream leads to does: a TCP server, behind a terminal as behind a forward, and the file that is being written.
//! All of them read the clocks of one machine, and so does the database, which keeps the time of each commit.

pub mod database;
pub mod relay;
pub mod seed;
pub mod stream;
pub mod target;
pub mod world;
