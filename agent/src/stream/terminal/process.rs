//! What runs in a terminal: a program, and all that it has started there.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long processes may take to end after they were told that the terminal is gone. Then they are killed.
const HANG_UP_WITHIN: Duration = Duration::from_millis(500);
/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often what is left is killed: a process may start others meanwhile.
const KILLS_MAX: u32 = 50;
/// How long a killed program may take to be gone: one that waits for a disk is gone later.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// The session of a terminal, in the sense of the system: the program leads it, and what it starts is in it, in the foreground or
/// not, unless it leaves it to be a service of its own.
#[derive(Debug)]
pub(super) struct Session {
    leader: Child,
    id: i32,
    status: Option<ExitStatus>,
}

impl Session {
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        let leader = command.spawn()?;
        let id = leader.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| io::Error::other("it has no id"))?;
        Ok(Self { leader, id, status: None })
    }

    /// How the program ended. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.leader.wait().await?;
        self.status = Some(status);
        Ok(status)
    }

    /// Ends all that is left: it is told that the terminal is gone, and then killed.
    pub(super) async fn end(mut self) {
        self.signal(Signal::SIGHUP);
        // What was stopped hears only then.
        self.signal(Signal::SIGCONT);
        let deadline = Instant::now() + HANG_UP_WITHIN;
        while self.is_alive() && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
        for _ in 0..KILLS_MAX {
            if !self.is_alive() {
                return;
            }
            self.signal(Signal::SIGKILL);
            sleep(LOOK_EVERY).await;
        }
        if timeout(GONE_WITHIN, self.leader.wait()).await.is_err() {
            tracing::error!(process.id = self.id, "a program does not end, although it was killed");
        }
    }

    fn is_alive(&mut self) -> bool {
        let leader_is_alive = match self.leader.try_wait() {
            Ok(status) => status.is_none(),
            Err(_) => false,
        };
        leader_is_alive || !members(self.id).is_empty()
    }

    fn signal(&mut self, signal: Signal) {
        // Its number is its own until it was waited for, and as long as anything is in its session.
        let leader = self.leader.id().map(|_| Pid::from_raw(self.id));
        for process in members(self.id).into_iter().chain(leader) {
            let _ = kill(process, signal);
        }
    }
}

/// The processes of a session that are not gone.
fn members(session: i32) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|id| is_member(*id, session)).map(Pid::from_raw).collect()
}

fn is_member(id: i32, session: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| session_of(&stat) == Some(session))
}

/// The session of a process that is not gone. Its name, in brackets, may hold anything.
fn session_of(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_of_a_process_is_read_whatever_its_name_is() {
        assert_eq!(session_of("7 (sh) S 1 7 42 34816 7 4194560"), Some(42));
        assert_eq!(session_of("7 (a) Z 9 (b) S 1 7 42 34816"), Some(42));
        assert_eq!(session_of("7 (sh) Z 1 7 42 0 -1"), None, "it is gone");
        assert_eq!(session_of("7 (sh"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(session_of(&own), nix::unistd::getsid(None).ok().map(Pid::as_raw));
    }
}
