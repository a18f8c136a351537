//! Starts a stock OpenVPN client, looks after it, and listens to what it says.
//!
//! The client reconnects by itself. It is started again only when it ends, which is rare, or when it is to use another
//! certificate. How it is doing shows only in what it prints.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access, getppid};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::TunnelError;
use super::profile::{self, Profile};
use crate::backoff::{Backoff, jitter};
use crate::config::{Config, Started};
use crate::disk;
use crate::problem::shown;

/// What makes of the agent's program the client. See [`become_if_asked`].
const SUBCOMMAND: &str = "openvpn-client";
/// What the client said last, for `doctor`: a file in the state directory.
pub const LOG_FILE_NAME: &str = "openvpn.log";
/// Such a file is not larger, in bytes.
pub const LOG_BYTES_MAX: u64 = 64 * 1024;

const PROGRAM_NAME: &str = "openvpn";
/// Where system programs are, for services whose `PATH` has only those of users.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How many of the client's last lines are kept.
const LINES_MAX: usize = 24;
/// Of these, so many are told with an error.
const TOLD_LINES_MAX: usize = 4;
/// A line is cut after this, in bytes.
const LINE_BYTES_MAX: usize = 512;
/// Lines that wait to be looked at. A client that says more is held up.
const LINES_WAITING_MAX: usize = 64;
/// How long a client may take to end after it was asked to. Then it is killed.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How long its last words are waited for when it has ended.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);
/// After so many attempts in a row a client is not waited for any longer. It goes on trying.
const ATTEMPTS_MAX: u32 = 3;

/// A client that runs, or will soon.
#[derive(Debug)]
pub struct Client {
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Says what is to run, and hears how that is doing.
#[derive(Clone, Debug)]
pub struct Handle {
    plan: watch::Sender<Plan>,
    status: watch::Receiver<Status>,
}

/// A program, and what it is told.
pub type Start = (PathBuf, Profile);

/// What is to run.
#[derive(Clone, Debug, Default)]
struct Plan {
    start: Option<Start>,
    /// With another one the client is started anew.
    generation: u64,
}

/// How the client is doing.
#[derive(Clone, Debug, Default)]
struct Status {
    generation: u64,
    /// There is a tunnel.
    is_up: bool,
    /// Attempts in a row that came to nothing.
    failures: u32,
    /// The server has proven itself in the attempt under way: what is heard from now on is the server's word.
    is_proven: bool,
    /// The server let the client know that it is not wanted, since there was a tunnel.
    is_refused: bool,
    /// How it ended, as long as no other was started.
    ended: Option<String>,
    said: VecDeque<String>,
}

/// What a line says about the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// The server's certificate holds.
    Proven,
    Up,
    /// The client begins again.
    Again,
    Refused,
}

impl Client {
    /// Looks after a client that has nothing to do yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let (plan, planned) = watch::channel(Plan::default());
        let (told, status) = watch::channel(Status::default());
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            profile: profile::path(config),
            log: config.state_dir.join(LOG_FILE_NAME),
            plan: planned,
            status: told,
            stop: stop.clone(),
        };
        Self { handle: Handle { plan, status }, stop, task: tokio::spawn(supervisor.run()) }
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends the client, and waits for that.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

impl Handle {
    /// Starts this program with this profile, in place of a client that runs.
    pub fn start(&self, program: PathBuf, profile: Profile) {
        self.plan.send_modify(|plan| {
            plan.generation += 1;
            plan.start = Some((program, profile));
        });
    }

    /// Ends the client, and starts none until there is another profile.
    pub fn rest(&self) {
        self.plan.send_modify(|plan| {
            plan.generation += 1;
            plan.start = None;
        });
    }

    /// Uses this profile from the next start on. A running client goes on with what it has read.
    pub fn rename(&self, renamed: Profile) {
        self.plan.send_modify(|plan| {
            if let Some((_, profile)) = &mut plan.start {
                *profile = renamed;
            }
        });
    }

    /// Waits until the client that was started last has a tunnel.
    ///
    /// # Errors
    /// When it ended, was refused, or was waited for long enough.
    pub async fn up(mut self, within: Duration) -> Result<(), TunnelError> {
        let generation = self.plan.borrow().generation;
        match timeout(within, self.status.wait_for(|status| status.verdict(generation).is_some())).await {
            Ok(Ok(status)) => return status.verdict(generation).unwrap_or(Ok(())),
            Ok(Err(_)) => {
                let what = "the OpenVPN client is no longer looked after".to_owned();
                return Err(TunnelError::Client { what, said: Vec::new(), is_refusal: false });
            }
            Err(_) => {}
        }
        Err(TunnelError::TimedOut { within, said: self.status.borrow().last_words() })
    }
}

