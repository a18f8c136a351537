//! What the crate makes and reads, judged by others: rustls (what both ends of a link run) and the `openssl` command line.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

mod arbitrary;
mod authority;
mod fleet;
mod grant;
mod openssl;
mod request;
mod revocation;
mod rustls;
mod statement;
mod strictness;
