//! Packets in a TCP stream: `u16 length | packet`, the length without itself (wire page §1.1).

use std::ops::Range;

/// Bytes of the length in front of each packet.
pub const LENGTH_BYTES: usize = 2;

/// The largest packet that is taken, unless the tunnel's MTU asks for more: the largest control packet with a wrapped
/// client key behind it.
pub const FRAME_BYTES_MAX: usize = 3072;

/// Why the stream cannot be read on: there is no way to find the next packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A packet of no bytes.
    #[error("a packet has length 0")]
    Empty,
    /// More than this side takes; nothing of it was buffered.
    #[error("a packet is announced with {0} bytes")]
    TooLong(usize),
}

/// Where the next whole packet lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the caller's bytes.
    Input(Range<usize>),
    /// In [`Deframer::partial`], behind the length.
    Partial,
}

/// Finds packets in whatever pieces the stream comes in. A packet that lies whole in one piece is never copied.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    /// A packet that came in pieces, with its length in front. Bounded by the largest packet.
    pub(super) partial: Vec<u8>,
    /// `partial` was handed out; it is empty for the next call.
    used: bool,
}

impl Deframer {
    /// Takes the next packet off `input`: how many bytes of it are done with, and where the packet is. No packet means that
    /// all of `input` is done with.
    pub(super) fn next(&mut self, input: &[u8], bytes_max: usize) -> Result<(usize, Option<Place>), FrameError> {
        if self.used {
            self.partial.clear();
            self.used = false;
        }
        if self.partial.is_empty() {
            if let Some(end) = frame_end(input, bytes_max)?
                && end <= input.len()
            {
                return Ok((end, Some(Place::Input(LENGTH_BYTES..end))));
            }
            self.partial.extend_from_slice(input);
            return Ok((input.len(), None));
        }
        let mut consumed = self.fill(input, LENGTH_BYTES);
        let Some(end) = frame_end(&self.partial, bytes_max)? else { return Ok((consumed, None)) };
        consumed += self.fill(&input[consumed..], end);
        if self.partial.len() < end {
            return Ok((consumed, None));
        }
        self.used = true;
        Ok((consumed, Some(Place::Partial)))
    }

    /// Whether the stream stands inside a packet.
    pub(super) const fn is_inside(&self) -> bool {
        !self.used && !self.partial.is_empty()
    }

    /// Gives back the memory of a packet that was handed out.
    pub(super) fn shrink(&mut self) {
        if !self.is_inside() {
            self.partial = Vec::new();
        }
    }

    /// Grows `partial` to at most `bytes`; says how much of `input` that took.
    fn fill(&mut self, input: &[u8], bytes: usize) -> usize {
        let taken = bytes.saturating_sub(self.partial.len()).min(input.len());
        self.partial.extend_from_slice(&input[..taken]);
        taken
    }
}

/// Where the packet at the front ends; unknown until its length is there.
fn frame_end(bytes: &[u8], bytes_max: usize) -> Result<Option<usize>, FrameError> {
    let Some(length) = bytes.first_chunk() else { return Ok(None) };
    match usize::from(u16::from_be_bytes(*length)) {
        0 => Err(FrameError::Empty),
        length if length > bytes_max => Err(FrameError::TooLong(length)),
        length => Ok(Some(LENGTH_BYTES + length)),
    }
}

/// Appends a frame whose packet `write` appends.
pub(super) fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    write(out);
    let length = u16::try_from(out.len() - start - LENGTH_BYTES).expect("packets of ours are far below 64 KiB");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deframe(deframer: &mut Deframer, mut input: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut packets = Vec::new();
        while !input.is_empty() {
            let (consumed, place) = deframer.next(input, FRAME_BYTES_MAX)?;
            match place {
                Some(Place::Input(range)) => packets.push(input[range].to_vec()),
                Some(Place::Partial) => packets.push(deframer.partial[LENGTH_BYTES..].to_vec()),
                None => {}
            }
            input = &input[consumed..];
        }
        Ok(packets)
    }

    proptest! {
        #[test]
        fn packets_survive_any_cut(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..10),
            cuts in prop::collection::vec(1_usize..400, 1..40),
        ) {
            let mut stream = Vec::new();
            for packet in &packets {
                frame(&mut stream, |out| out.extend_from_slice(packet));
            }
            let mut deframer = Deframer::default();
            let mut seen = Vec::new();
            let mut rest = stream.as_slice();
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at(rest.len().min(*cut));
                seen.extend(deframe(&mut deframer, piece).unwrap());
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, packets);
            prop_assert!(!deframer.is_inside());
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_buffering() {
        assert_eq!(deframe(&mut Deframer::default(), &[0, 0]), Err(FrameError::Empty));
        assert_eq!(deframe(&mut Deframer::default(), &[0xff, 0xff]), Err(FrameError::TooLong(0xffff)));
        let mut deframer = Deframer::default();
        assert_eq!(deframe(&mut deframer, &[0xff]), Ok(vec![]));
        assert!(deframer.is_inside());
        assert_eq!(deframe(&mut deframer, &[0xff]), Err(FrameError::TooLong(0xffff)));
    }
}
