//! Real rules in a real kernel, in a network namespace for each test.

mod drift;
mod packet;

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::*;
use crate::config;
use crate::tunnel::conn::tests::isolated::isolated_in;
use crate::tunnel::slice::IPV6_PREFIX;

const MODULE: &str = "isolation::tests";
const INTERFACE: &str = "kn0";
const PATIENCE: Duration = Duration::from_secs(20);

fn slice() -> Slice {
    Slice::new("10.9.0.0/16".parse().unwrap(), 24, "fd12:3456:789a::/48".parse().unwrap(), 3).unwrap()
}

fn config(scope: config::Scope) -> Config {
    let tunnel = config::Tunnel { interface: INTERFACE.parse().unwrap(), ..config::Tunnel::default() };
    let isolation = config::Isolation { scope, ..config::Isolation::default() };
    Config { tunnel, isolation, ..Config::default() }
}

/// The rules of a node, in force, and its interface if there is one.
struct Scene {
    isolation: Arc<Isolation>,
    shutdown: Shutdown,
    interface: Option<AsyncDevice>,
}

impl Scene {
    async fn with_rules() -> Self {
        Self::of(config::Scope::Host).await
    }

    async fn of(scope: config::Scope) -> Self {
        let kernel = Kernel::find().unwrap();
        let isolation = Isolation::new(Policy::new(&config(scope), &slice()), Some(kernel), Arc::new(Metrics::new()));
        isolation.apply(&*isolation.elements.lock().await).await.unwrap();
        isolation.set_rules(State::Enforced);
        Self { isolation: Arc::new(isolation), shutdown: Shutdown::new(), interface: None }
    }

    /// With an interface in which a test plays the devices.
    async fn with_interface() -> Self {
        Self::with_interface_of(config::Scope::Host).await
    }

    async fn with_interface_of(scope: config::Scope) -> Self {
        let mut scene = Self::of(scope).await;
        let gateway = slice().gateway();
        let interface = DeviceBuilder::new()
            .name(INTERFACE)
            .ipv4(gateway.ipv4, slice().ipv4().prefix_len(), None)
            .ipv6(gateway.ipv6, IPV6_PREFIX)
            .build_async()
            .unwrap();
        setting::harden(INTERFACE).unwrap();
        scene.interface = Some(interface);
        scene
    }

    async fn watched() -> Self {
        let scene = Self::with_interface().await;
        scene.isolation.start(&scene.shutdown);
        scene
    }

    async fn wait_for(&self, state: State) {
        let mut states = self.isolation.subscribe();
        let reached = timeout(PATIENCE, states.wait_for(|now| *now == state)).await;
        assert!(reached.is_ok(), "the state is {:?} and not {state:?}", self.isolation.state());
    }
}

fn nft(arguments: &str) -> String {
    run(&format!("nft {arguments}"))
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let done = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn in_seconds(seconds: f64) -> Instant {
    Instant::now() + Duration::from_secs_f64(seconds)
}

#[test]
fn the_rules_of_another_node_that_is_there_are_left_alone() {
    isolated_in(MODULE, "the_rules_of_another_node_that_is_there_are_left_alone", async {
        let kernel = Kernel::find().unwrap();
        refuse_another(&kernel, "kn1").await.unwrap();
        let mut other = Scene::with_interface().await;
        refuse_another(&kernel, INTERFACE).await.unwrap();
        let error = refuse_another(&kernel, "kn1").await.unwrap_err();
        assert!(matches!(&error, IsolationError::Another { interface } if interface == INTERFACE), "{error:?}");
        // What it left behind is nobody's.
        other.interface = None;
        refuse_another(&kernel, "kn1").await.unwrap();
    });
}

#[test]
fn connections_beside_tunnels_are_not_remembered() {
    isolated_in(MODULE, "connections_beside_tunnels_are_not_remembered", async {
        let _scene = Scene::with_interface().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        // Not there: the kernel has never been asked to remember any.
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        assert_eq!(count.as_deref().unwrap_or("0").trim(), "0");
        drop((near.unwrap(), far.unwrap()));
    });
}

#[test]
fn the_rules_are_set_as_a_whole_or_not_at_all() {
    isolated_in(MODULE, "the_rules_are_set_as_a_whole_or_not_at_all", async {
        let Scene { isolation, .. } = Scene::with_rules().await;
        let before = nft("list table inet cloudlink");
        assert!(before.contains("policy drop"), "{before}");
        let mut commands = delete(TABLE);
        commands.extend(isolation.policy.ruleset(TABLE, true));
        commands.push(json!({"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": "cl_none", "expr": []}}}));
        let error = isolation.call(&commands).await.unwrap_err();
        assert!(matches!(error, IsolationError::Kernel(KernelError::Refused { .. })), "{error:?}");
        assert_eq!(nft("list table inet cloudlink"), before);
        isolation.withdraw().await;
        assert_eq!(nft("list tables"), "");
    });
}

