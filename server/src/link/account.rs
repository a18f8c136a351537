//! What became of a command, in figures and in its trace.

use cloudlink_proto::ids::CommandId;
use opentelemetry::trace::SpanKind;

use super::Shared;
use crate::model::command::{Kind, State};
use crate::store::transition::{Applied, Outcome, Traced};
use crate::trace::{Tracer, place};

/// Counts what a transition did, and tells the end of a command to its trace.
pub(crate) fn account(shared: &Shared, command: CommandId, applied: Applied) {
    let (Outcome::Moved(state), Some(kind)) = (applied.outcome, applied.kind) else { return };
    shared.metrics.commands.with_label_values(&[kind.name, state.name()]).inc();
    if state.is_final() {
        shared.metrics.command_seconds.with_label_values(&[kind.name]).observe(applied.age.as_secs_f64());
    }
    if let Some(traced) = applied.traced {
        trace_end(&shared.tracer, command, kind, state, traced);
    }
}

/// One span for all of it, from the sending on: whoever stores the end may not have sent it.
fn trace_end(tracer: &Tracer, command: CommandId, kind: &'static Kind, state: State, traced: Traced) {
    let parent = traced.sent.map_or(Some(traced.place), |(epoch, _)| place::dispatched(traced.place, command, epoch));
    let span = parent.and_then(|parent| tracer.child(SpanKind::Internal, "command.run", parent));
    let Some(mut span) = span else { return };
    if let Some((_, ago)) = traced.sent {
        span.began_ago(ago);
    }
    if let Some(ago) = traced.accepted {
        span.happened("accepted", ago);
    }
    span.set("cloudlink.command.id", command.to_string());
    span.set("cloudlink.command.kind", kind.name);
    span.set("cloudlink.command.state", state.name());
    match state {
        State::Failed | State::Refused | State::Expired | State::Unconfirmed => span.fail(state.name()),
        State::Queued | State::Sent | State::Accepted | State::Running | State::Succeeded | State::Cancelled => {}
    }
}
