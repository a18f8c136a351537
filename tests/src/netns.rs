//! Network namespaces: a network of its own for each test, and sites in it, each behind a router of its own.
//!
//! [`run`] gives a thread, and with it everything it starts, a new network namespace: `cloudlinkd` has the host to itself
//! there, with all ports and interface names free, and whoever drives the test is on that host, too. A [`Site`] is another
//! namespace, joined to it by a cable: what a customer's building is to the server. None of them has a name in the file
//! system. They are held open by threads, processes and file descriptors, so that the kernel removes them with everything in
//! them, however a test ends.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

use crate::program::bound;

/// Where sites find the server, as if it were on the Internet (RFC 5737, RFC 3849).
pub const SERVER_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const SERVER_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Of one process: as many as there are networks of four addresses in 198.18.0.0/15 (RFC 2544).
const SITES_MAX: u16 = 32_767;

/// Sites that this process has made. Each gets another number, though they could not meet.
static SITES: AtomicU16 = AtomicU16::new(0);

/// Runs a test in a network of its own, or says in one line why that is not possible here. For a test that is not async: a
/// runtime that runs already has threads in another network.
pub fn test(name: &str, body: impl AsyncFnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    match lacking() {
        None => run(body),
        Some(what) => {
            // Not `eprintln!`, which the test runner keeps to itself while a test passes.
            writeln!(std::io::stderr(), "skipped: {name}: {what}")?;
            Ok(())
        }
    }
}

/// What it takes to run a server with tunnels and OpenVPN clients in namespaces, and is not there.
#[must_use]
pub fn lacking() -> Option<&'static str> {
    static LACKING: OnceLock<Option<&str>> = OnceLock::new();
    *LACKING.get_or_init(|| {
        let has = |program| {
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        if !geteuid().is_root() {
            Some("only root may make network namespaces")
        } else if OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
            Some("there is no /dev/net/tun")
        } else if namespace().is_err() {
            Some("the kernel does not allow network namespaces here")
        } else if !["openvpn", "nft", "ip", "ping", "nsenter"].into_iter().all(has) {
            Some("it takes the packages openvpn, nftables, iproute2, iputils-ping and util-linux")
        } else {
            None
        }
    })
}

/// Runs `body`, and all that it starts, in a network of its own, on the host that has the server's addresses.
pub fn run<T: Send>(body: impl AsyncFnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let begin = || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        be_the_server()
    };
    on_a_thread(begin, body)
}

