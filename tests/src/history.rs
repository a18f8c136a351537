//! What is written down while the fleet is hurt: one JSON object a line, appended, by whoever saw it. A checker that was not there
//! reads it afterwards.
//!
//! Times are microseconds of the machine's wall clock, which devices, harness and database of a test share.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock;

/// What API calls were answered.
pub const ASKED: &str = "asked.ndjson";
/// What was done to the fleet.
pub const HARMS: &str = "harms.ndjson";
/// What the database said of links, again and again.
pub const PRESENCE: &str = "presence.ndjson";
/// What the names of devices' histories begin with.
const DEVICES: &str = "devices-";

/// Something that happened to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at_us: i64,
    pub device: Uuid,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// The link was welcomed, or the tunnel is up: a tunnel is not told its epoch. `link` numbers the connections of a device.
    Up { link: u64, epoch: Option<u64> },
    /// The connection is gone, as far as the device can tell.
    Down { link: u64, why: String },
    /// A command came.
    Delivered { command: Uuid, epoch: u64 },
    /// It is being executed.
    Begun { command: Uuid, grant: Uuid, epoch: u64 },
    /// It came to this end, one of the final states of `link.proto`.
    Ended { command: Uuid, state: String },
    /// The server says that it has stored the end.
    Receipted { command: Uuid, epoch: u64 },
}

/// A command that the API said was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub at_us: i64,
    pub command: Uuid,
    pub device: Uuid,
}

/// Something that was done to the fleet, from its begin to when it was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Harm {
    pub from_us: i64,
    pub to_us: i64,
    pub what: String,
    /// Whether nobody could write to the database meanwhile, or only slowly.
    pub stops_database: bool,
}

/// The links as the database showed them to a question that was asked and answered at these times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub from_us: i64,
    pub to_us: i64,
    /// Those that differ from the sample before.
    pub changed: Vec<Shown>,
}

/// A row of the table of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub device: Uuid,
    pub epoch: u64,
    pub is_live: bool,
}

/// A file that is only appended to.
#[derive(Debug)]
pub struct Book(Mutex<File>);

impl Book {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self(Mutex::new(file.with_context(|| format!("cannot open {}", path.display()))?)))
    }

    /// Each line is written at once, so that a killed process has lost none.
    pub fn write(&self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes).context("cannot write history")
    }
}

/// The history of the devices of one process.
#[must_use]
pub fn of_devices(directory: &Path, process: usize) -> PathBuf {
    directory.join(format!("{DEVICES}{process}.ndjson"))
}

/// All histories of devices in a directory, each device's in its order.
pub fn read_devices(directory: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DEVICES)) {
            all.extend(read(&path)?);
        }
    }
    Ok(all)
}

/// All lines of a file; none if there is no such file.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let lines = BufReader::new(File::open(path)?).lines();
    let read = |line: std::io::Result<String>| Ok(serde_json::from_str(&line?)?);
    lines.map(read).collect::<anyhow::Result<_>>().with_context(|| format!("cannot read {}", path.display()))
}

/// The time now.
#[must_use]
pub fn now_us() -> i64 {
    us(clock::now())
}

/// A time of the database's as one of histories.
#[must_use]
pub fn us(at: time::OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
}
