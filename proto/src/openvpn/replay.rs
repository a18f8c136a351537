//! Packet ids that were seen, so that none counts twice (wire page §2.6, §5.2).

/// How far behind the highest id a new one may still be (`packet_id.h: SEQ_BACKTRACK`'s default).
pub const WINDOW_IDS: u64 = 64;

/// Why a packet id is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Ids start at 1.
    #[error("packet id 0")]
    Zero,
    /// It was there before.
    #[error("a packet id came twice")]
    Repeated,
    /// Too far behind to know.
    #[error("a packet id is too old")]
    TooOld,
    /// The sender's clock went back, which a new session would have to do.
    #[error("a packet's time is older than the last one's")]
    TimeWentBack,
}

/// The highest id, and which of the [`WINDOW_IDS`] below it were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    highest: u64,
    /// Bit n: `highest - n` was there.
    seen: u64,
}

impl Window {
    /// Whether `id` may be accepted. Changes nothing: the packet is not authentic yet.
    pub(super) const fn check(&self, id: u64) -> Result<(), ReplayError> {
        if id == 0 {
            return Err(ReplayError::Zero);
        }
        if id > self.highest {
            return Ok(());
        }
        let behind = self.highest - id;
        if behind >= WINDOW_IDS {
            return Err(ReplayError::TooOld);
        }
        if self.seen >> behind & 1 == 1 { Err(ReplayError::Repeated) } else { Ok(()) }
    }

    /// Notes an id that [`Window::check`] let pass and whose packet is authentic.
    pub(super) const fn accept(&mut self, id: u64) {
        if id > self.highest {
            let ahead = id - self.highest;
            self.seen = if ahead >= WINDOW_IDS { 0 } else { self.seen << ahead };
            self.seen |= 1;
            self.highest = id;
        } else {
            self.seen |= 1 << (self.highest - id);
        }
    }

    pub(super) const fn highest(&self) -> u64 {
        self.highest
    }
}

/// The same for wrapped control packets, whose ids start again with a later time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimedWindow {
    time: u32,
    window: Window,
}

impl TimedWindow {
    /// Takes an authentic packet, or says why not.
    pub(super) fn accept(&mut self, time: u32, id: u32) -> Result<(), ReplayError> {
        if time < self.time {
            return Err(ReplayError::TimeWentBack);
        }
        let mut window = if time > self.time { Window::default() } else { self.window };
        window.check(id.into())?;
        window.accept(id.into());
        *self = Self { time, window };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_all_ids(ids in prop::collection::vec(0_u64..300, 1..200)) {
            let mut window = Window::default();
            let mut all = BTreeSet::new();
            for id in ids {
                let highest = all.last().copied().unwrap_or(0);
                let expected = if id == 0 {
                    Err(ReplayError::Zero)
                } else if id + WINDOW_IDS <= highest {
                    Err(ReplayError::TooOld)
                } else if all.contains(&id) {
                    Err(ReplayError::Repeated)
                } else {
                    Ok(())
                };
                prop_assert_eq!(window.check(id), expected);
                if expected.is_ok() {
                    window.accept(id);
                    all.insert(id);
                }
            }
        }
    }

    #[test]
    fn a_later_time_starts_anew_and_an_earlier_one_is_refused() {
        let mut window = TimedWindow::default();
        assert_eq!(window.accept(100, 7), Ok(()));
        assert_eq!(window.accept(100, 7), Err(ReplayError::Repeated));
        assert_eq!(window.accept(101, 7), Ok(()));
        assert_eq!(window.accept(100, 8), Err(ReplayError::TimeWentBack));
        assert_eq!(window.accept(101, 0), Err(ReplayError::Zero));
    }

    #[test]
    fn a_refused_packet_changes_nothing() {
        let mut window = TimedWindow::default();
        window.accept(100, 7).unwrap();
        assert_eq!(window.accept(200, 0), Err(ReplayError::Zero));
        assert_eq!(window.accept(100, 8), Ok(()));
    }
}