#[test]
fn an_opening_is_gone_before_its_deadline_and_a_new_one_replaces_it() {
    isolated_in(MODULE, "an_opening_is_gone_before_its_deadline_and_a_new_one_replaces_it", async {
        let Scene { isolation, .. } = Scene::with_rules().await;
        let device = slice().addresses(2).unwrap();
        isolation.open(device, 22, in_seconds(100.0)).await.unwrap();
        isolation.open(device, 22, in_seconds(9.9)).await.unwrap();
        for set in ["cl_openings4", "cl_openings6"] {
            let listed = nft(&format!("list set inet cloudlink {set}"));
            assert!(listed.contains("timeout 9s"), "{listed}");
        }
        isolation.close(device, 22).await.unwrap();
        isolation.close(device, 22).await.unwrap();
        assert!(!nft("list table inet cloudlink").contains("timeout 9s"));
        let over = isolation.open(device, 22, in_seconds(1.1)).await.unwrap_err();
        assert!(matches!(over, IsolationError::Over), "{over:?}");
        isolation.set_quarantine(device, true).await.unwrap();
        isolation.set_quarantine(device, true).await.unwrap();
        assert!(nft("list set inet cloudlink cl_quarantined4").contains("10.9.3.2"));
        isolation.set_quarantine(device, false).await.unwrap();
        assert!(!nft("list set inet cloudlink cl_quarantined4").contains("10.9.3.2"));
    });
}

#[test]
fn the_rules_stay_while_the_interface_does() {
    isolated_in(MODULE, "the_rules_stay_while_the_interface_does", async {
        let mut scene = Scene::with_interface().await;
        scene.isolation.withdraw().await;
        assert!(nft("list tables").contains("cloudlink"));
        scene.interface = None;
        scene.isolation.withdraw().await;
        assert_eq!(nft("list tables"), "");
    });
}

#[test]
fn a_program_that_hangs_is_given_up_and_killed() {
    isolated_in(MODULE, "a_program_that_hangs_is_given_up_and_killed", async {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel::find().unwrap().with_program(program(dir.path(), "#!/bin/sh\nexec sleep 1000.25\n"));
        let begun = Instant::now();
        let error = kernel.apply(&[]).await.unwrap_err();
        assert!(matches!(error, KernelError::Hung { .. }), "{error:?}");
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        let left = Command::new("pgrep").args(["-f", "^sleep 1000.25"]).output().unwrap();
        assert_eq!(String::from_utf8(left.stdout).unwrap(), "");
    });
}

#[test]
fn what_is_missing_is_said() {
    isolated_in(MODULE, "what_is_missing_is_said", async {
        let dir = tempfile::tempdir().unwrap();
        let saying = |words: &str| {
            let script = format!("#!/bin/sh\necho '{words}' >&2\nexit 1\n");
            Kernel::find().unwrap().with_program(program(dir.path(), &script))
        };
        let error = saying("netlink: Error: cache initialization failed: Operation not permitted").check().await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
        let error = saying("netlink: Error: cache initialization failed: Protocol not supported").check().await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("module nf_tables"), "{error}");
        let error = saying("Could not process rule: Operation not supported").apply(&[]).await.unwrap_err().to_string();
        assert!(error.contains("nft_ct"), "{error}");
    });
}

/// A program of the test's own, in place of `nft`.
fn program(dir: &std::path::Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("nft");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