impl Status {
    /// `None` while there is hope.
    fn verdict(&self, generation: u64) -> Option<Result<(), TunnelError>> {
        if self.generation != generation {
            return None;
        }
        let failed = |what: String| {
            Some(Err(TunnelError::Client { what, said: self.last_words(), is_refusal: self.is_refused }))
        };
        if self.is_up {
            Some(Ok(()))
        } else if let Some(ended) = &self.ended {
            failed(ended.clone())
        } else if self.is_refused {
            failed("the server refuses the tunnel".to_owned())
        } else if self.failures >= ATTEMPTS_MAX {
            failed(format!("no tunnel yet: {} attempts of the OpenVPN client came to nothing", self.failures))
        } else {
            None
        }
    }

    fn last_words(&self) -> Vec<String> {
        self.said.iter().skip(self.said.len().saturating_sub(TOLD_LINES_MAX)).cloned().collect()
    }

    /// Takes in a line. Whether it is worth being kept on the disk: a state that begins, not one that lasts.
    fn hear(&mut self, line: &str) -> bool {
        if self.said.len() == LINES_MAX {
            self.said.pop_front();
        }
        self.said.push_back(line.to_owned());
        match Sign::of(line) {
            Some(Sign::Proven) => {
                self.is_proven = true;
                false
            }
            Some(Sign::Up) => {
                *self = Self { is_up: true, failures: 0, is_refused: false, ..std::mem::take(self) };
                true
            }
            Some(Sign::Again) => {
                self.is_up = false;
                self.is_proven = false;
                self.failures = self.failures.saturating_add(1);
                self.failures == 1
            }
            // Before that, an alert is anybody's who is on the way.
            Some(Sign::Refused) if !self.is_proven => false,
            Some(Sign::Refused) => {
                let is_news = !self.is_refused;
                self.is_up = false;
                self.is_refused = true;
                is_news
            }
            None => false,
        }
    }
}

impl Sign {
    /// The words are those of OpenVPN 2.4 to 2.7, and of the OpenSSL that it is built with.
    fn of(line: &str) -> Option<Self> {
        const REFUSALS: [&str; 6] = [
            "AUTH_FAILED",
            "alert certificate ",
            "alert bad certificate",
            "alert unsupported certificate",
            "alert unknown ca",
            "alert access denied",
        ];
        if line.starts_with("Initialization Sequence Completed") {
            Some(Self::Up)
        } else if line.starts_with("VERIFY OK: depth=0") {
            Some(Self::Proven)
        } else if line.starts_with("SIGUSR1[") {
            Some(Self::Again)
        } else if REFUSALS.iter().any(|refusal| line.contains(refusal)) {
            Some(Self::Refused)
        } else {
            None
        }
    }
}

/// Runs one client after the other.
struct Supervisor {
    profile: PathBuf,
    log: PathBuf,
    plan: watch::Receiver<Plan>,
    status: watch::Sender<Status>,
    stop: CancellationToken,
}

