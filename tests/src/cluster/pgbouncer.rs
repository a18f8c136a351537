use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use nix::unistd::Uid;
use tempfile::TempDir;

use super::until_listening;
use crate::fleet::directory;
use crate::port;
use crate::program::{Program, bound};

/// PgBouncer, which shares a few sessions of a database between all that connect to it, by the transaction.
#[derive(Debug)]
pub struct PgBouncer {
    program: Program,
    address: SocketAddr,
    // Dropped last.
    _directory: TempDir,
}

impl PgBouncer {
    /// In front of the database at this address, with so many sessions.
    pub async fn start(database: SocketAddr, sessions: u32) -> anyhow::Result<Self> {
        let directory = directory()?;
        let address = port::free()?;
        let config = directory.path().join("pgbouncer.ini");
        // As it is by default, but for the mode. Debian's knows of no prepared statements.
        let text = format!(
            "[databases]\n\
             postgres = host={} port={} user=postgres\n\
             [pgbouncer]\n\
             listen_addr = {}\n\
             listen_port = {}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = transaction\n\
             default_pool_size = {sessions}\n\
             max_client_conn = 200\n",
            database.ip(),
            database.port(),
            address.ip(),
            address.port(),
        );
        std::fs::write(&config, text)?;
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644))?;
        // It does not run as root.
        let mut command = if Uid::effective().is_root() {
            let mut command = bound("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--", "pgbouncer"]);
            command
        } else {
            bound("pgbouncer")
        };
        command.arg(&config);
        let program = Program::start("pgbouncer", command, &directory.path().join("pgbouncer.log"))?;
        let mut pgbouncer = Self { program, address, _directory: directory };
        until_listening(&mut pgbouncer.program, address).await?;
        Ok(pgbouncer)
    }

    /// As the owner of everything.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }
}
