//! The capabilities of this process, and which of them the programs get that it starts.
//!
//! A capability is a thread's, and a thread begins with those of the one that made it. So they are put in order once, before
//! there is a second thread: [`prepare`]. From then on every program that is started has `CAP_NET_ADMIN` if tunnels are
//! enabled, for `nft` sets the rules; `without` starts those that have no use for it.

use std::io;
use std::thread;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::geteuid;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// For the interface of tunnels, its addresses and settings, and the rules around it.
const NETWORK: Capability = Capability::CAP_NET_ADMIN;
/// For ports below 1024.
const PORTS: Capability = Capability::CAP_NET_BIND_SERVICE;

/// Why the node cannot be run with what it may do.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error(
        "tunnels are enabled, and this process lacks the capability CAP_NET_ADMIN, which their interface and its isolation \
         take: AmbientCapabilities=CAP_NET_ADMIN in a unit of systemd, `setcap cap_net_admin,cap_net_bind_service+p` on the \
         program, cap_add in a container; or set tunnel.enabled = false"
    )]
    Missing,
    #[error("the capabilities of this process cannot be put in order")]
    Own(#[source] CapsError),
    #[error("CAP_NET_ADMIN cannot be passed on to the program nft: the service must allow ambient capabilities")]
    PassOn(#[source] CapsError),
}

/// Checks what the node may do, passes on to its children what they need of it, and gives up the rest. Root stays root, which
/// the embedded Postgres takes: whoever wants less starts the node as another user. To be called before there are threads.
pub fn prepare(has_tunnels: bool) -> Result<(), PrivilegeError> {
    caps::clear(None, CapSet::Ambient).map_err(PrivilegeError::Own)?;
    let permitted = caps::read(None, CapSet::Permitted).map_err(PrivilegeError::Own)?;
    if has_tunnels && !permitted.contains(&NETWORK) {
        return Err(PrivilegeError::Missing);
    }
    let needed = if has_tunnels { CapsHashSet::from([NETWORK, PORTS]) } else { CapsHashSet::from([PORTS]) };
    let kept = &permitted & &needed;
    if geteuid().is_root() {
        let effective = caps::read(None, CapSet::Effective).map_err(PrivilegeError::Own)?;
        caps::set(None, CapSet::Effective, &(&effective | &kept)).map_err(PrivilegeError::Own)?;
    } else {
        caps::set(None, CapSet::Effective, &kept).map_err(PrivilegeError::Own)?;
        caps::set(None, CapSet::Permitted, &kept).map_err(PrivilegeError::Own)?;
    }
    let passed_on = if has_tunnels { CapsHashSet::from([NETWORK]) } else { CapsHashSet::new() };
    caps::set(None, CapSet::Inheritable, &passed_on).map_err(PrivilegeError::PassOn)?;
    for capability in passed_on {
        caps::raise(None, CapSet::Ambient, capability).map_err(PrivilegeError::PassOn)?;
    }
    Ok(())
}

/// Starts a program that gets no capability of ours. To be called in a runtime.
pub(crate) fn without(command: &mut Command) -> io::Result<Child> {
    let runtime = Handle::current();
    // What this thread gives up is lost to nobody else.
    on_thread(|| {
        let _runtime = runtime.enter();
        pass_on_nothing().map_err(io::Error::other)?;
        command.spawn()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("spawn".to_owned()).spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts a program panicked")))
    })
}

fn pass_on_nothing() -> Result<(), CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test on a thread that may throw its capabilities away. Root's only: nobody else has some.
    fn as_root(name: &str, test: impl FnOnce() + Send) {
        if !caps::has_cap(None, CapSet::Permitted, NETWORK).unwrap() {
            return eprintln!("{name}: skipped, it needs CAP_NET_ADMIN");
        }
        on_thread(|| {
            test();
            Ok(())
        })
        .unwrap();
    }

    fn read(set: CapSet) -> CapsHashSet {
        caps::read(None, set).unwrap()
    }

    #[test]
    fn only_what_nft_needs_is_passed_on() {
        as_root("only_what_nft_needs_is_passed_on", || {
            caps::set(None, CapSet::Inheritable, &CapsHashSet::from([PORTS, NETWORK])).unwrap();
            caps::raise(None, CapSet::Ambient, PORTS).unwrap();

            prepare(true).unwrap();
            assert_eq!(read(CapSet::Ambient), CapsHashSet::from([NETWORK]));
            assert_eq!(read(CapSet::Inheritable), CapsHashSet::from([NETWORK]));
            prepare(false).unwrap();
            assert!(read(CapSet::Ambient).is_empty());
            assert!(read(CapSet::Inheritable).is_empty());
        });
    }

    #[test]
    fn what_is_permitted_and_not_in_effect_is_put_in_effect() {
        as_root("what_is_permitted_and_not_in_effect_is_put_in_effect", || {
            caps::clear(None, CapSet::Effective).unwrap();
            prepare(true).unwrap();
            assert!(read(CapSet::Effective).is_superset(&CapsHashSet::from([NETWORK, PORTS])));
        });
    }

    #[test]
    fn without_the_capability_tunnels_are_refused_and_the_rest_is_not() {
        as_root("without_the_capability_tunnels_are_refused_and_the_rest_is_not", || {
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
                caps::drop(None, set, NETWORK).unwrap();
            }
            let error = prepare(true).unwrap_err();
            assert!(error.to_string().contains("lacks the capability CAP_NET_ADMIN"), "{error}");
            prepare(false).unwrap();
        });
    }

    #[test]
    fn a_program_without_capabilities_costs_the_caller_none() {
        as_root("a_program_without_capabilities_costs_the_caller_none", || {
            prepare(true).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let status = runtime.block_on(async {
                let mut command = Command::new("cat");
                command.arg("/proc/self/status").stdout(std::process::Stdio::piped());
                without(&mut command).unwrap().wait_with_output().await.unwrap()
            });
            let status = String::from_utf8(status.stdout).unwrap();
            for set in ["CapAmb:", "CapInh:"] {
                let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
                assert_eq!(line.trim().trim_start_matches('0'), "", "{set}");
            }
            assert_eq!(read(CapSet::Ambient), CapsHashSet::from([NETWORK]));
        });
    }
}
