//! Server-sent events, as much of the format as the API uses: named events with data.

use std::collections::VecDeque;

/// Longest line, and longest data of one event. A command with its data is far below; whoever sends more is cut off.
const EVENT_BYTES_MAX: usize = 256 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct EventTooLong;

/// Takes bytes, gives events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it belongs to the same line end.
    after_return: bool,
    name: String,
    data: String,
    has_data: bool,
    events: VecDeque<Event>,
}

impl Parser {
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), EventTooLong> {
        for &byte in bytes {
            let follows_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    self.end_line()?;
                }
                _ if self.line.len() == EVENT_BYTES_MAX => return Err(EventTooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn end_line(&mut self) -> Result<(), EventTooLong> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            self.end_event();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.data.len() + value.len() >= EVENT_BYTES_MAX {
                    return Err(EventTooLong);
                }
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            // A comment, which keeps the connection open; `id` and `retry`, which the API does not use.
            _ => {}
        }
        Ok(())
    }

    fn end_event(&mut self) {
        let event = Event { name: std::mem::take(&mut self.name), data: std::mem::take(&mut self.data) };
        if std::mem::take(&mut self.has_data) {
            self.events.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut parser = Parser::default();
        parser.feed(bytes).unwrap();
        std::iter::from_fn(|| parser.next_event()).collect()
    }

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn reads_named_events_with_data() {
        let text =
            b": hello\n\nevent: command\ndata: {\"a\":1}\n\nevent:x\r\ndata:1\r\ndata: 2\r\n\r\nretry: 5\n\ndata";
        assert_eq!(events(text), [event("command", "{\"a\":1}"), event("x", "1\n2")]);
    }

    #[test]
    fn an_event_that_was_cut_off_is_no_event() {
        assert_eq!(events(b"event: command\ndata: {}\n"), []);
    }

    #[test]
    fn endless_lines_and_endless_data_are_refused() {
        let mut parser = Parser::default();
        parser.feed(&vec![b'x'; EVENT_BYTES_MAX]).unwrap();
        assert_eq!(parser.feed(b"x"), Err(EventTooLong));

        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 1024], b"\n"].concat();
        assert!((0..EVENT_BYTES_MAX / 1024 + 1).any(|_| parser.feed(&line).is_err()));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(cuts in proptest::collection::vec(0_usize..40, 0..6)) {
            let text = b"event: a\r\ndata: 1\r\n\r\nevent: b\ndata: \xc3\xa9\n\n";
            let mut parser = Parser::default();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                parser.feed(&text[pair[0]..pair[1]]).unwrap();
            }
            let parsed: Vec<_> = std::iter::from_fn(|| parser.next_event()).collect();
            prop_assert_eq!(parsed, vec![event("a", "1"), event("b", "é")]);
        }
    }
}
