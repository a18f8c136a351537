//! What a process takes, as the kernel counts it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Processor time of the whole machine since it began, in user and kernel mode, interrupts included (proc(5), `/proc/stat`).
pub fn machine_cpu() -> Result<Duration> {
    /// The position of each: user, nice, system, irq, softirq. Idle and stolen time is not spent.
    const SPENT: [usize; 5] = [1, 2, 3, 6, 7];
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<_> = stat.lines().next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        SPENT.iter().map(|position| Ok(fields.get(*position).context("/proc/stat is short")?.parse::<u64>()?));
    of_ticks(ticks.sum::<Result<u64>>()?)
}

fn of_ticks(ticks: u64) -> Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs(ticks) / u32::try_from(per_second)?)
}

/// A process that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: Pid,
}

impl Process {
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self { pid }
    }

    /// Proportional set size in bytes: what is resident, with pages that are shared counted in parts. For a process whose
    /// memory is its own that is the resident set size, less its part in shared libraries.
    pub fn memory_bytes(self) -> Result<u64> {
        let rollup = self.read("smaps_rollup")?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("Pss is not a number")?;
        Ok(kib * 1024)
    }

    /// What is resident of memory that no file is behind: buffers, and not the program, whose pages are shared with others that run it.
    pub fn anonymous_bytes(self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon in status")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("RssAnon is not a number")?;
        Ok(kib * 1024)
    }

    /// The most that was resident at any time.
    pub fn peak_bytes(self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in status")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM is not a number")?;
        Ok(kib * 1024)
    }

    /// Processor time of all its threads since it began, in user and kernel mode.
    pub fn cpu(self) -> Result<Duration> {
        let (_, ticks) = self.stat()?;
        of_ticks(ticks)
    }

    /// Processor time of its children and theirs, those that have ended and were waited for left out.
    pub fn descendants_cpu(self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        let mut parents = vec![self.pid];
        let all = Self::all()?;
        while let Some(parent) = parents.pop() {
            for (process, _) in all.iter().filter(|(_, of)| *of == parent) {
                // It may have ended since.
                total += process.cpu().unwrap_or_default();
                parents.push(process.pid);
            }
        }
        Ok(total)
    }

    /// Every process there is, with its parent.
    fn all() -> Result<Vec<(Self, Pid)>> {
        let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
        let pids = entries.filter_map(|entry| Some(Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)));
        Ok(pids.filter_map(|pid| Self { pid }.stat().ok().map(|(parent, _)| (Self { pid }, parent))).collect())
    }

    /// Parent, and ticks of processor time (proc(5), fields 4, 14 and 15).
    fn stat(self) -> Result<(Pid, u64)> {
        let stat = self.read("stat")?;
        // The second field is the name in parentheses, and may hold anything.
        let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).context("stat is short");
        Ok((Pid::from_raw(field(4)?.parse()?), field(14)?.parse::<u64>()? + field(15)?.parse::<u64>()?))
    }

    fn read(self, file: &str) -> Result<String> {
        let path: PathBuf = ["/proc", &self.pid.to_string(), file].iter().collect();
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_and_time_are_seen() {
        let process = Process::new(Pid::this());
        let before = process.memory_bytes().unwrap();
        let block = vec![1_u8; 64 << 20];
        let grown = process.memory_bytes().unwrap() - before;
        assert!(grown >= 60 << 20, "{} bytes of {}", grown, block.len());

        let started = std::time::Instant::now();
        let mut sum = 0_u64;
        while process.cpu().unwrap() < Duration::from_millis(50) {
            sum = sum.wrapping_add(std::hint::black_box(1));
            assert!(started.elapsed() < Duration::from_secs(30), "no processor time is counted");
        }
    }
}
