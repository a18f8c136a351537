//! A recording on its way here: checked against its digest before anybody trusts it, and read line by line. docs/SUPPORT.md
//! describes both formats.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::digest::{self, SHA256};
use data_encoding::HEXLOWER;
use futures_util::StreamExt;
use serde_json::Value;
use uuid::Uuid;

use crate::client::Pieces;
use crate::failure::Failure;

/// The longest line of a recording that is read. The server's have less than 100 kB.
pub(crate) const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Times after this are not believed: 30 days.
const SECONDS_MAX: f64 = 30.0 * 24.0 * 3600.0;

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) bytes: u64,
    /// SHA-256, in hex.
    pub(crate) digest: String,
    /// Whether the server had a digest to compare with. It has none of a session that goes on.
    pub(crate) verified: bool,
}

/// Copies a recording as it came, byte for byte. Fails if it is not what `digest` says.
pub(crate) async fn receive(
    mut pieces: Pieces,
    digest: Option<&str>,
    to: &mut impl Write,
) -> Result<Received, Failure> {
    let mut hash = digest::Context::new(&SHA256);
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        hash.update(&piece);
        bytes += piece.len() as u64;
        to.write_all(&piece).map_err(Failure::of_output)?;
    }
    to.flush().map_err(Failure::of_output)?;
    let received = HEXLOWER.encode(hash.finish().as_ref());
    if let Some(digest) = digest
        && digest != received
    {
        return Err(anyhow::anyhow!(
            "the recording is not what was recorded: its digest should be {digest}, and is {received}"
        )
        .into());
    }
    Ok(Received { bytes, digest: received, verified: digest.is_some() })
}

/// A file that nobody else can open and that is gone when it is closed.
pub(crate) fn hidden_file() -> Result<File, Failure> {
    let path = std::env::temp_dir().join(format!("cloudlink-{}", Uuid::new_v4()));
    let cannot = || format!("no temporary file can be made in {}", std::env::temp_dir().display());
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = file.with_context(cannot)?;
    std::fs::remove_file(&path).with_context(cannot)?;
    Ok(file)
}

/// What is in a recording, in its order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// The terminal showed this.
    Output { at: Duration, text: String },
    /// Something else of an asciicast: its size changed, somebody joined.
    Other { at: Duration, code: String, text: String },
    /// Something that happened in a session that was no terminal: the whole object.
    Entry { at: Duration, entry: Value },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    #[error("the recording cannot be read")]
    Read(#[from] io::Error),
    #[error("line {0} of the recording is not in a format that this program knows")]
    Form(u64),
}

/// Reads the lines after the first, which is checked.
pub(crate) struct Events<R> {
    reader: R,
    number: u64,
    line: Vec<u8>,
}

impl Events<BufReader<File>> {
    /// From the beginning of a file.
    pub(crate) fn of_file(mut file: File) -> Result<Self, EventError> {
        file.rewind()?;
        Self::new(BufReader::new(file))
    }
}

impl<R: BufRead> Events<R> {
    pub(crate) fn new(reader: R) -> Result<Self, EventError> {
        let mut events = Self { reader, number: 0, line: Vec::new() };
        let header: Value = events.value()?.ok_or(EventError::Form(1))?;
        let is_known = header["version"] == 2 || (header["format"] == "cloudlink.events" && header["version"] == 1);
        if is_known { Ok(events) } else { Err(EventError::Form(1)) }
    }

    /// The next one, or `None` at the end.
    pub(crate) fn next_event(&mut self) -> Result<Option<Event>, EventError> {
        let Some(value) = self.value()? else { return Ok(None) };
        event(value).map(Some).ok_or(EventError::Form(self.number))
    }

    fn value(&mut self) -> Result<Option<Value>, EventError> {
        self.line.clear();
        self.number += 1;
        let read = (&mut self.reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&self.line).map(Some).map_err(|_| EventError::Form(self.number))
    }
}

fn event(value: Value) -> Option<Event> {
    let time = |value: &Value| {
        let seconds = value.as_f64().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds))?;
        Some(Duration::from_secs_f64(seconds))
    };
    if value.is_object() {
        return Some(Event::Entry { at: time(&value["at"])?, entry: value });
    }
    let [at, code, text] = value.as_array()?.as_slice() else { return None };
    let (at, code, text) = (time(at)?, code.as_str()?, text.as_str()?.to_owned());
    Some(if code == "o" { Event::Output { at, text } } else { Event::Other { at, code: code.to_owned(), text } })
}

