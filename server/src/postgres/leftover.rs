//! What a killed server leaves behind: a Postgres that still runs, or its lock file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long processes may take to go after SIGQUIT.
const QUIT_WITHIN: Duration = Duration::from_secs(10);

/// Why what was left behind is still there.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    #[error("processes {pids:?} of an earlier Postgres still run in {} and do not stop", dir.display())]
    Running { pids: Vec<i32>, dir: PathBuf },
    #[error("cannot stop process {pid} of an earlier Postgres")]
    Signal {
        pid: i32,
        #[source]
        source: nix::Error,
    },
    #[error("cannot remove {}", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Stops whatever Postgres still runs in the directory, and removes its lock file.
///
/// The lock file alone cannot be trusted: its process id may be another program's by now. What works in the directory is
/// asked of the kernel instead.
pub(super) async fn clear(data_dir: &Path, stop_within: Duration) -> Result<(), LeftoverError> {
    let pid_file = data_dir.join("postmaster.pid");
    if !pid_file.exists() {
        return Ok(());
    }
    let residents = residents(data_dir);
    if !residents.is_empty() {
        tracing::warn!(?residents, "an earlier Postgres still runs: stopping it");
        let postmaster = read_pid(&pid_file).filter(|pid| residents.contains(pid));
        // Without their postmaster the others go by themselves.
        send(postmaster.as_slice(), Signal::SIGINT)?;
        if !gone(data_dir, stop_within).await {
            send(&self::residents(data_dir), Signal::SIGQUIT)?;
            if !gone(data_dir, QUIT_WITHIN).await {
                return Err(LeftoverError::Running { pids: self::residents(data_dir), dir: data_dir.to_owned() });
            }
        }
    }
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LeftoverError::Remove { path: pid_file, source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn gone(data_dir: &Path, within: Duration) -> bool {
    let until = Instant::now() + within;
    while !residents(data_dir).is_empty() {
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

fn send(pids: &[i32], signal: Signal) -> Result<(), LeftoverError> {
    for &pid in pids {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(source) => return Err(LeftoverError::Signal { pid, source }),
        }
    }
    Ok(())
}

fn read_pid(pid_file: &Path) -> Option<i32> {
    fs::read_to_string(pid_file).ok()?.lines().next()?.trim().parse().ok()
}

/// The processes of Postgres that work in the directory: all of them do, from start to end.
fn residents(data_dir: &Path) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_resident(*pid, data_dir)).collect()
}

fn is_resident(pid: i32, data_dir: &Path) -> bool {
    let works_there = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir);
    works_there && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres")
}
