//! Somebody changes what is declared: it is found, put right, and told.

use super::*;
use crate::isolation::DriftKind as Kind;
use crate::isolation::compare::{self, Listing};

/// A device with something open.
const DEVICE: u32 = 2;
/// Within this time of a change the kernel has told of it, and it is repaired. It takes a fifth of a second where little else runs, and
/// more than one beside other programs of tests: `tests/scripts/run-tests.sh` runs these alone.
const REPAIRED_WITHIN: Duration = Duration::from_secs(1);

impl Scene {
    fn drifts(&self, kind: Kind) -> u64 {
        self.isolation.metrics.isolation_drifts.with_label_values(&[kind.label()]).get()
    }

    /// Waits until a change was found and repaired; says how long that took.
    async fn repaired(&self, kind: Kind, begun: Instant, before: u64) -> Duration {
        let done = async {
            while self.drifts(kind) == before || self.isolation.state() != State::Enforced {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(timeout(PATIENCE, done).await.is_ok(), "{kind:?} is not repaired: {:?}", self.isolation);
        begun.elapsed()
    }

    /// Compares by other means than the watch.
    async fn assert_as_declared(&self, what: &str) {
        let kernel = self.isolation.kernel.as_ref().unwrap();
        let declared = compare::declared(kernel, &self.isolation.policy).await.unwrap();
        let live = Listing::read(&kernel.list(TABLE).await.unwrap().unwrap()).table;
        assert_eq!(compare::differences(&declared, Some(&live)), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn whatever_is_changed_in_the_rules_is_put_right() {
    isolated_in("isolation::tests::drift", "whatever_is_changed_in_the_rules_is_put_right", async {
        let scene = Scene::watched().await;
        let device = slice().addresses(DEVICE).unwrap();
        scene.isolation.open(device, 22, in_seconds(600.0)).await.unwrap();
        scene.isolation.set_quarantine(slice().addresses(9).unwrap(), true).await.unwrap();
        run("nft add table inet kn_other");
        let changes = [
            "flush table inet cloudlink",
            "delete table inet cloudlink",
            "flush ruleset",
            "insert rule inet cloudlink cl_enter accept",
            "insert rule inet cloudlink cl_tunnel4 counter accept",
            "add rule inet cloudlink cl_forward accept",
            "flush chain inet cloudlink cl_out",
            "chain inet cloudlink cl_forward { policy accept ; }",
            "add set inet cloudlink cl_more { type ipv4_addr ; }",
            "add chain inet cloudlink cl_more",
            "add map inet cloudlink cl_map { type ipv4_addr : verdict ; }",
            "flush set inet cloudlink cl_openings4",
            "delete element inet cloudlink cl_openings6 { fd12:3456:789a:3::2 . 22 }",
            "add element inet cloudlink cl_openings4 { 10.9.3.7 . 22 timeout 60s }",
            "add element inet cloudlink cl_openings4 { 10.9.3.7 . 22 }",
            "add element inet cloudlink cl_quarantined4 { 10.9.3.7 }",
            "flush set inet cloudlink cl_quarantined6",
            "add table inet cloudlink { flags dormant ; }",
            "add counter inet cloudlink cl_more",
        ];
        for (before, change) in (0..).zip(changes) {
            let begun = Instant::now();
            nft(change);
            let took = scene.repaired(Kind::Rules, begun, before).await;
            eprintln!("{change}: repaired {took:?} after");
            assert!(took < REPAIRED_WITHIN, "{change}: {took:?}");
            scene.assert_as_declared(change).await;
            assert!(nft("list set inet cloudlink cl_openings4").contains("10.9.3.2 . 22 timeout"), "{change}");
            assert!(nft("list set inet cloudlink cl_openings6").contains("::2 . 22 timeout"), "{change}");
            assert!(!nft("list table inet cloudlink").contains("10.9.3.7"), "{change}");
            assert!(nft("list set inet cloudlink cl_quarantined6").contains("::9"), "{change}");
        }
        // An opening has the time left that it had, and a table of others is left alone.
        let listed = nft("list set inet cloudlink cl_openings4");
        assert!(!listed.contains("timeout 10m"), "{listed}");
        nft("add table inet kn_other");
        nft("add chain inet kn_other c { type filter hook input priority 0 ; }");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(scene.drifts(Kind::Rules), 19);
        assert!(nft("list table inet kn_other").contains("hook input"));
    });
}

#[test]
fn an_element_that_ends_or_is_changed_by_its_owner_is_no_drift() {
    isolated_in("isolation::tests::drift", "an_element_that_ends_or_is_changed_by_its_owner_is_no_drift", async {
        let scene = Scene::watched().await;
        let device = slice().addresses(DEVICE).unwrap();
        for round in 0..20 {
            scene.isolation.open(device, 22 + round % 3, in_seconds(2.5)).await.unwrap();
            scene.isolation.open(device, 80, in_seconds(60.0)).await.unwrap();
            scene.isolation.set_quarantine(device, round % 2 == 0).await.unwrap();
            scene.isolation.close(device, 80).await.unwrap();
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 10)).await;
        }
        // Until all are over, and the rules were compared at least once since.
        tokio::time::sleep(Duration::from_secs(4)).await;
        for kind in Kind::ALL {
            assert_eq!(scene.drifts(kind), 0, "{kind:?}");
        }
        assert_eq!(scene.isolation.state(), State::Enforced);
    });
}

#[test]
fn settings_of_the_interface_are_put_right() {
    isolated_in("isolation::tests::drift", "settings_of_the_interface_are_put_right", async {
        let scene = Scene::watched().await;
        scene.wait_for(State::Enforced).await;
        let changes = [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.kn0.rp_filter=0",
            "net.ipv6.conf.kn0.accept_ra=2",
            "net.ipv4.conf.kn0.accept_source_route=1",
        ];
        for (before, change) in (0..).zip(changes) {
            let begun = Instant::now();
            run(&format!("sysctl -q -w {change}"));
            let took = scene.repaired(Kind::Setting, begun, before).await;
            eprintln!("{change}: repaired {took:?} after");
            assert!(took < REPAIRED_WITHIN, "{change}: {took:?}");
            assert_eq!(setting::differences(INTERFACE), Vec::<String>::new(), "{change}");
        }
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1", "the host's own");
    });
}

#[test]
fn what_cannot_be_repaired_is_told_and_tried_again() {
    isolated_in("isolation::tests::drift", "what_cannot_be_repaired_is_told_and_tried_again", async {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "#!/bin/sh\nexec nft \"$@\"\n");
        let mut scene = Scene::with_interface().await;
        let isolation = Arc::get_mut(&mut scene.isolation).unwrap();
        isolation.kernel = Some(Kernel::find().unwrap().with_program(path));
        scene.isolation.start(&scene.shutdown);
        scene.wait_for(State::Enforced).await;

        program(dir.path(), "#!/bin/sh\nexit 1\n");
        let begun = Instant::now();
        nft("delete table inet cloudlink");
        scene.wait_for(State::Unrepairable).await;
        eprintln!("told {:?} after", begun.elapsed());
        assert!(scene.isolation.metrics.isolation_repairs_failed.get() > 0);
        assert!(scene.isolation.state().cuts_tunnels());

        program(dir.path(), "#!/bin/sh\nexec nft \"$@\"\n");
        scene.wait_for(State::Enforced).await;
        scene.assert_as_declared("afterwards").await;
        assert_eq!(scene.drifts(Kind::Rules), 1);
    });
}

#[test]
fn an_interface_with_another_name_is_not_isolated() {
    isolated_in("isolation::tests::drift", "an_interface_with_another_name_is_not_isolated", async {
        let scene = Scene::watched().await;
        run("ip link set kn0 down");
        run("ip link set kn0 name kn1");
        scene.wait_for(State::Unrepairable).await;
        assert_eq!(scene.drifts(Kind::Interface), 1);
        run("ip link set kn1 name kn0");
        scene.wait_for(State::Enforced).await;
    });
}

#[test]
fn a_leak_outweighs_rules_that_are_in_force() {
    isolated_in("isolation::tests::drift", "a_leak_outweighs_rules_that_are_in_force", async {
        let scene = Scene::watched().await;
        scene.isolation.leaked(Some("a device reached another".to_owned()));
        scene.wait_for(State::Leaking).await;
        nft("flush table inet cloudlink");
        let begun = Instant::now();
        while scene.drifts(Kind::Rules) == 0 {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        scene.wait_for(State::Leaking).await;
        scene.isolation.leaked(None);
        scene.wait_for(State::Enforced).await;
    });
}