/// Why a client no longer runs.
enum Ended {
    /// The agent stops.
    Stopped,
    /// Another one is to be started.
    Replaced,
    /// By itself, or it never began.
    Failed(String),
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        while let Some((generation, program, profile)) = self.next_plan().await {
            let begun = Instant::now();
            match self.run_client(generation, &program, &profile).await {
                Ended::Stopped => return,
                Ended::Replaced => backoff = Backoff::default(),
                Ended::Failed(how) => {
                    self.handle_failure(how);
                    backoff.link_ended(begun.elapsed());
                    let wait = backoff.next(jitter());
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = sleep(wait) => {}
                        Ok(()) = replaced(&mut self.plan, generation) => backoff = Backoff::default(),
                    }
                }
            }
        }
    }

    /// `None` when the agent stops.
    async fn next_plan(&mut self) -> Option<(u64, PathBuf, Profile)> {
        let plan = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            plan = self.plan.wait_for(|plan| plan.start.is_some()) => plan.ok()?.clone(),
        };
        plan.start.map(|(program, profile)| (plan.generation, program, profile))
    }

    /// One client, from its start to its end.
    async fn run_client(&mut self, generation: u64, program: &Path, profile: &Profile) -> Ended {
        self.status.send_modify(|status| *status = Status { generation, ..Status::default() });
        if let Err(source) = profile.write(&self.profile) {
            return Ended::Failed(format!("cannot write {}: {source}", self.profile.display()));
        }
        let mut child = match self.spawn(program) {
            Ok(child) => child,
            Err(source) => return Ended::Failed(format!("cannot start {}: {source}", program.display())),
        };
        tracing::info!(program = %program.display(), pid = child.id(), "the OpenVPN client is started");
        let mut lines = lines(&mut child);
        let ended = loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break Ended::Stopped,
                _ = replaced(&mut self.plan, generation) => break Ended::Replaced,
                Some(line) = lines.recv() => self.handle_line(&line),
                status = child.wait() => break Ended::Failed(match status {
                    Ok(status) => format!("the OpenVPN client ended with {status}"),
                    Err(error) => format!("the OpenVPN client cannot be waited for: {error}"),
                }),
            }
        };
        if !matches!(ended, Ended::Failed(_)) {
            end(&mut child).await;
        }
        let listen = async {
            while let Some(line) = lines.recv().await {
                self.handle_line(&line);
            }
        };
        let _ = timeout(LAST_WORDS_WITHIN, listen).await;
        self.status.send_modify(|status| status.is_up = false);
        ended
    }

    fn spawn(&self, program: &Path) -> io::Result<Child> {
        // Whatever takes the place of the agent's file on the disk, this is what runs now.
        Command::new("/proc/self/exe")
            .arg0("cloudlink-agent")
            .arg(SUBCOMMAND)
            .arg(std::process::id().to_string())
            .arg(program)
            .arg("--config")
            .arg(&self.profile)
            .current_dir("/")
            // What it has to tell a service manager is not about the agent.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the agent, which has something to say through the tunnel before that ends.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    fn handle_line(&self, line: &str) {
        tracing::debug!(line, "the OpenVPN client says");
        let mut keep = false;
        self.status.send_modify(|status| keep = status.hear(line));
        if keep {
            self.keep_log();
        }
    }

    fn handle_failure(&self, how: String) {
        self.status.send_modify(|status| status.ended = Some(how.clone()));
        tracing::warn!(said = ?self.status.borrow().last_words(), "{how}");
        self.keep_log();
    }

    /// Only when a state begins: each write wears a flash disk.
    fn keep_log(&self) {
        let mut text = String::new();
        {
            let status = self.status.borrow();
            for line in status.said.iter().chain(&status.ended) {
                text.push_str(line);
                text.push('\n');
            }
        }
        if let Err(error) = disk::write_atomically(&self.log, text.as_bytes(), disk::MODE_SECRET) {
            tracing::warn!(%error, "cannot keep what the OpenVPN client said");
        }
    }
}

async fn replaced(plan: &mut watch::Receiver<Plan>, generation: u64) -> Result<(), watch::error::RecvError> {
    plan.wait_for(|plan| plan.generation != generation).await.map(drop)
}

/// Asks the client to end, and kills it if it does not.
async fn end(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It is not yet waited for, so the number cannot belong to anything else.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if timeout(END_WITHIN, child.wait()).await.is_err() {
        tracing::warn!("the OpenVPN client did not end: it is killed");
        let _ = child.kill().await;
    }
}

/// What the client says, in lines that are safe to be logged.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_WAITING_MAX);
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(read_lines(stdout, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(read_lines(stderr, sender));
    }
    lines
}

async fn read_lines(mut pipe: impl AsyncRead + Unpin, lines: mpsc::Sender<String>) {
    let mut chunk = [0; 1024];
    let mut line = Vec::new();
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        for byte in &chunk[..count] {
            if *byte == b'\n' {
                if lines.send(shown(String::from_utf8_lossy(&line).trim_end())).await.is_err() {
                    return;
                }
                line.clear();
            } else if line.len() < LINE_BYTES_MAX {
                line.push(*byte);
            }
        }
    }
}

/// The program that is started.
///
/// # Errors
/// When none is configured and none is found.
pub fn program(started: &Started) -> Result<PathBuf, TunnelError> {
    match &started.program {
        Some(program) => Ok(program.clone()),
        None => search(&std::env::var_os("PATH").unwrap_or_default()).ok_or(TunnelError::NoProgram),
    }
}

fn search(path: &OsStr) -> Option<PathBuf> {
    let directories = std::env::split_paths(path).filter(|directory| directory.is_absolute());
    let programs =
        directories.chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).map(|directory| directory.join(PROGRAM_NAME));
    programs.into_iter().find(|program| is_executable(program))
}

/// Whether this is a program.
#[must_use]
pub fn is_executable(program: &Path) -> bool {
    program.is_file() && access(program, AccessFlags::X_OK).is_ok()
}

