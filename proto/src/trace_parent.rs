//! W3C trace context: `traceparent`, one's place in a trace, as HTTP requests and commands carry it.
//!
//! ```text
//! 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//! version trace id (16 bytes)         span id (8 bytes) flags (01: recorded)
//! ```

use std::fmt;
use std::str::FromStr;

/// Of the version that is written here. Later versions may be longer.
pub const TRACE_PARENT_BYTES: usize = 55;

const VERSION: u8 = 0;
/// No version, for ever.
const VERSION_NEVER: u8 = 0xff;
const FLAG_SAMPLED: u8 = 1;

/// A span of a trace: what is caused by it is its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    is_sampled: bool,
}

/// Not a place in a trace. Whoever gets one is to go on as if none had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NotATraceParent;

impl TraceParent {
    /// None if an id is all zeros, which is no id.
    #[must_use]
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], is_sampled: bool) -> Option<Self> {
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, is_sampled })
    }

    /// The same in all of a trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Of the span itself.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// Whether spans of this trace are kept.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The trace id as people search for it: 32 hexadecimal digits.
    #[must_use]
    pub fn shown_trace_id(&self) -> impl fmt::Display + use<> {
        Hex(self.trace_id)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.is_sampled { FLAG_SAMPLED } else { 0 };
        write!(f, "{VERSION:02x}-{}-{}-{flags:02x}", Hex(self.trace_id), Hex(self.span_id))
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<Self, NotATraceParent> {
        let (known, more) = text.as_bytes().split_at_checked(TRACE_PARENT_BYTES).ok_or(NotATraceParent)?;
        let [v0, v1, b'-', trace_id @ .., b'-', f0, f1] = known else { return Err(NotATraceParent) };
        let (trace_id, span_id) = trace_id.split_at(32);
        let [b'-', span_id @ ..] = span_id else { return Err(NotATraceParent) };
        let [version] = unhex(&[*v0, *v1]).ok_or(NotATraceParent)?;
        let [flags] = unhex(&[*f0, *f1]).ok_or(NotATraceParent)?;
        // A later version begins like this one, and goes on behind a dash.
        let may_go_on = version > VERSION && more.first() == Some(&b'-');
        if version == VERSION_NEVER || !(more.is_empty() || may_go_on) {
            return Err(NotATraceParent);
        }
        let (trace_id, span_id) = unhex(trace_id).zip(unhex(span_id)).ok_or(NotATraceParent)?;
        Self::new(trace_id, span_id, flags & FLAG_SAMPLED != 0).ok_or(NotATraceParent)
    }
}

struct Hex<const N: usize>([u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Lower case only, as the specification wants.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let read: TraceParent = EXAMPLE.parse().unwrap();
        assert!(read.is_sampled());
        assert_eq!(read.shown_trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(read.span_id(), [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!(read.to_string(), EXAMPLE);
        assert!(!EXAMPLE.replace("-01", "-00").parse::<TraceParent>().unwrap().is_sampled());
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let known: TraceParent = EXAMPLE.parse().unwrap();
        for later in [EXAMPLE.replacen("00-", "cc-", 1), EXAMPLE.replacen("00-", "01-", 1) + "-more"] {
            assert_eq!(later.parse(), Ok(known), "{later}");
        }
        assert_eq!(EXAMPLE.replace("-01", "-ff").parse(), Ok(known), "flags that are not known are left out");
    }

    #[test]
    fn what_is_none_is_refused() {
        for none in [
            "",
            "00",
            &EXAMPLE[..54],
            &format!("{EXAMPLE}-"),
            &format!("{EXAMPLE}0"),
            &EXAMPLE.replacen("00-", "01-", 1).replace("-01", "-010"),
            &EXAMPLE.replacen("00-", "ff-", 1),
            &EXAMPLE.replace('b', "B"),
            &EXAMPLE.replace('b', "g"),
            &EXAMPLE.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert_eq!(none.parse::<TraceParent>(), Err(NotATraceParent), "{none}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(trace_id: [u8; 16], span_id: [u8; 8], is_sampled: bool) {
            if let Some(place) = TraceParent::new(trace_id, span_id, is_sampled) {
                prop_assert_eq!(place.to_string().parse(), Ok(place));
                prop_assert_eq!(place.to_string().len(), TRACE_PARENT_BYTES);
            }
        }

        #[test]
        fn nothing_that_is_read_panics(text in "\\PC{0,80}", bytes in "[0-9a-f-]{50,60}") {
            let _ = text.parse::<TraceParent>();
            let _ = bytes.parse::<TraceParent>();
        }
    }
}
