//! Background tasks of a node. Each is idempotent, takes no input, and runs by a timer; some are woken by a hint as well.
//! Several nodes may run them at once.

mod deadline;
pub(crate) mod presence;
pub(crate) mod revocation;

use crate::lifecycle::Shutdown;
use crate::link::{Links, dispatch};

/// Starts every task; each ends by itself at the soft stop.
pub fn start(links: &Links, shutdown: &Shutdown) {
    shutdown.spawn_vital("dispatch", dispatch::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("deadline", deadline::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("presence", presence::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("revocation", revocation::run(links.clone(), shutdown.clone()));
}
