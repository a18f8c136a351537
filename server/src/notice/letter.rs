//! What mail says: who did what, until when, in words and absolute times. What somebody typed is shown on one line, without
//! control characters, and cut when it is long.

use std::fmt::Write as _;

use cloudlink_proto::ids::NoticeId;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::model::notice::Event;
use crate::store::notice::Names;

/// Of one value, in characters.
const VALUE_CHARS_MAX: usize = 1024;
/// Of the first line, in characters.
pub(super) const SUBJECT_CHARS_MAX: usize = 160;
/// Names in one list. The others are counted.
const NAMES_MAX: usize = 20;

/// One message to one receiver.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) id: NoticeId,
    /// When it happened.
    pub(super) at: OffsetDateTime,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) subject: String,
    pub(super) text: String,
}

/// How a value is shown.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Time,
    /// An id, or several, of devices or people.
    Named,
}

/// What is shown of an event, in this order, if it is there.
const LINES: [(&str, &str, Kind); 28] = [
    ("Asked by", "requested_by", Kind::Named),
    ("Opened by", "opened_by", Kind::Named),
    ("Decided by", "decided_by", Kind::Named),
    ("Operators", "operator_ids", Kind::Named),
    ("Kind", "kind", Kind::Text),
    ("Name", "name", Kind::Text),
    ("Device", "device_id", Kind::Named),
    ("Devices", "device_ids", Kind::Named),
    ("Labels", "selector", Kind::Text),
    ("Scopes", "scopes", Kind::Text),
    ("Reason", "reason", Kind::Text),
    ("Ticket", "ticket", Kind::Text),
    ("Comment", "comment", Kind::Text),
    ("Answer by", "answer_by", Kind::Time),
    ("Access until", "access_until", Kind::Time),
    ("From", "starts_at", Kind::Time),
    ("Until", "ends_at", Kind::Time),
    ("Started", "started_at", Kind::Time),
    ("Ends by", "expires_at", Kind::Time),
    ("Ended", "ended_at", Kind::Time),
    ("Because", "end_reason", Kind::Text),
    ("Revoked", "revoked_at", Kind::Time),
    ("Disabled", "disabled_at", Kind::Time),
    ("Failing since", "failing_since", Kind::Time),
    ("Approvals", "approvals_needed", Kind::Text),
    ("Proposed", "fewer_approvals", Kind::Text),
    ("Grant", "grant_id", Kind::Text),
    ("Number", "id", Kind::Text),
];

/// The subject and the text of an event.
pub(super) fn write(event: &str, body: &Value, names: &Names) -> (String, String) {
    let data = &body["data"];
    let tenant = line(names.tenant.as_deref().unwrap_or("a customer"), VALUE_CHARS_MAX);
    let (what, advice) = words(event, data);
    let subject = line(&format!("[Cloudlink] {tenant}: {what}"), SUBJECT_CHARS_MAX);
    let mut text = format!("{tenant}: {what}\n\n");
    for (label, key, kind) in LINES {
        if let Some(shown) = show(&data[key], kind, names) {
            let _ = writeln!(text, "{:<15}{shown}", format!("{label}:"));
        }
    }
    if let Some(at) = show(&body["timestamp"], Kind::Time, names) {
        let _ = writeln!(text, "{:<15}{at}", "Happened:");
    }
    if let Some(advice) = advice {
        let _ = write!(text, "\n{advice}\n");
    }
    text.push_str("\nThis was sent by Cloudlink. Do not answer it: nobody reads answers.\n");
    (subject, text)
}

