//! Attempts to get out of a tunnel to where no device may: made with raw packets at a device, and watched for everywhere else.
//!
//! The [`World`] has two devices' sites, the Internet, and another node; the node's host routes to all of them. Each packet
//! carries the number of its case ([`Case`], `tests/attack/case.py`), so that [`Watchers`] everywhere can tell what got through.
//! The same attempts are made against an [`OpenServer`], which must be seen to leak: else nothing seen would prove nothing.

mod case;
mod host;
mod open;
mod product;
mod watch;
mod world;

pub use case::{Attacker, Case, Said, Scan, Stream};
pub use host::{Opened, here, rules};
pub use open::{Forger, OpenServer};
pub use product::Product;
pub use watch::{Seen, Sight, Watch, Watchers, What, packets};
pub use world::World;

use std::process::Command;
use std::sync::OnceLock;

/// Debian's, which is the one that scapy is installed for.
const PYTHON: &str = "/usr/bin/python3";
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/attack");

/// What it takes besides namespaces and OpenVPN, and is not there.
#[must_use]
pub fn lacking() -> Option<&'static str> {
    static LACKING: OnceLock<Option<&str>> = OnceLock::new();
    *LACKING.get_or_init(|| {
        let is_there = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        if !is_there(PYTHON, &["-c", "import scapy"]) {
            Some("it takes the package python3-scapy")
        } else if !is_there("nft", &["--version"]) {
            Some("it takes the package nftables")
        } else if Command::new("tinyproxy").arg("-v").output().is_err() {
            Some("it takes the package tinyproxy")
        } else {
            None
        }
    })
}
