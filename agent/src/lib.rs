//! The device side of Cloudlink.
//!
//! An [`agent`](agent::Agent) keeps one [`link`] up and lets a [`desk`] work: it decides which command may be begun (with
//! [`access`], whether the tenant itself has let it), writes it to the [`ledger`] first, and has the [`executor`] carry it out.
//! [`stream`] serves the terminals, connections and files of support sessions. When no link comes about, the agent
//! [`poll`]s. Applications on the device speak to it over a [`local`] socket, and say when it is [`busy`]. Around that: how the [`boot`] before ended, [`identity`] and its renewal, [`tls`] with a clock that may be wrong ([`clock`]), the [`ladder`] of
//! transports, the [`tunnel`] of an OpenVPN client, [`enroll`], [`metrics`], [`speed`] and [`doctor`]. The command line in `main.rs` is thin.
//!
//! Start reading at [`desk`] for what happens to a command, and at [`agent`] for what happens to a link.
//!
//! The library serves the command line and its tests; nothing else is to depend on it.

pub mod access;
pub mod agent;
pub mod backoff;
pub mod boot;
pub mod busy;
pub mod clock;
pub mod command;
pub mod config;
pub mod desired;
pub mod desk;
pub mod dial;
pub mod disk;
pub mod doctor;
pub mod enroll;
pub mod exchange;
pub mod executor;
pub mod identity;
pub mod ladder;
pub mod ledger;
pub mod link;
pub mod local;
pub mod machine;
pub mod metrics;
pub mod poll;
pub mod problem;
pub mod speed;
pub mod stream;
pub mod tls;
pub mod tunnel;

/// An error and all that caused it, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
