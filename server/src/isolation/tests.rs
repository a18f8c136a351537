//! Real rules in a real kernel, in a network namespace for each test.

use std::process::Command;

use super::*;
use crate::config;
use crate::tunnel::conn::tests::isolated::isolated_in;

const MODULE: &str = "isolation::tests";
const INTERFACE: &str = "kn0";

fn slice() -> Slice {
    Slice::new("10.9.0.0/16".parse().unwrap(), 24, "fd12:3456:789a::/48".parse().unwrap(), 3).unwrap()
}

fn config() -> Config {
    let tunnel = config::Tunnel { interface: INTERFACE.parse().unwrap(), ..config::Tunnel::default() };
    Config { tunnel, ..Config::default() }
}

/// The rules of a node, in force.
async fn enforced() -> Arc<Isolation> {
    let kernel = Kernel::find().unwrap();
    let isolation = Isolation::new(Policy::new(&config(), &slice()), Some(kernel));
    isolation.apply(&*isolation.elements.lock().await).await.unwrap();
    isolation.set_rules(State::Enforced);
    Arc::new(isolation)
}

fn nft(arguments: &str) -> String {
    let done = Command::new("nft").args(arguments.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn in_seconds(seconds: f64) -> Instant {
    Instant::now() + Duration::from_secs_f64(seconds)
}

#[test]
fn the_rules_are_set_as_a_whole_or_not_at_all() {
    isolated_in(MODULE, "the_rules_are_set_as_a_whole_or_not_at_all", async {
        let isolation = enforced().await;
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
        let isolation = enforced().await;
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
