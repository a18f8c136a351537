use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::netns::Site;
use crate::poll::wait_for;
use crate::program::{Program, bound};

use super::{PROGRAMS, PYTHON, Product};

/// For the program to begin.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);
/// Nothing more comes when nothing came for this long, after all that could come in turn.
const QUIET: Duration = Duration::from_millis(300);
/// For all that an open server lets through to arrive: it waits a second for fragments that never come.
const LEAK_LIMIT: Duration = Duration::from_secs(15);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(20);
/// For it to become quiet.
const QUIET_LIMIT: Duration = Duration::from_secs(30);

/// One packet that arrived somewhere, or what was seen of a scan.
#[derive(Clone, Debug)]
pub struct Sight {
    pub place: String,
    pub what: What,
    /// On the clock of this machine.
    pub at_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The number of the case, and what was written beside it.
    Case(usize, u32),
    /// Packets to these ports, or answers from them.
    Scan { kind: String, ports: BTreeSet<u16> },
}

/// Somebody who writes down which packets of attempts arrive.
#[derive(Debug)]
pub struct Watch {
    program: Program,
    log: PathBuf,
    /// How much of what it wrote was taken.
    taken: u64,
}

impl Watch {
    /// Starts one where the caller is.
    pub async fn start(log: PathBuf, told: &Value) -> anyhow::Result<Self> {
        Self::with(bound(PYTHON), log, told).await
    }

    pub async fn start_at(site: &Site, log: PathBuf, told: &Value) -> anyhow::Result<Self> {
        Self::with(site.bound(PYTHON), log, told).await
    }

    async fn with(mut command: Command, log: PathBuf, told: &Value) -> anyhow::Result<Self> {
        command.arg("-B").arg(format!("{PROGRAMS}/watch.py")).arg(told.to_string());
        let taken = std::fs::metadata(&log).map_or(0, |log| log.len());
        let mut watch = Self { program: Program::start("watch.py", command, &log)?, log, taken };
        wait_for("somebody to watch", BEGIN_LIMIT, async || {
            if let Err(ended) = watch.program.ensure_running() {
                return Ok(Err(ended));
            }
            let text = watch.new_text()?;
            anyhow::ensure!(text.contains("\"ready\""), "{text}");
            Ok(Ok(()))
        })
        .await??;
        watch.take()?;
        Ok(watch)
    }

    /// Lets it write down all that has arrived.
    fn ask(&self) -> anyhow::Result<()> {
        self.program.signal(Signal::SIGUSR1)
    }

    /// Waits until it has.
    async fn answers(&self) -> anyhow::Result<()> {
        wait_for("somebody who watches to say so", BEGIN_LIMIT, async || {
            anyhow::ensure!(self.new_text()?.contains("\"answer\""));
            Ok(())
        })
        .await
    }

    /// What it has seen since it was asked last.
    pub fn take(&mut self) -> anyhow::Result<Vec<Sight>> {
        self.program.ensure_running()?;
        let text = self.new_text()?;
        self.taken += u64::try_from(text.len())?;
        text.lines().filter_map(|line| Sight::read(line).transpose()).collect()
    }

    /// The whole lines that were not taken.
    fn new_text(&self) -> anyhow::Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.taken))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        Ok(text)
    }
}

impl Sight {
    fn read(line: &str) -> anyhow::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Line {
            t: u64,
            place: Option<String>,
            case: Option<usize>,
            scan: Option<String>,
            #[serde(default)]
            count: u32,
            #[serde(default)]
            ports: Vec<[u16; 2]>,
        }
        let line: Line = serde_json::from_str(line).with_context(|| format!("not a sight: {line}"))?;
        let Some(place) = line.place else { return Ok(None) };
        let what = match (line.case, line.scan) {
            (Some(case), _) => What::Case(case, line.count),
            (None, Some(kind)) => {
                What::Scan { kind, ports: line.ports.into_iter().flat_map(|[first, last]| first..=last).collect() }
            }
            (None, None) => anyhow::bail!("neither a case nor a scan"),
        };
        Ok(Some(Self { place, what, at_ns: line.t }))
    }
}

/// What was seen at one time, by place.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub cases: BTreeMap<usize, BTreeSet<String>>,
    /// The ports that were seen, by place and kind.
    pub scans: BTreeMap<(String, String), BTreeSet<u16>>,
    pub sights: Vec<Sight>,
}

impl Seen {
    fn add(&mut self, sights: Vec<Sight>) {
        for sight in sights {
            match &sight.what {
                What::Case(case, _) => {
                    self.cases.entry(*case).or_default().insert(sight.place.clone());
                }
                What::Scan { kind, ports } => {
                    self.scans.entry((sight.place.clone(), kind.clone())).or_default().extend(ports);
                }
            }
            self.sights.push(sight);
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.add(other.sights);
    }

    /// The ports of a kind of scan that were seen at a place.
    #[must_use]
    pub fn ports(&self, place: &str, kind: &str) -> BTreeSet<u16> {
        self.scans.get(&(place.to_owned(), kind.to_owned())).cloned().unwrap_or_default()
    }

    /// Where packets of this case were seen, but for these places.
    #[must_use]
    pub fn places(&self, case: usize, without: &[&str]) -> Vec<&str> {
        let places = self.cases.get(&case).into_iter().flatten().map(String::as_str);
        places.filter(|place| !without.contains(place)).collect()
    }
}

/// All who watch.
#[derive(Debug, Default)]
pub struct Watchers {
    all: Vec<Watch>,
}

impl Watchers {
    pub fn add(&mut self, watches: impl IntoIterator<Item = Watch>) {
        self.all.extend(watches);
    }

    /// Adds what all of them have written down since they were looked at last.
    pub fn look(&mut self, seen: &mut Seen) -> anyhow::Result<()> {
        for watch in &mut self.all {
            seen.add(watch.take()?);
        }
        Ok(())
    }

    /// Adds all that has arrived anywhere by now.
    pub async fn look_at_all(&mut self, seen: &mut Seen) -> anyhow::Result<()> {
        for watch in &self.all {
            watch.ask()?;
        }
        for watch in &self.all {
            watch.answers().await?;
        }
        self.look(seen)
    }

    /// Waits until something was seen of each of these cases, or nothing more can come, and until it is quiet.
    pub async fn leak(&mut self, seen: &mut Seen, cases: &[usize]) -> anyhow::Result<()> {
        let end = Instant::now() + LEAK_LIMIT;
        // Where packets are written into an interface is not where they arrive.
        while cases.iter().any(|number| seen.places(*number, &[Product::UNJUDGED]).is_empty()) && Instant::now() < end {
            tokio::time::sleep(INTERVAL).await;
            self.look(seen)?;
        }
        seen.merge(self.quiet().await?);
        Ok(())
    }

    /// What was seen since somebody asked last, until nothing more comes.
    pub async fn quiet(&mut self) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        let end = Instant::now() + QUIET_LIMIT;
        self.look_at_all(&mut seen).await?;
        loop {
            let before = seen.sights.len();
            tokio::time::sleep(QUIET).await;
            self.look_at_all(&mut seen).await?;
            if seen.sights.len() == before {
                return Ok(seen);
            }
            anyhow::ensure!(Instant::now() < end, "it does not become quiet: {:?}", seen.sights.last());
        }
    }
}

/// What is to be written down of an interface: what passes this way ("in", "out"), under the name of a place.
#[must_use]
pub fn packets(interface: &str, way: &str, place: &str) -> Value {
    json!({ "interface": interface, "way": way, "place": place })
}
