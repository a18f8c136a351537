//! One's place in a trace, as requests bring it and as commands keep it.

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::trace_parent::TraceParent;
use http::{HeaderMap, HeaderName, HeaderValue};

static TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// Whose doing a request is. What cannot be read, and what is there twice, is nobody's.
pub(crate) fn of_headers(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(&TRACE_PARENT).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()?.parse().ok()
}

/// Whoever gets the request is told that it is `place`'s doing.
pub(crate) fn to_headers(headers: &mut HeaderMap, place: TraceParent) {
    let value = HeaderValue::from_str(&place.to_string()).expect("digits and dashes");
    headers.insert(TRACE_PARENT.clone(), value);
}

/// Of a command's row.
pub(crate) fn of_text(text: Option<&str>) -> Option<TraceParent> {
    text?.parse().ok()
}

/// The span of a command's sending over the link of this epoch. Whoever stores what became of it knows the id without having been
/// told, and so does the device.
pub(crate) fn dispatch_span(command: CommandId, epoch: u64) -> [u8; 8] {
    let text = [b"dispatch".as_slice(), command.as_uuid().as_bytes(), &epoch.to_be_bytes()].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let (id, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    *id
}

/// What the device is told: that the command is the doing of its sending.
pub(crate) fn dispatched(place: TraceParent, command: CommandId, epoch: u64) -> Option<TraceParent> {
    TraceParent::new(place.trace_id(), dispatch_span(command, epoch), place.is_sampled())
}
