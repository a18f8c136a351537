//! Network namespaces: a device in one, a gateway in another. None of them has a name: they vanish with their threads.

use std::fs::OpenOptions;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

/// Runs a test on a thread that is in a network namespace of its own, which vanishes with it. All that the test starts is in
/// there, too. Only root can do that: for anybody else the test is skipped, and says so.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let name = thread::current().name().unwrap_or_default().to_owned();
    let thread = thread::spawn(move || {
        if let Some(what) = lacking() {
            // Not `eprintln!`, which the test runner keeps to itself while a test passes.
            let _ = writeln!(std::io::stderr(), "skipped: {name}: {what}");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a test on a thread with mounts of its own, which vanish with it. Only root can do that: for anybody else the test is
/// skipped, and says so.
pub(crate) fn in_mounts<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let name = thread::current().name().unwrap_or_default().to_owned();
    let thread = thread::spawn(move || {
        if !geteuid().is_root() {
            let _ = writeln!(std::io::stderr(), "skipped: {name}: only root may make mounts");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(&["--make-rprivate", "/"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Takes a program away, wherever it is.
pub(crate) fn hide_program(name: &str) {
    let path = std::env::var("PATH").unwrap();
    for directory in path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]) {
        let program = Path::new(directory).join(name);
        if program.is_file() {
            mount(&["--bind", "/dev/null", program.to_str().unwrap()]);
        }
    }
}

/// A disk of 64 KiB.
pub(crate) fn mount_small_disk(at: &Path) {
    mount(&["-t", "tmpfs", "-o", "size=64k", "small", at.to_str().unwrap()]);
}

fn mount(arguments: &[&str]) {
    let output = Command::new("mount").args(arguments).output().unwrap();
    assert!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn lacking() -> Option<&'static str> {
    let has = |program| Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !geteuid().is_root() {
        Some("only root may make network namespaces")
    } else if OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        Some("there is no /dev/net/tun")
    } else if !["openvpn", "ip"].into_iter().all(has) {
        Some("it takes the packages openvpn and iproute2")
    } else {
        None
    }
}

/// The server's side of the tunnel: a thread in a namespace of its own.
pub(crate) struct Gateway {
    errands: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        let (errands, sent) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for errand in sent {
                errand();
            }
        });
        Self { errands }
    }

    /// Does something over there.
    pub(crate) fn run<T: Send + 'static>(&self, errand: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.errands.send(Box::new(move || done.send(errand()).unwrap())).unwrap();
        result.recv().unwrap()
    }
}

/// Runs `ip` in the namespace of the caller.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