/// Runs `body` on a thread of its own, after that has gone where it belongs. What it starts goes with it.
fn on_a_thread<T: Send>(
    begin: impl FnOnce() -> anyhow::Result<()> + Send,
    body: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let whole = || {
        begin()?;
        // Its threads are started by this one, and so are in the same network.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(Box::pin(body()))
    };
    thread::scope(|scope| scope.spawn(whole).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn be_the_server() -> anyhow::Result<()> {
    ip_batch(
        Command::new("ip"),
        &format!(
            "link set lo up
             addr add {SERVER_IPV4}/32 dev lo
             addr add {SERVER_IPV6}/128 dev lo nodad"
        ),
    )
}

/// Somewhere else: a network namespace with one way out, which leads to the server.
///
/// To be made, used and dropped within one [`run`].
#[derive(Debug)]
pub struct Site {
    namespace: File,
    /// The outer end of its cable, on the server's host: to capture what passes.
    pub interface: String,
    /// Its own outer addresses.
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// Of the other end of the cable. A host that routes them elsewhere has more addresses than those the server means.
    pub router_ipv4: Ipv4Addr,
    pub router_ipv6: Ipv6Addr,
}

impl Site {
    /// Makes a site, and joins it to the network of the caller.
    pub fn join() -> anyhow::Result<Self> {
        let number = SITES.fetch_add(1, Ordering::Relaxed);
        anyhow::ensure!(number < SITES_MAX, "too many sites");
        let network = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + u32::from(number) * 4;
        let site = Self {
            namespace: namespace()?,
            // At most 15 characters: process ids are below 2^22.
            interface: format!("clt{:x}n{number:x}", std::process::id()),
            ipv4: Ipv4Addr::from(network + 2),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, 1, number, 0, 0, 0, 2),
            router_ipv4: Ipv4Addr::from(network + 1),
            router_ipv6: Ipv6Addr::new(0x2001, 0xdb8, 1, number, 0, 0, 0, 1),
        };
        let Self { interface, ipv4, ipv6, router_ipv4, router_ipv6, .. } = &site;
        ip_batch(
            Command::new("ip"),
            &format!(
                "link add {interface} type veth peer name wan0 netns {namespace}
                 addr add {router_ipv4}/30 dev {interface}
                 addr add {router_ipv6}/64 dev {interface} nodad
                 link set {interface} up",
                namespace = site.path(),
            ),
        )?;
        ip_batch(
            site.command("ip"),
            &format!(
                "link set lo up
                 addr add {ipv4}/30 dev wan0
                 addr add {ipv6}/64 dev wan0 nodad
                 link set wan0 up
                 route add default via {router_ipv4}
                 route add ::/0 via {router_ipv6}"
            ),
        )?;
        // Several clients at one site are in the same network: their answers come through others than the kernel would take.
        site.sh("for of in all default; do echo 0 > /proc/sys/net/ipv4/conf/$of/rp_filter; done")?;
        Ok(site)
    }

    /// A command to be run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// A program to be run there for as long as the thread that starts it lives: [`bound`]. It has the process id of what is
    /// started.
    pub fn bound(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = bound("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// What is put before a program's own command to have it run there.
    #[must_use]
    pub fn entry(&self) -> Vec<String> {
        ["nsenter".to_owned(), format!("--net={}", self.path()), "--".to_owned()].into()
    }

    /// Runs something there that must succeed, and gives back its standard output.
    pub fn sh(&self, line: &str) -> anyhow::Result<String> {
        let mut command = self.command("sh");
        command.arg("-c").arg(line);
        done(command)
    }

    /// Runs a part of the test there: its connections come from the site.
    pub fn run<T: Send>(&self, body: impl AsyncFnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        on_a_thread(|| setns(&self.namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a site"), body)
    }

    /// Unplugs the cable: nothing arrives any longer, and nobody is told.
    pub fn unplug(&self) -> anyhow::Result<()> {
        ip_batch(Command::new("ip"), &format!("link set {} down", self.interface))
    }

    pub fn plug(&self) -> anyhow::Result<()> {
        // The kernel has forgotten the IPv6 address meanwhile.
        let Self { interface, router_ipv6, .. } = self;
        let lines = format!("link set {interface} up\naddr replace {router_ipv6}/64 dev {interface} nodad");
        ip_batch(Command::new("ip"), &lines)
    }

    /// The namespace, for other processes of root.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // It would go with its other end, but not at once.
        let _ = ip_batch(Command::new("ip"), &format!("link del {}", self.interface));
    }
}

/// A new network namespace.
fn namespace() -> anyhow::Result<File> {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    made.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Lets `ip` do all of this at once.
fn ip_batch(mut ip: Command, lines: &str) -> anyhow::Result<()> {
    let mut child =
        ip.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("standard input is piped")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{lines}:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a command that must succeed, and gives back its standard output.
pub fn done(mut command: Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{command:?}: {}:\n{stdout}{stderr}", output.status);
    Ok(stdout.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_reaches_the_server_and_goes_when_it_is_dropped() -> anyhow::Result<()> {
        test("a_site_reaches_the_server_and_goes_when_it_is_dropped", async || {
            let (one, other) = (Site::join()?, Site::join()?);
            for site in [&one, &other] {
                site.sh(&format!("ping -c 1 -W 5 {SERVER_IPV4} && ping -c 1 -W 5 {SERVER_IPV6}"))?;
            }
            // Its own loopback, and its own view of the kernel's settings.
            assert!(!one.sh("ip -br link")?.contains(&one.interface));
            let interfaces = || {
                done({
                    let mut ip = Command::new("ip");
                    ip.args(["-br", "link"]);
                    ip
                })
            };
            assert!(interfaces()?.contains(&one.interface));
            let gone = one.interface.clone();
            drop(one);
            assert!(!interfaces()?.contains(&gone));
            other.unplug()?;
            assert!(other.sh(&format!("ping -c 1 -W 1 {SERVER_IPV4}")).is_err());
            other.plug()?;
            other.sh(&format!("ping -c 3 -W 5 {SERVER_IPV4} && ping -c 3 -W 5 {SERVER_IPV6}"))?;
            Ok(())
        })
    }

    #[test]
    fn networks_do_not_meet() -> anyhow::Result<()> {
        test("networks_do_not_meet", async || {
            let listener = tokio::net::TcpListener::bind((SERVER_IPV4, 443)).await?;
            let same = run(async || Ok(tokio::net::TcpListener::bind((SERVER_IPV4, 443)).await?))?;
            assert_eq!(listener.local_addr()?, same.local_addr()?);
            Ok(())
        })
    }
}
