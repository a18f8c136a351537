//! A network namespace for each test, gone with its process.

use std::process::Command;

use tokio::runtime::Builder;

/// Set where a test runs in its own network already.
const INSIDE: &str = "CLOUDLINK_TEST_ISOLATED";

/// Runs a test in a process and a network of its own, with the loopback interface up. Needs root: without, it says so, and is
/// over.
pub(super) fn isolated(name: &str, test: impl Future<Output = ()>) {
    isolated_in("tunnel::conn::tests", name, test);
}

/// The same for the tests of another module.
pub(crate) fn isolated_in(module: &str, name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("{name}: skipped, it needs root for a network namespace and a tun interface");
    }
    let status = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success(), "see above");
}