/// How fast things are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) speed: f64,
    /// The longest pause.
    pub(crate) idle_limit: Option<Duration>,
    /// Without pauses.
    pub(crate) at_once: bool,
}

impl Pace {
    /// How long to wait between two events.
    #[must_use]
    pub(crate) fn pause(&self, before: Duration, at: Duration) -> Duration {
        if self.at_once {
            return Duration::ZERO;
        }
        let pause = at.saturating_sub(before);
        pause.min(self.idle_limit.unwrap_or(Duration::MAX)).div_f64(self.speed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const CAST: &str =
        "{\"version\":2,\"width\":80,\"height\":24}\n[0.5, \"o\", \"a\\u001b[1m\"]\n[1.25, \"r\", \"90x30\"]\n";

    fn all(text: &str) -> Result<Vec<Event>, EventError> {
        let mut events = Events::new(text.as_bytes())?;
        let mut all = Vec::new();
        while let Some(event) = events.next_event()? {
            all.push(event);
        }
        Ok(all)
    }

    #[test]
    fn reads_both_formats() {
        let (half, later) = (Duration::from_millis(500), Duration::from_millis(1250));
        assert_eq!(
            all(CAST).unwrap(),
            [
                Event::Output { at: half, text: "a\u{1b}[1m".to_owned() },
                Event::Other { at: later, code: "r".to_owned(), text: "90x30".to_owned() },
            ]
        );
        let entry = json!({"at": 0.5, "event": "left", "name": "x"});
        let events = format!("{}\n{entry}\n", json!({"format": "cloudlink.events", "version": 1}));
        assert_eq!(all(&events).unwrap(), [Event::Entry { at: half, entry }]);
    }

    #[test]
    fn tells_the_line_that_it_cannot_read() {
        for (text, line) in [
            ("", 1),
            ("{}", 1),
            ("{\"version\":3}\n", 1),
            ("{\"version\":2}\n[1]\n", 2),
            ("{\"version\":2}\n[-1.0, \"o\", \"\"]\n", 2),
            ("{\"version\":2}\n[1e300, \"o\", \"\"]\n", 2),
            ("{\"version\":2}\n[0.1, \"o\", \"a\"]\n[0.2, \"o", 3),
        ] {
            assert!(matches!(all(text), Err(EventError::Form(found)) if found == line), "{text}");
        }
        let endless = format!("{{\"version\":2}}\n[0.1, \"o\", \"{}\"]", "x".repeat(LINE_BYTES_MAX));
        assert!(matches!(all(&endless), Err(EventError::Form(2))));
    }

    #[tokio::test]
    async fn what_has_another_digest_is_refused() {
        let pieces = || stream::iter(["ab", "c"]).map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).boxed();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut text = Vec::new();
        let received = receive(pieces(), Some(digest), &mut text).await.unwrap();
        assert_eq!((text.as_slice(), received.bytes, received.verified), (b"abc".as_slice(), 3, true));
        assert_eq!(received.digest, digest);
        assert!(!receive(pieces(), None, &mut Vec::new()).await.unwrap().verified);
        let wrong = receive(pieces(), Some(&digest.replace('b', "c")), &mut Vec::new()).await;
        assert_eq!(wrong.unwrap_err().exit_code(), 1);
    }

    #[test]
    fn pauses_are_as_long_as_they_were_unless_somebody_is_in_a_hurry() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let pace = Pace { speed: 1.0, idle_limit: None, at_once: false };
        assert_eq!(pace.pause(second, minute), Duration::from_secs(59));
        assert_eq!(pace.pause(minute, second), Duration::ZERO);
        let limited = Pace { idle_limit: Some(second), speed: 2.0, ..pace };
        assert_eq!(limited.pause(Duration::ZERO, minute), Duration::from_millis(500));
        assert_eq!(Pace { at_once: true, ..pace }.pause(Duration::ZERO, minute), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = all(&text);
            let _ = all(&format!("{{\"version\":2}}\n{text}"));
        }
    }
}
