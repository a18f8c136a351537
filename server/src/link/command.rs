//! Commands on their way to devices, and what those tell of them: the same over a link and by a poll.

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::{Command, CommandStatus, command_status};
use cloudlink_proto::link::{REASON_BYTES_MAX, STRING_BYTES_MAX};
use serde_json::Value;
use tokio::time::Instant;

use super::{Shared, account};
use crate::bus::Hint;
use crate::model::command::State;
use crate::store::dispatch::{ClaimedCommand, LinkKey};
use crate::store::transition::{Applied, Outcome, Source, Transition};

/// A command as it is sent now.
pub(super) fn to_wire(command: ClaimedCommand, now: Instant) -> Command {
    let start_within = command.start_by.saturating_duration_since(now);
    Command {
        id: command.command_id.to_wire(),
        start_within_ms: u64::try_from(start_within.as_millis()).unwrap_or(u64::MAX),
        sent_after_ms: 0,
        requested_by: cut_to(command.requested_by, STRING_BYTES_MAX),
        reason: cut_to(command.reason, REASON_BYTES_MAX),
        grant_id: command.grant_id.to_wire(),
        grant_statement: command.grant_statement.unwrap_or_default(),
        trace_parent: command.trace.map(|trace| trace.to_string()).unwrap_or_default(),
        override_busy: command.override_busy,
        kind: Some(command.instruction.to_wire()),
    }
}

/// What a device says of a command. `reporter` is the link that it says so over, or its last one, and the device's boot.
pub(super) fn reported(reporter: LinkKey, boot_id: &str, id: CommandId, status: CommandStatus) -> Option<Transition> {
    Some(Transition {
        command_id: id,
        target: state_of(status.state())?,
        source: Source::Report { device_id: reporter.device_id, epoch: reporter.epoch, boot_id: boot_id.to_owned() },
        code: text_of(status.code),
        message: text_of(status.message),
        percent: status.percent.and_then(|percent| u8::try_from(percent).ok()),
        data: data_of(&status.data_json),
    })
}

/// What the device is to hear of its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    /// It is stored that the command has ended: the device may forget how.
    Receipt,
    /// The command is another device's.
    Foreign,
}

/// Counts what came of a report, tells others, and says what the device is to hear.
pub(super) fn settle(shared: &Shared, device: LinkKey, id: CommandId, target: State, applied: Applied) -> Answer {
    account(shared, id, applied);
    let refused = |reason: &'static str| {
        shared.metrics.reports_refused.with_label_values(&[reason]).inc();
        tracing::debug!(device = %device.device_id, reason, "a report was refused");
    };
    match applied.outcome {
        Outcome::Moved(_) | Outcome::Unproven => shared.bus.send(Hint::CommandChanged(id)),
        Outcome::Repeated | Outcome::Late => {}
        Outcome::Unknown => refused("unknown"),
        Outcome::Foreign => {
            refused("foreign");
            return Answer::Foreign;
        }
        Outcome::Stale => {
            refused("stale");
            return Answer::Nothing;
        }
        Outcome::Illegal => {
            refused("illegal");
            return Answer::Nothing;
        }
    }
    if target.is_final() && applied.outcome != Outcome::Unproven { Answer::Receipt } else { Answer::Nothing }
}

fn state_of(state: command_status::State) -> Option<State> {
    match state {
        command_status::State::Unspecified => None,
        command_status::State::Accepted => Some(State::Accepted),
        command_status::State::Running => Some(State::Running),
        command_status::State::Succeeded => Some(State::Succeeded),
        command_status::State::Failed => Some(State::Failed),
        command_status::State::Refused => Some(State::Refused),
        command_status::State::Expired => Some(State::Expired),
        command_status::State::Cancelled => Some(State::Cancelled),
    }
}

/// Text of people as a device takes it. People count characters, devices bytes; what is lost is for show only.
pub(super) fn cut_to(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// Text of a device as Postgres can store it: without NUL, and nothing if it is empty.
fn text_of(text: String) -> Option<String> {
    (!text.is_empty()).then(|| text.replace('\0', "\u{fffd}"))
}

/// Data of a device as Postgres can store it. What is no JSON is kept as a note that it was none, never lost silently.
fn data_of(json: &[u8]) -> Option<Value> {
    if json.is_empty() {
        return None;
    }
    let mut data =
        serde_json::from_slice(json).unwrap_or_else(|_| serde_json::json!({"unreadable": true, "bytes": json.len()}));
    without_nul(&mut data);
    Some(data)
}

/// jsonb cannot hold NUL. The depth is bounded by the parser.
fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(values) => values.iter_mut().for_each(without_nul),
        Value::Object(fields) => {
            if fields.keys().any(|name| name.contains('\0')) {
                *fields = std::mem::take(fields)
                    .into_iter()
                    .map(|(name, value)| (name.replace('\0', "\u{fffd}"), value))
                    .collect();
            }
            fields.values_mut().for_each(without_nul);
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
