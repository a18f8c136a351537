//! Doing harm, and mending it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::libc::{major, minor};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::sleep;

use super::plan::Harm;
use crate::cluster::Centre;

/// Where the kernel limits what processes read and write.
const BLKIO: &str = "/sys/fs/cgroup/blkio";
/// Of a slow disk: less than a commit needs of a healthy one.
const WRITES_PER_SECOND: u32 = 20;

impl Harm {
    /// Does it for so long, and mends it. Says whether it can be done on this machine.
    pub async fn run(self, centre: &mut Centre, lasts: Duration) -> anyhow::Result<bool> {
        match self {
            Self::Kill { node } => {
                centre.node(node).kill()?;
                sleep(lasts).await;
                centre.node(node).start_again().await?;
            }
            Self::Freeze { node } => {
                centre.node(node).program().signal(Signal::SIGSTOP)?;
                sleep(lasts).await;
                centre.node(node).program().signal(Signal::SIGCONT)?;
            }
            Self::Stop { node } => {
                let status = centre.node(node).stop()?;
                anyhow::ensure!(status.success(), "{self}, and ends with {status}");
                sleep(lasts).await;
                centre.node(node).start_again().await?;
            }
            Self::Cut { node, peers } => {
                centre.cut(node, peers)?;
                sleep(lasts).await;
                centre.mend()?;
            }
            Self::Clock { node, seconds } => {
                if !centre.put_clock(node, seconds)? {
                    return Ok(false);
                }
                sleep(lasts).await;
                centre.put_clock(node, 0)?;
            }
            Self::DatabaseKilled => {
                centre.database.kill()?;
                sleep(lasts).await;
                centre.database.start_again().await?;
            }
            Self::DatabaseSwitched => {
                centre.database.switch_over().await?;
                sleep(lasts).await;
                centre.database.follow_again().await?;
            }
            Self::SlowDisk => {
                let Some(slow) = SlowDisk::of(&centre.path("."), &centre.database.pids())? else { return Ok(false) };
                sleep(lasts).await;
                drop(slow);
            }
            Self::NatsKilled => {
                centre.nats.program().kill()?;
                sleep(lasts).await;
                centre.nats.start_again().await?;
            }
        }
        Ok(true)
    }
}

/// A disk that takes only a few writes a second, for some processes and those that they start, as long as this is there.
#[derive(Debug)]
struct SlowDisk(PathBuf);

impl SlowDisk {
    /// Of the disk that this file is on. `None`: the kernel does not let us.
    fn of(file: &Path, pids: &[Pid]) -> anyhow::Result<Option<Self>> {
        let Some(disk) = disk(file)? else { return Ok(None) };
        let group = Path::new(BLKIO).join(format!("cloudlink-{}", std::process::id()));
        if std::fs::create_dir(&group).is_err() {
            return Ok(None);
        }
        let slow = Self(group);
        if std::fs::write(slow.0.join("blkio.throttle.write_iops_device"), format!("{disk} {WRITES_PER_SECOND}"))
            .is_err()
        {
            return Ok(None);
        }
        for first in pids {
            let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
            for pid in std::iter::once(first.to_string().as_str()).chain(children.split_whitespace()) {
                // One that has ended writes nothing any more.
                let _ = std::fs::write(slow.0.join("cgroup.procs"), pid);
            }
        }
        Ok(Some(slow))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let left = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in left.split_whitespace() {
            let _ = std::fs::write(Path::new(BLKIO).join("cgroup.procs"), pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The whole disk that a file is on, as the kernel numbers it: it limits no partitions.
fn disk(file: &Path) -> anyhow::Result<Option<String>> {
    let device = std::fs::metadata(file)?.dev();
    let known = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    if !known.exists() {
        return Ok(None);
    }
    let known = std::fs::canonicalize(known)?;
    let whole = if known.join("partition").exists() { known.parent().context("of a disk")? } else { &known };
    Ok(Some(std::fs::read_to_string(whole.join("dev"))?.trim().to_owned()))
}
