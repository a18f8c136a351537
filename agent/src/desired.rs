//! The configuration that the device is to have: the newest that the server gave, on the disk, for applications to make it so, and how
//! far they are with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use cloudlink_proto::link::message::{Configuration, ConfigurationStatus};
use cloudlink_proto::link::{CONFIGURATION_BYTES_MAX, CONFIGURATION_ERROR_BYTES_MAX};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::{chain, disk};

/// As the server is told that this agent takes configuration.
pub const CAPABILITY: &str = "configuration";

const FILE_NAME: &str = "configuration.json";
/// A document, each byte of it escaped, and what is said of it.
const FILE_BYTES_MAX: u64 = 2 * CONFIGURATION_BYTES_MAX as u64 + 16 * 1024;

/// The configuration of this device.
#[derive(Debug)]
pub struct Desired {
    path: PathBuf,
    /// Held by whoever changes it, for as long as the disk takes.
    writing: Mutex<()>,
    /// Held by nobody who waits for anything.
    state: Mutex<State>,
    /// The version that is held, for those who wait for another one.
    version: watch::Sender<u64>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    kept: Kept,
    /// What the server gave last and could not be kept, and why.
    refused: Option<(u64, String)>,
}

/// What is on the disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// 0: none.
    version: u64,
    /// Of the document, in hex.
    sha256: String,
    /// JSON, as it came.
    document: String,
    applied_version: u64,
    reported_version: u64,
    /// Why the version that was reported last is not applied; empty: it is.
    error: String,
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("its hash is another one")]
    Hash,
    #[error("it is no JSON object")]
    Document,
    #[error("it cannot be written to the disk")]
    Disk(#[source] io::Error),
}

