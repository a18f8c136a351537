//! Why a command line did not do what it was asked, and the exit code that says so to scripts.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use serde_json::json;

use crate::client::Problem;
use crate::duration::Span;
use crate::output::plain;

/// The list that `--help` and docs/CLI.md show.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  another failure
  2  the command line, or what it asks for, is not allowed (400, 413, 422)
  3  not signed in, or the role may not do this
  4  there is no such thing
  5  no grant in force covers it
  6  the command ended in another state than `succeeded`, the access request in another one than `approved`; of support sessions: the device refused, or failed
  7  the server cannot be reached or is not available: try again
  8  conflict: no link, no agent, no tunnel, quarantine, device revoked, changed meanwhile, name taken
  9  the server closed the support session: access ended or was taken back, ...
`shell` ends with the exit code of the remote shell, 128 and more if a signal ended it, when there was one to end.";

#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for makes no sense as it stands.
    Usage(String),
    /// There is no token to call the API with.
    NotSignedIn(String),
    /// No thing of this name.
    NotFound(String),
    /// The API refused.
    Refused(Box<Problem>),
    /// No answer, or none in time.
    Unreachable {
        what: String,
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The device's part of a command did not succeed; already reported as a result.
    Ended,
    /// The device could not do what a support session asks of it.
    Device {
        code: String,
        message: String,
    },
    /// The server closed a support session.
    Closed {
        reason: String,
        message: String,
    },
    /// What a remote shell ended with, or what a signal makes of it. There is nothing to say.
    Status(u8),
    /// Whoever read our output has gone: no failure of ours.
    OutputClosed,
    Other(anyhow::Error),
}

impl Failure {
    #[must_use]
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::NotSignedIn(_) => 3,
            Self::NotFound(_) => 4,
            Self::Ended | Self::Device { .. } => 6,
            Self::Closed { .. } => 9,
            Self::Status(status) => *status,
            Self::Unreachable { .. } => 7,
            Self::Refused(problem) => problem_exit_code(problem),
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused(_)) && self.exit_code() == 7
    }

    /// For people: what happened, what to do, the request's id. For machines: the same as one JSON object.
    #[must_use]
    pub(crate) fn report(&self, json: bool) -> Option<String> {
        let (title, detail) = self.words()?;
        let request_id = match self {
            Self::Refused(problem) => problem.request_id.as_deref(),
            Self::Usage(_)
            | Self::NotSignedIn(_)
            | Self::NotFound(_)
            | Self::Unreachable { .. }
            | Self::Ended
            | Self::Device { .. }
            | Self::Closed { .. }
            | Self::Status(_)
            | Self::OutputClosed
            | Self::Other(_) => None,
        };
        if json {
            let mut object = if let Self::Refused(problem) = self {
                problem.json.clone()
            } else {
                json!({ "title": title, "detail": detail })
            };
            if let Self::Device { code: name, .. } | Self::Closed { reason: name, .. } = self {
                object["reason"] = name.as_str().into();
            }
            object["exit_code"] = self.exit_code().into();
            return Some(crate::output::json_text(&object));
        }
        let request_id = request_id.map(|id| format!("request id: {id}"));
        let indented = [detail, self.hint(), request_id];
        let mut report = format!("error: {}", plain(&title));
        for line in indented.iter().flatten().flat_map(|text| text.lines()) {
            report += &format!("\n  {}", plain(line));
        }
        Some(report)
    }

    fn words(&self) -> Option<(String, Option<String>)> {
        match self {
            Self::Ended | Self::Status(_) | Self::OutputClosed => None,
            Self::Device { code, message } => Some((
                format!("the device did not do it: {}", code.replace('_', " ")),
                (!message.is_empty()).then(|| message.clone()),
            )),
            Self::Closed { reason, message } => Some((
                format!("the server closed the session: {}", reason.replace('_', " ")),
                (!message.is_empty()).then(|| message.clone()),
            )),
            Self::Usage(what) | Self::NotSignedIn(what) | Self::NotFound(what) => Some(split(what)),
            Self::Refused(problem) => Some((problem.title.clone(), problem.detail.clone())),
            Self::Unreachable { what, source } => Some((what.clone(), source.as_deref().map(chain))),
            Self::Other(error) => {
                let causes: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
                Some((error.to_string(), (!causes.is_empty()).then(|| causes.join(": "))))
            }
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreachable { .. } => "Check the address and the network, or try again later.",
            Self::Refused(problem) => match problem.kind() {
                "unauthenticated" => "Sign in: cloudlink login",
                "version_mismatch" => "Run the command again: it starts from the newest version.",
                "not_linked" => "To wait for the device: --queue-for 10m",
                "device_busy" => "With a grant that allows busy:override: --override-busy",
                "no_agent" => "To wait for an agent: --queue-for 10m",
                "unprocessable" => return longest(problem),
                _ => return None,
            },
            Self::Usage(_)
            | Self::NotSignedIn(_)
            | Self::NotFound(_)
            | Self::Ended
            | Self::Device { .. }
            | Self::Closed { .. }
            | Self::Status(_)
            | Self::OutputClosed
            | Self::Other(_) => return None,
        };
        Some(hint.to_owned())
    }
}

