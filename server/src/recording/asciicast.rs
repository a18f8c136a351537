//! asciicast v2, the format of asciinema: a JSON object, then one JSON array a line, `[seconds, code, text]`.

use std::io::Write as _;
use std::time::Duration;

use serde::Serialize;

/// Bytes of output in one line. Longer output becomes several lines of the same time, so that no line is much longer than a chunk.
const OUTPUT_PART_BYTES: usize = 8192;

/// What the terminal was like at the beginning.
#[derive(Clone, Debug)]
pub struct Terminal {
    pub columns: u16,
    pub rows: u16,
    /// `TERM`, as the client has it.
    pub term: Option<String>,
    /// What players show above.
    pub title: String,
}

/// Writes events.
#[derive(Debug, Default)]
pub(super) struct Asciicast {
    output: Utf8,
    /// No event is before the one before it.
    last: Duration,
}

impl Asciicast {
    pub(super) fn header(terminal: &Terminal, timestamp: i64, into: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Header<'a> {
            version: u8,
            width: u16,
            height: u16,
            timestamp: i64,
            title: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            env: Option<Env<'a>>,
        }
        #[derive(Serialize)]
        struct Env<'a> {
            #[serde(rename = "TERM")]
            term: &'a str,
        }
        let env = terminal.term.as_deref().map(|term| Env { term });
        let Terminal { columns: width, rows: height, title, .. } = terminal;
        let header = Header { version: 2, width: *width, height: *height, timestamp, title, env };
        write_json(&header, into);
        into.push(b'\n');
    }

    /// What came from the terminal. Characters that are not whole yet wait for the next output.
    pub(super) fn output(&mut self, elapsed: Duration, bytes: &[u8], into: &mut Vec<u8>) {
        for part in bytes.chunks(OUTPUT_PART_BYTES) {
            let text = self.output.decode(part);
            if !text.is_empty() {
                self.event(elapsed, 'o', &text, into);
            }
        }
    }

    pub(super) fn resize(&mut self, elapsed: Duration, columns: u16, rows: u16, into: &mut Vec<u8>) {
        self.event(elapsed, 'r', &format!("{columns}x{rows}"), into);
    }

    pub(super) fn marker(&mut self, elapsed: Duration, label: &str, into: &mut Vec<u8>) {
        self.event(elapsed, 'm', label, into);
    }

    /// What is left of a character that was never whole.
    pub(super) fn end(&mut self, elapsed: Duration, into: &mut Vec<u8>) {
        let text = self.output.end();
        if !text.is_empty() {
            self.event(elapsed, 'o', text, into);
        }
    }

    fn event(&mut self, elapsed: Duration, code: char, text: &str, into: &mut Vec<u8>) {
        self.last = self.last.max(elapsed);
        let (seconds, micros) = (self.last.as_secs(), self.last.subsec_micros());
        write!(into, "[{seconds}.{micros:06}, \"{code}\", ").expect("memory takes every byte");
        write_json(text, into);
        into.extend_from_slice(b"]\n");
    }
}

pub(super) fn write_json<T: Serialize + ?Sized>(value: &T, into: &mut Vec<u8>) {
    serde_json::to_writer(into, value).expect("plain data is always JSON");
}

/// Text from bytes that come in arbitrary pieces. What is not UTF-8 becomes U+FFFD, as `String::from_utf8_lossy` has it.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character: at most three bytes.
    begun: Vec<u8>,
}

impl Utf8 {
    fn decode(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.begun);
        let mut text = String::with_capacity(bytes.len());
        let mut read = 0;
        for chunk in bytes.utf8_chunks() {
            let invalid = chunk.invalid();
            text.push_str(chunk.valid());
            read += chunk.valid().len() + invalid.len();
            if read == bytes.len() && is_begun(invalid) {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn end(&mut self) -> &'static str {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() { "" } else { "\u{FFFD}" }
    }
}

/// Whether more bytes may make a character of these.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn terminal() -> Terminal {
        Terminal { columns: 80, rows: 24, term: Some("xterm".into()), title: "gate \"1\"".into() }
    }

    fn events(text: &[u8]) -> Vec<Value> {
        std::str::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn output(text: &[u8]) -> String {
        events(text).iter().filter(|event| event[1] == "o").map(|event| event[2].as_str().unwrap()).collect()
    }

    #[test]
    fn is_what_players_read() {
        let (mut cast, mut text) = (Asciicast::default(), Vec::new());
        Asciicast::header(&terminal(), 1_800_000_000, &mut text);
        cast.output(Duration::from_micros(1_000_001), b"\x1b[1mhi\r\n", &mut text);
        cast.resize(Duration::from_millis(2500), 100, 30, &mut text);
        cast.marker(Duration::from_secs(2), "somebody \u{202e}came", &mut text);
        assert_eq!(
            events(&text),
            [
                json!({"version": 2, "width": 80, "height": 24, "timestamp": 1_800_000_000, "title": "gate \"1\"",
                       "env": {"TERM": "xterm"}}),
                json!([1.000_001, "o", "\u{1b}[1mhi\r\n"]),
                json!([2.5, "r", "100x30"]),
                json!([2.5, "m", "somebody \u{202e}came"]),
            ],
            "times never go back"
        );
    }

    #[test]
    fn a_character_in_two_pieces_is_one() {
        let (mut cast, mut text) = (Asciicast::default(), Vec::new());
        let euro = "€".as_bytes();
        cast.output(Duration::ZERO, &euro[..1], &mut text);
        cast.output(Duration::ZERO, &euro[1..2], &mut text);
        assert!(text.is_empty(), "nothing is said of half a character");
        cast.output(Duration::ZERO, &euro[2..], &mut text);
        assert_eq!(output(&text), "€");
        cast.output(Duration::ZERO, &euro[..2], &mut text);
        cast.end(Duration::ZERO, &mut text);
        assert_eq!(output(&text), "€\u{FFFD}");
    }

    #[test]
    fn no_line_grows_beyond_what_a_chunk_may_be() {
        let (mut cast, mut text) = (Asciicast::default(), Vec::new());
        cast.output(Duration::ZERO, &[0; 65_536], &mut text);
        let longest = text.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap();
        assert!(longest <= 6 * OUTPUT_PART_BYTES + 64, "{longest}");
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_same_text(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..400),
                any::<String>().prop_map(String::into_bytes),
                // What begins, continues and breaks characters.
                proptest::collection::vec(prop_oneof![Just(0xE2), Just(0x82), Just(0xAC), Just(0xF0), Just(0x9F), Just(b'a')], 0..60),
            ],
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let (mut cast, mut text) = (Asciicast::default(), Vec::new());
            for pair in at.windows(2) {
                cast.output(Duration::ZERO, &bytes[pair[0]..pair[1]], &mut text);
            }
            cast.end(Duration::ZERO, &mut text);
            prop_assert_eq!(output(&text), String::from_utf8_lossy(&bytes));
        }
    }
}
