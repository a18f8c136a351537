//! The text messages of a stream.

use serde::{Deserialize, Serialize};

use super::CONTROL_BYTES_MAX;
use crate::link::{STATUS_MESSAGE_BYTES_MAX, STRING_BYTES_MAX, TERMINAL_CELLS_MAX};

/// Hex digits of a SHA-256.
const DIGEST_CHARS: usize = 64;

/// A text message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// The device has what was asked for: the shell runs, the target has accepted, the file is open. The first thing it says.
    Ready,
    /// The device cannot do what was asked for. The last thing it says.
    Failed {
        /// A stable code, snake_case: `not_found`, `permission_denied`, `connection_refused`, `too_large`, ...
        code: String,
        /// For people. At most 1,024 bytes.
        message: String,
    },
    /// The client's window has this size now.
    Resize {
        /// 1 to 1,000.
        columns: u16,
        /// 1 to 1,000.
        rows: u16,
    },
    /// The terminal has this size now, that of the smallest window of those who type: for whoever shows it.
    Screen {
        /// 1 to 1,000.
        columns: u16,
        /// 1 to 1,000.
        rows: u16,
    },
    /// To the processes in the foreground of the terminal.
    Signal {
        /// Which.
        signal: Signal,
    },
    /// Nothing more comes in this direction.
    Eof,
    /// The shell has ended. The last thing a device says of a terminal.
    Exit {
        /// What it returned, unless a signal ended it.
        status: Option<u8>,
        /// The name of that signal, as in `SIGKILL`.
        signal: Option<String>,
    },
    /// What the file is whose bytes follow.
    File {
        /// Its size in bytes.
        size: u64,
        /// Permission bits.
        mode: u32,
    },
    /// All bytes of the file were there.
    Done {
        /// How many.
        size: u64,
        /// SHA-256 of them, in hex.
        sha256: String,
    },
    /// Access ends soon, or the session does.
    Warning {
        /// In how many seconds.
        seconds_left: u64,
        /// Why, as the session's `end_reason` will be: `node_lost` where the node stops. Absent of the end of access.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody has come.
    Joined {
        /// Who: a name.
        name: String,
        /// To do what.
        mode: Mode,
    },
    /// Somebody has gone.
    Left {
        /// Who: a name.
        name: String,
    },
    /// The node cuts the stream. The last message of all.
    Closed {
        /// A stable code, as the session's `end_reason`: `grant_ended`, `grant_revoked`, `device_revoked`, ...
        reason: String,
        /// For people, to be shown on the terminal. At most 1,024 bytes.
        message: String,
    },
}

/// How somebody is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Sees and types.
    Operate,
    /// Sees.
    Watch,
}

/// What may be sent to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of POSIX")]
pub enum Signal {
    Hup,
    Int,
    Quit,
    Term,
    Kill,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The operator's end.
    Client,
    /// Of the device.
    Device,
    /// In the middle.
    Node,
}

