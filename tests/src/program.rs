//! A program that runs until it is no longer needed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How long a program may take to stop after it was asked to. Then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// Of the log of a program that a failing test ran.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// The path of one of the workspace's programs: beside the running one, where cargo puts them.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut directory = own.parent().context("programs are in a directory")?;
    if directory.ends_with("deps") {
        directory = directory.parent().context("deps is in the directory of a profile")?;
    }
    let path = directory.join(name);
    anyhow::ensure!(path.is_file(), "{} is not built: cargo build --workspace --bins", path.display());
    Ok(path)
}

/// A command of this program, which gets SIGTERM when the thread that starts it ends: a test runner that is killed drops
/// nothing.
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A running program. Dropped, it is stopped, and killed if it does not.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program in a process group of its own, so that Ctrl-C reaches only who started it. What it prints is
    /// appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("Linux' process ids are below 2^22"))
    }

    /// After `SIGSTOP` it has stopped: each of its threads goes on until it is interrupted.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot signal {}", self.name))?;
        while signal == Signal::SIGSTOP && !self.has_stopped()? {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether no thread runs (`proc_pid_stat(5)`, the field behind the name).
    fn has_stopped(&self) -> anyhow::Result<bool> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if !matches!(state, Some('T' | 'Z')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error with the end of the log, if the program is no longer running.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.exit_status()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended with {status}:\n{}", self.name, self.log_tail()?),
        }
    }

    /// Asks it to stop, waits, and kills it and its children if it takes too long. Does nothing when it has ended.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.exit_status()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        match self.wait(STOP_LIMIT)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Kills it and its children at once.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        // The group may be gone already.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        Ok(self.child.wait()?)
    }

    /// Waits for its end: short blocking looks, as it is also called from `drop`.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that it printed.
    pub fn log_text(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    fn log_tail(&self) -> anyhow::Result<String> {
        let mut file = File::open(&self.log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    }
}

impl Drop for Program {
    #[expect(clippy::print_stderr, reason = "a failing test shows what its programs said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log_tail().unwrap_or_default());
        }
        if self.stop().is_err() {
            let _ = self.kill();
        }
    }
}