/// Becomes the client, if the command line is the one that the agent gives to a process for it: `SUBCOMMAND`, the agent's
/// process id, the program and its arguments. The system is told to end the client when the agent ends, in whatever way: one
/// that is left over would keep the tunnel to itself. Only returns when that is not asked for, or what is in the way.
pub fn become_if_asked(mut command_line: impl Iterator<Item = OsString>) -> Option<io::Error> {
    command_line.nth(1).filter(|subcommand| subcommand == SUBCOMMAND)?;
    let parent = command_line.next().and_then(|parent| parent.to_str()?.parse().ok());
    let Some((parent, program)) = parent.zip(command_line.next()) else {
        return Some(io::Error::other("only the agent itself starts it"));
    };
    if let Err(errno) = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM) {
        return Some(errno.into());
    }
    // The agent may have ended before the system was told.
    if getppid() != Pid::from_raw(parent) {
        return Some(io::Error::other("the agent has ended"));
    }
    let error = std::process::Command::new(&program).args(command_line).exec();
    Some(io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn heard(lines: &[&str]) -> Status {
        let mut status = Status { generation: 1, ..Status::default() };
        for line in lines {
            status.hear(line);
        }
        status
    }

    const PROVEN: &str = "VERIFY OK: depth=0, CN=link.example.com";
    const AGAIN: &str = "SIGUSR1[soft,connection-reset] received, process restarting";

    #[test]
    fn a_tunnel_is_up_from_the_clients_word_to_its_next_attempt() {
        assert!(heard(&["TUN/TAP device tun0 opened"]).verdict(1).is_none());
        let up = "Initialization Sequence Completed";
        assert!(heard(&[up]).verdict(1).unwrap().is_ok());
        assert!(heard(&[up]).verdict(2).is_none(), "that is another client's");
        assert!(heard(&[up, AGAIN]).verdict(1).is_none());
        assert!(heard(&[AGAIN, AGAIN, AGAIN, up]).verdict(1).unwrap().is_ok());
    }

    #[test]
    fn attempts_that_come_to_nothing_end_the_waiting_with_the_last_words() {
        let error = heard(&["one", AGAIN, "two", AGAIN, "three", AGAIN]).verdict(1).unwrap().unwrap_err();
        assert!(!error.is_refusal());
        let said = format!("{AGAIN} | two | {AGAIN}");
        assert!(!error.to_string().contains("one") && error.to_string().contains(&said[..20]), "{error}");
    }

    #[test]
    fn a_refusal_is_known_by_its_words() {
        for line in [
            "AUTH: Received control message: AUTH_FAILED,TEMP[backoff 300]:revoked",
            "OpenSSL: error:0A000415:SSL routines::sslv3 alert certificate expired",
            "OpenSSL: error:0A000418:SSL routines::tlsv1 alert unknown ca",
            "OpenSSL: error:0A00045C:SSL routines::tlsv13 alert certificate required",
        ] {
            assert!(heard(&[PROVEN, line]).verdict(1).unwrap().unwrap_err().is_refusal(), "{line}");
            for forged in [&[line][..], &[PROVEN, AGAIN, line]] {
                assert!(heard(forged).verdict(1).is_none(), "the server had not proven itself: {forged:?}");
            }
        }
        let up_again = heard(&[PROVEN, "AUTH_FAILED", "Initialization Sequence Completed", AGAIN]);
        assert!(!up_again.is_refused);
    }

    #[test]
    fn only_the_beginning_of_a_state_is_kept_on_the_disk() {
        let mut status = Status::default();
        let kept = [AGAIN, AGAIN, "x", "Initialization Sequence Completed", AGAIN].map(|line| status.hear(line));
        assert_eq!(kept, [true, false, false, true, true]);
    }

    #[test]
    fn not_more_than_the_last_lines_are_remembered() {
        let mut status = Status::default();
        for number in 0..1000 {
            status.hear(&number.to_string());
        }
        assert_eq!((status.said.len(), status.last_words().join(" ")), (LINES_MAX, "996 997 998 999".to_owned()));
    }

    #[tokio::test]
    async fn lines_are_cut_and_made_safe() {
        let long = [&[b'a'; 2000][..], b"\n\x1b[31mred\r\n\xff\nno end"].concat();
        let (sender, mut lines) = mpsc::channel(8);
        read_lines(&long[..], sender).await;
        let line = lines.recv().await.unwrap();
        assert!(line.starts_with("aaa") && line.len() < LINE_BYTES_MAX, "{line}");
        assert_eq!(lines.recv().await.unwrap(), "\\u{1b}[31mred");
        assert_eq!(lines.recv().await.unwrap(), "\u{fffd}");
        assert_eq!(lines.recv().await, None);
    }

    #[test]
    fn the_program_is_found_in_the_path_and_only_if_it_can_be_executed() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("openvpn");
        std::fs::write(&program, "").unwrap();
        assert_ne!(search(dir.path().as_os_str()), Some(program.clone()));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(search(dir.path().as_os_str()), Some(program));
        assert!(search(OsStr::new("relative:.")).is_none_or(|found| found.is_absolute()));
    }
}
