//! The device side of Cloudlink.

pub mod agent;
pub mod backoff;
pub mod clock;
pub mod command;
pub mod config;
pub mod desk;
pub mod dial;
pub mod disk;
pub mod doctor;
pub mod enroll;
pub mod executor;
pub mod identity;
pub mod ledger;
pub mod link;
pub mod machine;
pub mod metrics;
pub mod problem;
pub mod tls;

/// An error and all that caused it, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