/// What happened, and what the reader may do about it.
fn words(event: &str, data: &Value) -> (&'static str, Option<String>) {
    let id = data["id"].as_str().and_then(|id| id.parse::<Uuid>().ok());
    let with = |verb: &str| id.map(|id| format!("{verb} {id}"));
    let Some(event) = Event::named(event) else { return ("something happened", None) };
    match event {
        Event::AccessRequestCreated => {
            // Where two people must approve, one of the tenant's own asks the others.
            let is_own = matches!(data["kind"].as_str(), Some("grant" | "extension"));
            let what =
                if is_own { "access is proposed, and you can approve it" } else { "an operator asks for access" };
            (what, with("See it, and answer it, with: cloudlink access show"))
        }
        Event::AccessRequestApproved => ("your request for access was approved", None),
        Event::AccessRequestDenied => ("your request for access was denied", None),
        Event::AccessRequestWithdrawn => ("a request for access was withdrawn", None),
        Event::AccessRequestExpired => ("nobody answered your request for access in time", None),
        Event::AccessPolicyCreated => (
            "a policy was made that lets operators in without asking",
            with("To take it back: cloudlink access policy revoke"),
        ),
        Event::AccessPolicyRevoked => ("a policy that let operators in was taken back", None),
        Event::TenantUpdated => (
            "the settings were changed",
            Some("See them, and how many people must approve, with: cloudlink tenant show".to_owned()),
        ),
        Event::GrantCreated => ("access was granted", with("To end it before its time: cloudlink grant revoke")),
        Event::GrantExtended => ("access was extended", with("To end it before its time: cloudlink grant revoke")),
        Event::GrantRevoked => ("access was revoked", None),
        Event::GrantEnded => ("access has ended", None),
        Event::SupportSessionStarted => ("a support session has begun", None),
        Event::SupportSessionEnded => ("a support session has ended", None),
        Event::ReceiptMade => ("the receipt of an access is there", None),
        Event::WebhookDisabled => (
            "a webhook was disabled, because nothing could be delivered to it",
            Some("Mend the receiver, then make a new one with: cloudlink webhook create".to_owned()),
        ),
        Event::ThresholdCrossed => ("devices are across a threshold", None),
        Event::ThresholdCleared => ("devices are within a threshold again", None),
    }
}

fn show(value: &Value, kind: Kind, names: &Names) -> Option<String> {
    match (kind, value) {
        (_, Value::Null) => None,
        (Kind::Time, Value::String(text)) => Some(time(text).unwrap_or_else(|| line(text, VALUE_CHARS_MAX))),
        (Kind::Named, Value::Array(ids)) => {
            let mut shown: Vec<_> = ids.iter().take(NAMES_MAX).filter_map(|id| show(id, kind, names)).collect();
            if ids.len() > NAMES_MAX {
                shown.push(format!("and {} more", ids.len() - NAMES_MAX));
            }
            (!shown.is_empty()).then(|| shown.join(", "))
        }
        (Kind::Named, Value::String(id)) => {
            let name = id.parse().ok().and_then(|id: Uuid| names.by_id.get(&id));
            Some(line(name.unwrap_or(id), VALUE_CHARS_MAX))
        }
        (Kind::Text, Value::Array(items)) => {
            let shown: Vec<_> = items.iter().filter_map(|item| show(item, kind, names)).collect();
            Some(line(&shown.join(", "), VALUE_CHARS_MAX))
        }
        (Kind::Text, Value::Object(pairs)) => {
            let pair = |(key, value): (&String, &Value)| {
                let value = show(value, kind, names)?;
                // A selector that says more than labels and their values.
                Some(if key.is_empty() { value } else { format!("{key}={value}") })
            };
            Some(line(&pairs.iter().filter_map(pair).collect::<Vec<_>>().join(", "), VALUE_CHARS_MAX))
        }
        (Kind::Text, Value::String(text)) => Some(line(text, VALUE_CHARS_MAX)),
        (_, other) => Some(line(&other.to_string(), VALUE_CHARS_MAX)),
    }
}

/// The ids in an event whose names are shown.
pub(super) fn named(body: &Value) -> Vec<Uuid> {
    let data = &body["data"];
    let lines = LINES.iter().filter(|(_, _, kind)| matches!(kind, Kind::Named));
    lines
        .flat_map(|(_, key, _)| {
            let one = std::slice::from_ref(&data[key]);
            data[key].as_array().map_or(one, Vec::as_slice).iter().take(NAMES_MAX)
        })
        .filter_map(|id| id.as_str()?.parse().ok())
        .collect()
}

