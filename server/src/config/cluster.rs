use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::database::read_secret;
use super::section::{Given, section};
use super::value::{Seconds, Secret};

const LEASE: Seconds = Seconds(15);
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443);

section! {
    /// Several nodes as one. They share the database, the fleet CA, the storage key, and a NATS server for hints between them. A
    /// node alone needs nothing of this.
    pub struct Cluster in "cluster" {
        /// The NATS servers, separated by commas: `nats://user:password@host:4222`, or `tls://…`. Setting it makes this node one
        /// of several.
        nats: Option<Secret> = None;
        /// A file that holds `nats`, instead of `nats`.
        nats_file: Option<PathBuf> = None;
        /// Root certificates of the NATS servers, PEM. By default those of the system.
        nats_ca: Option<PathBuf> = None;
        /// What subjects begin with: clusters that share a NATS server need different ones.
        subject: String = "cloudlink".to_owned();
        /// Where other nodes dial this one: TLS with certificates of the cluster's own on both sides. Never make it public.
        listen: SocketAddr = LISTEN;
        /// The host and port that other nodes dial. By default the node's name and the port of `listen`.
        address: Option<String> = None;
        /// How long a node that does not reach the database keeps its place. After that others close what it had, and it has
        /// given it up before. Shorter finds a dead node sooner, longer lets a slow database pass.
        lease_seconds: Seconds = LEASE, in 3..=300;
    }
}

impl Cluster {
    /// Replaces `nats_file` by what it holds.
    pub(in crate::config) fn read_secrets(&mut self, given: &mut Given<'_>) {
        read_secret(&mut self.nats, self.nats_file.as_deref(), "cluster", ("nats", "nats_file"), given);
    }
}