/// What would be allowed, as it is typed.
fn longest(problem: &Problem) -> Option<String> {
    let span = Span::of_seconds(problem.json["maximum_seconds"].as_u64()?)?;
    Some(format!("That is {span}: --for {span}"))
}

fn problem_exit_code(problem: &Problem) -> u8 {
    match (problem.kind(), problem.status) {
        ("grant_required", _) => 5,
        // A device that did not come may do so next time.
        ("stream_refused", _) => {
            if problem.json["reason"] == "silent" {
                7
            } else {
                6
            }
        }
        (_, 400 | 413 | 422) => 2,
        (_, 401 | 403) => 3,
        (_, 404) => 4,
        (_, 409 | 412) => 8,
        (_, 429 | 502 | 503 | 504) => 7,
        _ => 1,
    }
}

/// A first line, and the rest.
fn split(what: &str) -> (String, Option<String>) {
    match what.split_once('\n') {
        Some((title, detail)) => (title.to_owned(), Some(detail.to_owned())),
        None => (what.to_owned(), None),
    }
}

/// An error and its causes, each once.
fn chain(error: &(dyn Error + Send + Sync + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.exit_code())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// For a failed write to standard output.
    #[must_use]
    pub(crate) fn of_output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::Other(anyhow::Error::new(error).context("the output cannot be written"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn refused(kind: &str, status: u16) -> Failure {
        Failure::Refused(Box::new(Problem::from_json(
            status,
            json!({
                "type": format!("urn:cloudlink:problem:{kind}"), "title": "No", "status": status,
                "detail": "Because.\u{1b}[2J", "request_id": "r-1",
            }),
        )))
    }

    #[rstest]
    #[case("bad_request", 400, 2)]
    #[case("unauthenticated", 401, 3)]
    #[case("forbidden", 403, 3)]
    #[case("grant_required", 403, 5)]
    #[case("not_found", 404, 4)]
    #[case("method_not_allowed", 405, 1)]
    #[case("not_linked", 409, 8)]
    #[case("no_agent", 409, 8)]
    #[case("device_busy", 409, 8)]
    #[case("polling", 409, 8)]
    #[case("device_revoked", 409, 8)]
    #[case("conflict", 409, 8)]
    #[case("idempotency_conflict", 409, 8)]
    #[case("version_mismatch", 412, 8)]
    #[case("too_large", 413, 2)]
    #[case("unprocessable", 422, 2)]
    #[case("version_required", 428, 1)]
    #[case("too_many_requests", 429, 7)]
    #[case("internal", 500, 1)]
    #[case("unavailable", 503, 7)]
    #[case("of a newer server", 418, 1)]
    fn each_problem_has_its_exit_code(#[case] kind: &str, #[case] status: u16, #[case] code: u8) {
        assert_eq!(refused(kind, status).exit_code(), code);
    }

    #[test]
    fn says_what_happened_what_to_do_and_the_request_without_steering_the_terminal() {
        assert_eq!(
            refused("not_linked", 409).report(false).unwrap(),
            "error: No\n  Because.\\u{1b}[2J\n  To wait for the device: --queue-for 10m\n  request id: r-1"
        );
    }

    #[test]
    fn says_how_long_a_grant_may_be_as_it_is_typed() {
        let json = json!({"type": "urn:cloudlink:problem:unprocessable", "title": "No", "maximum_seconds": 2_592_000});
        let failure = Failure::Refused(Box::new(Problem::from_json(422, json)));
        assert_eq!(failure.report(false).unwrap(), "error: No\n  That is 30d: --for 30d");
    }

    #[test]
    fn machines_get_the_problem_as_it_came_and_the_exit_code() {
        let text = refused("grant_required", 403).report(true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["type"], "urn:cloudlink:problem:grant_required");
        assert_eq!(value["detail"], "Because.\u{1b}[2J");
        assert_eq!(value["exit_code"], 5);
        assert!(!text.contains('\n'));
    }

    #[test]
    fn a_device_that_refuses_is_not_one_that_is_silent() {
        let refused = |reason: &str| {
            let json = json!({"type": "urn:cloudlink:problem:stream_refused", "title": "No", "reason": reason});
            Failure::Refused(Box::new(Problem::from_json(502, json))).exit_code()
        };
        assert_eq!((refused("refused"), refused("silent")), (6, 7));
    }

    #[test]
    fn a_session_that_was_closed_says_why_and_is_no_other_failure() {
        let closed =
            Failure::Closed { reason: "grant_revoked".to_owned(), message: "The customer took it back.".to_owned() };
        assert_eq!(closed.exit_code(), 9);
        let report = closed.report(false).unwrap();
        assert_eq!(report, "error: the server closed the session: grant revoked\n  The customer took it back.");
        let json: serde_json::Value = serde_json::from_str(&closed.report(true).unwrap()).unwrap();
        assert_eq!((json["reason"].as_str(), json["exit_code"].as_u64()), (Some("grant_revoked"), Some(9)));
    }

    #[test]
    fn the_exit_code_of_a_remote_shell_is_no_failure_of_ours() {
        let status = Failure::Status(7);
        assert_eq!((status.exit_code(), status.report(false), status.is_transient()), (7, None, false));
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        let failure = Failure::of_output(io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.exit_code(), failure.report(false)), (0, None));
    }
}