/// The same for every reader, wherever it is.
fn time(text: &str) -> Option<String> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?.to_offset(time::UtcOffset::UTC);
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    at.format(format).ok()
}

/// One line of text, that says nothing to a terminal or a mail reader.
pub(super) fn line(text: &str, chars_max: usize) -> String {
    let is_plain = |c: &char| {
        !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let cut = text.chars().count() > chars_max;
    let mut line: String = text.chars().map(|c| if is_plain(&c) { c } else { ' ' }).take(chars_max).collect();
    if cut {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names() -> Names {
        let by_id = [(Uuid::from_u128(1), "olga".to_owned()), (Uuid::from_u128(2), "lobby".to_owned())];
        Names { tenant: Some("Hotel".to_owned()), by_id: by_id.into() }
    }

    #[test]
    fn a_request_says_who_what_why_and_until_when() {
        let body = json!({"type": "access_request.created", "timestamp": "2026-11-22T07:00:00.123456Z", "data": {
            "id": Uuid::from_u128(9), "requested_by": Uuid::from_u128(1), "device_ids": [Uuid::from_u128(2)],
            "scopes": ["shell:open", "tcp:open"], "reason": "the till\r\nprints nothing", "ticket": null,
            "answer_by": "2026-11-22T10:00:00+02:00", "access_until": "2026-11-22T12:00:00Z"}});
        assert_eq!(named(&body), [Uuid::from_u128(1), Uuid::from_u128(2)]);
        let (subject, text) = write("access_request.created", &body, &names());
        assert_eq!(subject, "[Cloudlink] Hotel: an operator asks for access");
        for expected in [
            "Asked by:      olga\n",
            "Devices:       lobby\n",
            "Scopes:        shell:open, tcp:open\n",
            "Reason:        the till  prints nothing\n",
            "Answer by:     2026-11-22 08:00:00 UTC\n",
            "Access until:  2026-11-22 12:00:00 UTC\n",
            "Happened:      2026-11-22 07:00:00 UTC\n",
            "cloudlink access show 00000000-0000-0000-0000-000000000009\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in {text}");
        }
        assert!(!text.contains("Ticket"), "{text}");
    }

    #[test]
    fn a_selector_is_told_as_it_is_written() {
        for (selector, told) in [
            (json!({"floor": "2", "site": "north"}), "Labels:        floor=2, site=north\n"),
            (json!({"": "!retired,site in (a,b)"}), "Labels:        !retired,site in (a,b)\n"),
        ] {
            let (_, text) = write("grant.created", &json!({"data": {"selector": selector}}), &names());
            assert!(text.contains(told), "{told:?} in {text}");
        }
    }

    #[test]
    fn what_somebody_typed_is_one_line_that_does_nothing() {
        let body = json!({"data": {"reason": format!("\u{1b}[2J\u{202e}\n.\n{}", "x".repeat(5000))}});
        let nasty = Names { tenant: Some("Ho\r\nBcc: tel".to_owned()), ..Names::default() };
        let (subject, text) = write("grant.created", &body, &nasty);
        assert!(!subject.contains(['\r', '\n']) && subject.chars().count() <= SUBJECT_CHARS_MAX + 1);
        assert!(!text.contains(['\r', '\u{1b}', '\u{202e}']) && !text.contains("\n.\n") && !text.contains("\nBcc"));
        assert!(text.lines().all(|line| line.chars().count() < VALUE_CHARS_MAX + 20));
    }

    #[test]
    fn long_lists_are_counted_and_every_event_has_words() {
        let ids: Vec<_> = (100..150).map(Uuid::from_u128).collect();
        let body = json!({"data": {"id": Uuid::from_u128(9), "device_ids": ids}});
        for event in Event::ALL {
            let (subject, text) = write(event.name(), &body, &names());
            assert!(subject.starts_with("[Cloudlink] Hotel: ") && !subject.contains("something"), "{subject}");
            assert!(text.contains("and 30 more"), "{text}");
        }
    }
}
