//! Somebody at a terminal: a program in a pseudo-terminal, what it shows, and what is typed.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portable_pty::{Child, CommandBuilder, MasterPty, PtyPair, PtySize, SlavePty, native_pty_system};

use crate::cli::Cli;
use crate::poll::wait_for;
use crate::program::binary;

/// Until something is shown. The machine may be busy.
const SHOW_LIMIT: Duration = Duration::from_secs(40);
/// Of `c_lflag`, on Linux: lines are edited, and what is typed is shown, by the terminal itself.
const ICANON_AND_ECHO: u32 = 0o12;
/// What is kept of what was shown.
const SEEN_BYTES_MAX: usize = 1024 * 1024;

/// A command line at a terminal.
pub struct Terminal {
    master: Box<dyn MasterPty + Send>,
    /// Kept open until the program has ended, so that the terminal is one all the time.
    slave: Option<Box<dyn SlavePty + Send>>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Ends when all was shown.
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Runs `cloudlink` in a window of this size.
    pub fn start(cli: &Cli, arguments: &[impl AsRef<OsStr>], columns: u16, rows: u16) -> anyhow::Result<Self> {
        let PtyPair { master, slave } = native_pty_system().openpty(size(columns, rows))?;
        let mut command = CommandBuilder::new(binary("cloudlink")?);
        command.args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CLOUDLINK_") {
                command.env_remove(name);
            }
        }
        for (name, value) in cli.environment() {
            command.env(name, value);
        }
        command.env("TERM", "xterm");
        let child = slave.spawn_command(command)?;
        let (mut screen, keys) = (master.try_clone_reader()?, master.take_writer()?);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&seen);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                if shown.len() < SEEN_BYTES_MAX {
                    shown.extend_from_slice(&bytes[..count]);
                }
            }
        });
        Ok(Self { master, slave: Some(slave), keys, child, seen, reader })
    }

    pub fn type_in(&mut self, keys: &str) -> anyhow::Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    pub fn resize(&self, columns: u16, rows: u16) -> anyhow::Result<()> {
        self.master.resize(size(columns, rows))
    }

    /// All that was shown.
    #[must_use]
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until this is shown.
    pub async fn shows(&self, part: &str) -> anyhow::Result<()> {
        self.shows_within(part, SHOW_LIMIT).await
    }

    pub async fn shows_within(&self, part: &str, limit: Duration) -> anyhow::Result<()> {
        wait_for(&format!("{part:?} on the terminal"), limit, async || {
            let seen = self.seen();
            ensure!(seen.contains(part), "{seen}");
            Ok(())
        })
        .await
    }

    /// Types a line, and waits until something is shown because of it. `shown` is not in the line itself, which is shown, too.
    pub async fn answers(&mut self, line: &str, shown: &str) -> anyhow::Result<()> {
        ensure!(!line.contains(shown) && !self.seen().contains(shown), "{shown:?} would be seen anyway");
        self.type_in(&format!("{line}\r"))?;
        self.shows(shown).await
    }

    /// Waits for the end of the program, and gives its exit code.
    pub async fn ends(&mut self) -> anyhow::Result<u32> {
        let seen = self.seen();
        let child = &mut self.child;
        let status = wait_for("the end of the command line", SHOW_LIMIT, async || {
            child.try_wait()?.with_context(|| format!("it goes on: {seen}"))
        })
        .await?;
        // What it said last may still be on its way.
        drop(self.slave.take());
        wait_for("the rest of what was shown", SHOW_LIMIT, async || {
            ensure!(self.reader.is_finished(), "somebody else has the terminal");
            Ok(())
        })
        .await?;
        Ok(status.exit_code())
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.process_id().context("it has no process")?;
        Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
    }

    /// Whether keys go to the program as they are, and the terminal shows nothing by itself.
    pub fn is_raw(&self) -> anyhow::Result<bool> {
        let termios = self.master.get_termios().context("no terminal")?;
        Ok(termios.local_flags.bits() & ICANON_AND_ECHO == 0)
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("child", &self.child).finish_non_exhaustive()
    }
}

impl Drop for Terminal {
    #[expect(clippy::print_stderr, reason = "a failing test shows what was on the screen")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- terminal ---\n{}", self.seen());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> PtySize {
    PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }
}
