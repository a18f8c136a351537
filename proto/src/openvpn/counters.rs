//! What was dropped without a word.

use super::inner::InnerDrop;

/// How many packets of a session were dropped, by reason. They stop at their largest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Encrypted packets before the tunnel was up, or after it was told to end.
    pub early_data: u32,
    /// Encrypted packets for a key that is not there.
    pub unknown_key: u32,
    /// Control packets that came twice, or too early.
    pub control_order: u32,
    /// Control messages that this side does not know or not want.
    pub control_messages: u32,
    /// Packets of OpenVPN's own inside the tunnel.
    pub occ: u32,
    /// See [`InnerDrop::Malformed`] and [`InnerDrop::TooLarge`].
    pub malformed: u32,
    /// See [`InnerDrop::Source`].
    pub source: u32,
    /// See [`InnerDrop::LinkLocal`].
    pub link_local: u32,
    /// See [`InnerDrop::Fragment`].
    pub fragments: u32,
}

impl Counters {
    pub(super) const fn count_inner(&mut self, drop: InnerDrop) {
        let counter = match drop {
            InnerDrop::Malformed | InnerDrop::TooLarge => &mut self.malformed,
            InnerDrop::Source(_) => &mut self.source,
            InnerDrop::LinkLocal => &mut self.link_local,
            InnerDrop::Fragment => &mut self.fragments,
        };
        count(counter);
    }
}

pub(super) const fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}