/// Why a text message is not one.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Over [`CONTROL_BYTES_MAX`].
    #[error("a control message is longer than {CONTROL_BYTES_MAX} bytes")]
    TooLong,
    /// Not JSON, or of no known type.
    #[error("not a control message")]
    Form(#[source] serde_json::Error),
    /// A field breaks its limit.
    #[error("{0} is out of range")]
    Field(&'static str),
    /// It is not this party's to say.
    #[error("{0:?} may not say that")]
    NotTheirs(Party),
}

impl Control {
    /// Reads a text message of a peer.
    ///
    /// # Errors
    /// It is too long, malformed, breaks a limit, or is not this party's to say.
    pub fn read(text: &str, from: Party) -> Result<Self, ControlError> {
        let control = Self::parse(text)?;
        if control.may_come_from(from) { Ok(control) } else { Err(ControlError::NotTheirs(from)) }
    }

    /// Reads a text message that the node has let pass: a client's or a device's, or one of its own.
    ///
    /// # Errors
    /// It is too long, malformed, breaks a limit, or is `to`'s own to say.
    pub fn read_passed_on(text: &str, to: Party) -> Result<Self, ControlError> {
        let control = Self::parse(text)?;
        let others = [Party::Client, Party::Device, Party::Node].into_iter().filter(|party| *party != to);
        match others.into_iter().any(|party| control.may_come_from(party)) {
            true => Ok(control),
            false => Err(ControlError::NotTheirs(Party::Node)),
        }
    }

    fn parse(text: &str) -> Result<Self, ControlError> {
        if text.len() > CONTROL_BYTES_MAX {
            return Err(ControlError::TooLong);
        }
        let control: Self = serde_json::from_str(text).map_err(ControlError::Form)?;
        control.check()?;
        Ok(control)
    }

    /// As a text message.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data is always JSON")
    }

    /// Who says what. The node passes on what is not its own.
    #[must_use]
    pub const fn may_come_from(&self, party: Party) -> bool {
        match self {
            Self::Resize { .. } | Self::Signal { .. } => matches!(party, Party::Client),
            Self::Ready | Self::Failed { .. } | Self::Exit { .. } => matches!(party, Party::Device),
            Self::Eof | Self::File { .. } | Self::Done { .. } => matches!(party, Party::Client | Party::Device),
            Self::Screen { .. }
            | Self::Warning { .. }
            | Self::Joined { .. }
            | Self::Left { .. }
            | Self::Closed { .. } => {
                matches!(party, Party::Node)
            }
        }
    }

    fn check(&self) -> Result<(), ControlError> {
        let within = |field, holds: bool| if holds { Ok(()) } else { Err(ControlError::Field(field)) };
        let cells = |cells: u16| (1..=TERMINAL_CELLS_MAX).contains(&cells.into());
        match self {
            Self::Resize { columns, rows } | Self::Screen { columns, rows } => {
                within("size", cells(*columns) && cells(*rows))
            }
            Self::Failed { code: word, message } | Self::Closed { reason: word, message } => {
                within("code", is_code(word))?;
                within("message", message.len() <= STATUS_MESSAGE_BYTES_MAX)
            }
            Self::Exit { signal, .. } => within("signal", signal.as_ref().is_none_or(|signal| is_signal(signal))),
            Self::Done { sha256, .. } => {
                within("sha256", sha256.len() == DIGEST_CHARS && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()))
            }
            Self::Warning { reason, .. } => within("reason", reason.as_ref().is_none_or(|reason| is_code(reason))),
            // Four bytes a character at most, of a name of 128.
            Self::Joined { name, .. } | Self::Left { name } => within("name", name.len() <= 2 * STRING_BYTES_MAX),
            Self::Ready | Self::Signal { .. } | Self::Eof | Self::File { .. } => Ok(()),
        }
    }
}

/// What is kept and told as it is: in databases, which do not take every character, and on terminals, which act on some.
fn is_code(word: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=STRING_BYTES_MAX).contains(&word.len()) && word.bytes().all(is_plain)
}