/// Why it was not written down what an application said.
#[derive(Debug, thiserror::Error)]
pub enum SayError {
    #[error("the device has version {0} by now")]
    Version(u64),
    #[error("a reason has 1 to {CONFIGURATION_ERROR_BYTES_MAX} bytes, none of them a control character")]
    Reason,
    #[error("it cannot be written to the disk")]
    Disk(#[source] io::Error),
}

impl Desired {
    /// Takes up what is on the disk. What cannot be read is asked for anew.
    #[must_use]
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let kept = read(&path).unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "the configuration cannot be read: the server gives it anew");
            Kept::default()
        });
        let version = watch::Sender::new(kept.version);
        let state = Mutex::new(State { kept, refused: None });
        Self { path, writing: Mutex::default(), state, version, changed: Notify::new() }
    }

    /// Keeps a configuration if it is newer than what is there. Gives whether it was.
    ///
    /// # Errors
    /// Then what was there before is still there, and the server is told why.
    pub fn take(&self, given: &Configuration) -> Result<bool, TakeError> {
        let _writing = self.writing();
        let before = self.state().kept.clone();
        if given.version <= before.version {
            return Ok(false);
        }
        match self.keep(before, given) {
            Ok(kept) => {
                *self.state() = State { kept, refused: None };
                self.version.send_replace(given.version);
                self.changed.notify_one();
                Ok(true)
            }
            Err(error) => {
                self.state().refused = Some((given.version, chain(&error)));
                self.changed.notify_one();
                Err(error)
            }
        }
    }

    fn keep(&self, before: Kept, given: &Configuration) -> Result<Kept, TakeError> {
        if hash(&given.document_json) != given.sha256 {
            return Err(TakeError::Hash);
        }
        let document = std::str::from_utf8(&given.document_json).map_err(|_| TakeError::Document)?;
        serde_json::from_str::<Map<String, Value>>(document).map_err(|_| TakeError::Document)?;
        let kept = Kept {
            version: given.version,
            sha256: HEXLOWER.encode(&given.sha256),
            document: document.to_owned(),
            ..before
        };
        self.write(&kept).map_err(TakeError::Disk)?;
        Ok(kept)
    }

    /// An application says that it has applied this version, or why not. It is on the disk afterwards. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Then all is as it was.
    pub fn say(&self, version: u64, outcome: Result<(), String>) -> Result<(), SayError> {
        let error = match outcome {
            Ok(()) => String::new(),
            Err(reason) if is_reason(&reason) => reason,
            Err(_) => return Err(SayError::Reason),
        };
        let _writing = self.writing();
        let before = self.state().kept.clone();
        if version == 0 || version != before.version {
            return Err(SayError::Version(before.version));
        }
        let applied_version = match (error.is_empty(), before.applied_version) {
            (true, _) => version,
            // What was applied before is not any more.
            (false, applied) if applied == version => 0,
            (false, applied) => applied,
        };
        if (before.reported_version, before.applied_version, &before.error) == (version, applied_version, &error) {
            return Ok(());
        }
        let kept = Kept { applied_version, reported_version: version, error, ..before };
        self.write(&kept).map_err(SayError::Disk)?;
        self.state().kept = kept;
        self.changed.notify_one();
        Ok(())
    }

    /// Waits, no longer than this, until another version than `known` is held.
    pub async fn wait(&self, known: u64, within: Duration) {
        let mut version = self.version.subscribe();
        let _ = timeout(within, version.wait_for(|version| *version != known)).await;
    }

    /// As applications are told: JSON, `null` without any.
    #[must_use]
    pub fn shown(&self) -> String {
        let Kept { version, sha256, document, .. } = &self.state().kept;
        match version {
            0 => "null".to_owned(),
            // The document itself, as the server made it.
            _ => format!(r#"{{"version":{version},"sha256":"{sha256}","document":{document}}}"#),
        }
    }

    /// The same without the document, and how far applications are.
    #[must_use]
    pub fn standing(&self) -> Value {
        let Kept { version, applied_version, reported_version, error, .. } = &self.state().kept;
        let error = Some(error).filter(|error| !error.is_empty() && reported_version == version);
        match version {
            0 => Value::Null,
            _ => serde_json::json!({"version": version, "applied_version": applied_version, "error": error}),
        }
    }

    /// Waits for something that the server is to be told; what came before counts.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// As the server is told. `None`: there is nothing to say.
    #[must_use]
    pub fn told(&self) -> Option<ConfigurationStatus> {
        let state = self.state();
        let kept = &state.kept;
        let (reported_version, error) =
            state.refused.as_ref().map_or((kept.reported_version, &kept.error), |(version, error)| (*version, error));
        (kept.version > 0 || reported_version > 0).then(|| ConfigurationStatus {
            held_version: kept.version,
            held_sha256: HEXLOWER.decode(kept.sha256.as_bytes()).unwrap_or_default().into(),
            applied_version: kept.applied_version,
            reported_version,
            error: error[..error.floor_char_boundary(CONFIGURATION_ERROR_BYTES_MAX)].to_owned(),
        })
    }

    fn write(&self, kept: &Kept) -> io::Result<()> {
        disk::write_atomically(&self.path, &serde_json::to_vec(kept)?, disk::MODE_SECRET)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        // It guards nothing but the file.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is changed in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_reason(text: &str) -> bool {
    (1..=CONFIGURATION_ERROR_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn hash(document: &[u8]) -> Vec<u8> {
    digest(&SHA256, document).as_ref().to_vec()
}

fn read(path: &Path) -> io::Result<Kept> {
    let Some(text) = disk::read_if_there(path, FILE_BYTES_MAX)? else { return Ok(Kept::default()) };
    let kept: Kept = serde_json::from_slice(&text)?;
    if kept.version == 0 || HEXLOWER.encode(&hash(kept.document.as_bytes())) == kept.sha256 {
        return Ok(kept);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "its hash is another one"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn given(version: u64, document: &str) -> Configuration {
        Configuration {
            version,
            document_json: document.as_bytes().to_vec().into(),
            sha256: hash(document.as_bytes()).into(),
        }
    }

    fn versions(desired: &Desired) -> (u64, u64, u64, String) {
        let told = desired.told().unwrap();
        (told.held_version, told.applied_version, told.reported_version, told.error)
    }

    #[test]
    fn the_newest_outlives_the_agent_and_an_older_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let desired = Desired::load(dir.path());
        assert_eq!((desired.told(), desired.shown().as_str()), (None, "null"));
        assert!(desired.take(&given(7, r#"{"b": 1.0, "a":"\"\u0000"}"#)).unwrap());
        for version in [6, 7] {
            assert!(!desired.take(&given(version, r#"{"older":true}"#)).unwrap());
        }
        desired.say(7, Ok(())).unwrap();
        let desired = Desired::load(dir.path());
        assert_eq!(versions(&desired), (7, 7, 7, String::new()));
        let shown: Value = serde_json::from_str(&desired.shown()).unwrap();
        assert_eq!((&shown["version"], &shown["document"]["a"]), (&7.into(), &"\"\0".into()));
        assert!(desired.shown().contains(r#""document":{"b": 1.0, "a":"\"\u0000"}}"#), "to the letter");
        assert_eq!(desired.told().unwrap().held_sha256.len(), 32);
    }

    #[test]
    fn what_is_not_right_is_not_kept_and_the_server_hears_why() {
        let dir = tempfile::tempdir().unwrap();
        let desired = Desired::load(dir.path());
        desired.take(&given(1, "{}")).unwrap();
        desired.say(1, Ok(())).unwrap();
        let forged = Configuration { sha256: vec![0; 32].into(), ..given(2, "{}") };
        assert!(matches!(desired.take(&forged), Err(TakeError::Hash)));
        assert_eq!(versions(&desired), (1, 1, 2, "its hash is another one".to_owned()));
        for document in ["[]", "{", "\u{1}", "{} {}"] {
            assert!(matches!(desired.take(&given(3, document)), Err(TakeError::Document)), "{document:?}");
        }
        assert_eq!(desired.standing()["version"], 1);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(matches!(desired.take(&given(4, "{}")), Err(TakeError::Disk(_))));
        assert_eq!(versions(&desired).2, 4);
        std::fs::create_dir(dir.path()).unwrap();
        assert!(desired.take(&given(4, "{}")).unwrap(), "given again, it may be kept");
        assert_eq!(versions(&desired), (4, 1, 1, String::new()));
    }

    #[test]
    fn applications_say_of_the_version_that_is_there_whether_it_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let desired = Desired::load(dir.path());
        assert!(matches!(desired.say(0, Ok(())), Err(SayError::Version(0))));
        desired.take(&given(1, "{}")).unwrap();
        desired.say(1, Ok(())).unwrap();
        desired.take(&given(2, "{}")).unwrap();
        assert_eq!(versions(&desired), (2, 1, 1, String::new()));
        assert!(matches!(desired.say(1, Ok(())), Err(SayError::Version(2))));
        for reason in [String::new(), "a\nb".to_owned(), "x".repeat(1025)] {
            assert!(matches!(desired.say(2, Err(reason)), Err(SayError::Reason)));
        }
        desired.say(2, Err("no such sensor".to_owned())).unwrap();
        assert_eq!(versions(&desired), (2, 1, 2, "no such sensor".to_owned()));
        assert_eq!(desired.standing()["error"], "no such sensor");
        desired.say(2, Ok(())).unwrap();
        assert_eq!(versions(&desired), (2, 2, 2, String::new()));
        desired.say(2, Err("it broke".to_owned())).unwrap();
        assert_eq!(versions(&Desired::load(dir.path())), (2, 0, 2, "it broke".to_owned()));
    }

    #[test]
    fn a_spoilt_file_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        Desired::load(dir.path()).take(&given(1, r#"{"a":1}"#)).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for spoilt in [whole.replace("1}", "2}"), whole[..whole.len() / 2].to_owned(), "x".repeat(200_000)] {
            assert_ne!(spoilt, whole);
            std::fs::write(&path, spoilt).unwrap();
            let desired = Desired::load(dir.path());
            assert_eq!(desired.told(), None);
            assert!(desired.take(&given(1, r#"{"a":1}"#)).unwrap());
        }
    }

    #[test]
    fn the_largest_document_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        // Quotes are what grows most on the disk.
        let document = format!("{{{}}}", vec![r#""":1"#; CONFIGURATION_BYTES_MAX / 5].join(","));
        assert!(document.len() > CONFIGURATION_BYTES_MAX - 10);
        Desired::load(dir.path()).take(&given(1, &document)).unwrap();
        assert_eq!(versions(&Desired::load(dir.path())).0, 1);
    }

    #[tokio::test]
    async fn who_waits_hears_of_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let desired = Desired::load(dir.path());
        desired.wait(0, Duration::from_millis(5)).await;
        let long = Duration::from_secs(60);
        let take = async { desired.take(&given(1, "{}")).unwrap() };
        tokio::join!(biased; desired.wait(0, long), take);
        desired.wait(0, long).await;
        timeout(long, desired.changed()).await.unwrap();
    }
}
