//! Which of the two certificates has its turn: the next one is tried out, the present one is what there is to fall back on.

use std::time::Duration;

use tokio::time::Instant;

use crate::identity::Slot;

/// How long no other certificate is asked for when the server refused one that it had issued, and then another. Else a server
/// that does not take its own certificates would be asked for one after the other without end.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// The same where each trial interrupts the link, because it goes through a tunnel that is made anew.
const ASK_AGAIN_AFTER_INTERRUPTION: Duration = Duration::from_secs(6 * 3600);

/// What became of the attempts since a certificate was last welcomed.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// Each trial interrupts the link.
    interrupts: bool,
    /// The last attempt with the next certificate went wrong: the present one has its turn.
    next_failed: bool,
    /// The server refused the next certificate.
    next_refused: bool,
    /// A next certificate was given up, and none has worked since.
    gave_up: bool,
    ask_not_before: Option<Instant>,
}

impl Trial {
    pub(super) fn interrupting() -> Self {
        Self { interrupts: true, ..Self::default() }
    }

    /// What to dial with.
    pub(super) fn slot(&self, has_current: bool, has_next: bool) -> Slot {
        if has_next && (!has_current || !self.next_failed) { Slot::Next } else { Slot::Current }
    }

    /// Takes in that there is no link with this one. Whether the other one is to be tried at once.
    pub(super) fn failed(&mut self, slot: Slot, refused: bool, has_current: bool) -> bool {
        if slot == Slot::Next && has_current {
            self.next_failed = true;
            self.next_refused |= refused;
            return true;
        }
        // What was refused is not tried again while there is hope for the other. When both are refused they take turns: it may
        // be the device that is not wanted for a while, and which of them the server holds for the present one is not known.
        self.next_failed = self.next_refused && !refused;
        false
    }

    /// Takes in that there is a link with this one. Whether the next one is to be given up.
    pub(super) fn welcomed(&mut self, slot: Slot, now: Instant) -> bool {
        let give_up = slot == Slot::Current && self.next_refused;
        self.next_failed = false;
        self.next_refused = false;
        if give_up {
            if self.gave_up {
                let pause = if self.interrupts { ASK_AGAIN_AFTER_INTERRUPTION } else { ASK_AGAIN_AFTER };
                self.ask_not_before = Some(now + pause);
            }
            self.gave_up = true;
        } else if slot == Slot::Next {
            self.gave_up = false;
            self.ask_not_before = None;
        }
        give_up
    }

    /// How long no other certificate is to be asked for.
    pub(super) fn ask_after(&self, now: Instant) -> Duration {
        self.ask_not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn what_was_refused_is_not_tried_again_while_there_is_hope_for_the_other() {
        let mut trial = Trial::default();
        assert_eq!(trial.slot(true, true), Slot::Next);
        assert!(trial.failed(Slot::Next, true, true), "the present one has its turn");
        assert_eq!(trial.slot(true, true), Slot::Current);
        assert!(!trial.failed(Slot::Current, false, true));
        assert_eq!(trial.slot(true, true), Slot::Current);
        assert!(trial.welcomed(Slot::Current, Instant::now()), "now it is certain which was refused");
    }

    #[test]
    fn certificates_that_are_both_refused_take_turns() {
        let mut trial = Trial::default();
        for _ in 0..3 {
            assert_eq!(trial.slot(true, true), Slot::Next);
            trial.failed(Slot::Next, true, true);
            assert_eq!(trial.slot(true, true), Slot::Current);
            trial.failed(Slot::Current, true, true);
        }
        assert!(!trial.welcomed(Slot::Next, Instant::now()));
    }

    #[rstest]
    #[case::beside_the_present_link(Trial::default(), ASK_AGAIN_AFTER)]
    #[case::in_place_of_the_present_link(Trial::interrupting(), ASK_AGAIN_AFTER_INTERRUPTION)]
    fn a_server_that_refuses_what_it_issues_is_not_asked_without_end(
        #[case] mut trial: Trial,
        #[case] pause: Duration,
    ) {
        let now = Instant::now();
        for pause in [Duration::ZERO, pause, pause] {
            trial.failed(Slot::Next, true, true);
            assert!(trial.welcomed(Slot::Current, now));
            assert_eq!(trial.ask_after(now), pause);
        }
        trial.welcomed(Slot::Next, now);
        assert_eq!(trial.ask_after(now), Duration::ZERO);
    }
}