/// `SIGKILL`, `SIG34`, `SIGRTMIN+1`.
fn is_signal(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-_".contains(&byte);
    (1..=STRING_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Something near to a message, so that more than the reading of JSON is reached.
    fn near_message() -> impl Strategy<Value = String> {
        let kind = prop::sample::select(vec![
            "ready", "failed", "resize", "screen", "signal", "eof", "exit", "file", "done", "warning", "joined",
            "left", "closed",
        ]);
        let fields = prop::sample::select(vec![
            "code",
            "message",
            "columns",
            "rows",
            "signal",
            "status",
            "size",
            "mode",
            "sha256",
            "seconds_left",
            "name",
            "reason",
        ]);
        let value = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
            prop::sample::select(vec!["null", "{}", "[]", "true", "1e999", "\"int\"", "\"watch\""])
                .prop_map(str::to_owned),
        ];
        (kind, prop::collection::vec((fields, value), 0..6)).prop_map(|(kind, fields)| {
            let fields: String = fields.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
            format!("{{\"type\":\"{kind}\"{fields}}}")
        })
    }

    proptest! {
        #[test]
        fn whatever_a_peer_says_is_read_or_refused(text in prop_oneof![near_message(), any::<String>()]) {
            for party in [Party::Client, Party::Device, Party::Node] {
                let read = Control::read(&text, party);
                if let Ok(control) = &read {
                    prop_assert!(control.may_come_from(party));
                    prop_assert_eq!(Control::read(&control.to_text(), party).ok(), read.ok());
                }
                let _ = Control::read_passed_on(&text, party);
            }
        }
    }

    #[test]
    fn each_message_is_read_back_and_is_its_partys_alone() {
        let digest = "0".repeat(64);
        let all = [
            (Control::Ready, vec![Party::Device]),
            (Control::Failed { code: "not_found".into(), message: String::new() }, vec![Party::Device]),
            (Control::Resize { columns: 80, rows: 24 }, vec![Party::Client]),
            (Control::Screen { columns: 80, rows: 24 }, vec![Party::Node]),
            (Control::Signal { signal: Signal::Int }, vec![Party::Client]),
            (Control::Eof, vec![Party::Client, Party::Device]),
            (Control::Exit { status: Some(3), signal: None }, vec![Party::Device]),
            (Control::File { size: 9, mode: 0o644 }, vec![Party::Client, Party::Device]),
            (Control::Done { size: 9, sha256: digest }, vec![Party::Client, Party::Device]),
            (Control::Warning { seconds_left: 120, reason: None }, vec![Party::Node]),
            (Control::Warning { seconds_left: 20, reason: Some("node_lost".into()) }, vec![Party::Node]),
            (Control::Joined { name: "a".into(), mode: Mode::Watch }, vec![Party::Node]),
            (Control::Left { name: "a".into() }, vec![Party::Node]),
            (Control::Closed { reason: "grant_ended".into(), message: "over".into() }, vec![Party::Node]),
        ];
        for (control, whose) in all {
            for party in [Party::Client, Party::Device, Party::Node] {
                let read = Control::read(&control.to_text(), party);
                if whose.contains(&party) {
                    assert_eq!(read.unwrap(), control);
                } else {
                    assert!(matches!(read, Err(ControlError::NotTheirs(_))), "{control:?} {party:?}");
                }
            }
        }
    }

    #[test]
    fn the_node_passes_on_what_is_not_the_receivers_own() {
        let passed = |control: &Control, to| Control::read_passed_on(&control.to_text(), to).is_ok();
        let resize = Control::Resize { columns: 80, rows: 24 };
        assert!(passed(&resize, Party::Device) && !passed(&resize, Party::Client));
        assert!(passed(&Control::Ready, Party::Client) && !passed(&Control::Ready, Party::Device));
        let warning = Control::Warning { seconds_left: 120, reason: None };
        assert!(passed(&warning, Party::Device) && passed(&warning, Party::Client));
    }

    #[test]
    fn a_warning_of_before_is_one_still() {
        let text = r#"{"type":"warning","seconds_left":120}"#;
        let warning = Control::read(text, Party::Node).unwrap();
        assert_eq!(warning, Control::Warning { seconds_left: 120, reason: None });
        assert_eq!(warning.to_text(), text);
    }

    #[test]
    fn what_breaks_a_limit_is_refused() {
        for text in [
            r#"{"type":"resize","columns":0,"rows":24}"#,
            r#"{"type":"resize","columns":80,"rows":1001}"#,
            r#"{"type":"resize","columns":80,"rows":70000}"#,
            r#"{"type":"signal","signal":"stop"}"#,
            r#"{"type":"done","size":1,"sha256":"00"}"#,
            r#"{"type":"mystery"}"#,
            "[]",
            "",
        ] {
            assert!(Control::read(text, Party::Client).is_err(), "{text}");
        }
        for text in [
            r#"{"type":"failed","code":"not\u0000found","message":""}"#,
            r#"{"type":"failed","code":"Not found","message":""}"#,
            r#"{"type":"failed","code":"","message":""}"#,
            r#"{"type":"exit","status":null,"signal":"SIG\u0000"}"#,
            r#"{"type":"exit","status":null,"signal":"\u001b[2J"}"#,
        ] {
            assert!(matches!(Control::read(text, Party::Device), Err(ControlError::Field(_))), "{text}");
        }
        let long = Control::Eof.to_text() + &" ".repeat(CONTROL_BYTES_MAX);
        assert!(matches!(Control::read(&long, Party::Client), Err(ControlError::TooLong)));
    }
}
