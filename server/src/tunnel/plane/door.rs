//! What passes between the node and one device besides its link: pings, unless the device is in quarantine, and the ports that
//! are open for support. Each of those closes by itself at its time, whoever forgets to close it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::wall::Passage;
use crate::metrics::TunnelDrop;

/// Ports of one device that are open, or were lately. What is beyond stays closed.
pub(crate) const OPENINGS_MAX: usize = 64;
/// How long it is remembered that a port was open. A device that is cut off goes on sending for about so long, and did nothing
/// that it may not.
const CLOSED_KEPT: Duration = Duration::from_secs(1200);

/// The doors of one tunnel. What is open is read without a lock.
#[derive(Debug, Default)]
pub(super) struct Doors {
    is_quarantined: AtomicBool,
    openings: ArcSwapOption<Vec<Opening>>,
}

#[derive(Clone, Copy, Debug)]
struct Opening {
    port: u16,
    until: Instant,
}

impl Doors {
    pub(super) fn set_quarantine(&self, is_quarantined: bool) {
        self.is_quarantined.store(is_quarantined, Ordering::Release);
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.is_quarantined.load(Ordering::Acquire)
    }

    /// These are open from now on, and no others.
    pub(super) fn set_openings(&self, openings: &[(u16, Instant)], now: Instant) {
        self.openings.rcu(|before| {
            let before = before.as_deref().map_or(&[][..], Vec::as_slice);
            let after = replace(before, openings, now);
            (!after.is_empty()).then(|| Arc::new(after))
        });
    }

    /// Whether something out of the tunnel may pass. The clock is looked at only where it matters, and then with each packet: a
    /// process that stood still must not go on where it was.
    pub(super) fn check(&self, passage: Passage, clock: impl FnOnce() -> Instant) -> Result<(), TunnelDrop> {
        match passage {
            Passage::Link => return Ok(()),
            Passage::Echo => {}
            Passage::Answer(port) => self.check_answer(port, clock())?,
        }
        if self.is_quarantined() { Err(TunnelDrop::Quarantine) } else { Ok(()) }
    }

    fn check_answer(&self, port: u16, now: Instant) -> Result<(), TunnelDrop> {
        match self.until(port) {
            Some(until) if now < until => Ok(()),
            Some(until) if now < until + CLOSED_KEPT => Err(TunnelDrop::Closed),
            Some(_) | None => Err(TunnelDrop::Port),
        }
    }

    /// Whether something of the node's may go into the tunnel.
    pub(super) fn lets_out(&self, passage: Passage, clock: impl FnOnce() -> Instant) -> bool {
        match passage {
            Passage::Link => true,
            Passage::Echo => !self.is_quarantined(),
            Passage::Answer(port) => !self.is_quarantined() && self.until(port).is_some_and(|until| clock() < until),
        }
    }

    fn until(&self, port: u16) -> Option<Instant> {
        let openings = self.openings.load();
        openings.as_deref()?.iter().find(|opening| opening.port == port).map(|opening| opening.until)
    }
}

/// What is open, then what was open and is remembered.
fn replace(before: &[Opening], openings: &[(u16, Instant)], now: Instant) -> Vec<Opening> {
    let mut after: Vec<_> = openings.iter().map(|&(port, until)| Opening { port, until }).collect();
    after.truncate(OPENINGS_MAX);
    for closed in before {
        let until = closed.until.min(now);
        if after.len() < OPENINGS_MAX
            && now < until + CLOSED_KEPT
            && !after.iter().any(|opening| opening.port == closed.port)
        {
            after.push(Opening { until, ..*closed });
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: Passage = Passage::Answer(22);
    const SECOND: Duration = Duration::from_secs(1);

    fn check(doors: &Doors, now: Instant) -> [Option<TunnelDrop>; 3] {
        [Passage::Link, Passage::Echo, ANSWER].map(|passage| doors.check(passage, || now).err())
    }

    fn lets_out(doors: &Doors, now: Instant) -> [bool; 3] {
        [Passage::Link, Passage::Echo, ANSWER].map(|passage| doors.lets_out(passage, || now))
    }

    #[test]
    fn a_port_is_open_until_its_time_and_no_longer() {
        let (doors, now) = (Doors::default(), Instant::now());
        assert_eq!(check(&doors, now), [None, None, Some(TunnelDrop::Port)]);
        assert_eq!(lets_out(&doors, now), [true, true, false]);
        doors.set_openings(&[(22, now + SECOND)], now);
        for moment in [now, now + SECOND - Duration::from_nanos(1)] {
            assert_eq!(check(&doors, moment), [None, None, None]);
            assert_eq!(lets_out(&doors, moment), [true, true, true]);
            assert_eq!(doors.check(Passage::Answer(23), || moment), Err(TunnelDrop::Port));
            assert!(!doors.lets_out(Passage::Answer(23), || moment));
        }
        assert_eq!(check(&doors, now + SECOND), [None, None, Some(TunnelDrop::Closed)]);
        assert_eq!(lets_out(&doors, now + SECOND), [true, true, false]);
        assert_eq!(check(&doors, now + SECOND + CLOSED_KEPT), [None, None, Some(TunnelDrop::Port)]);
    }

    #[test]
    fn a_port_that_is_closed_early_is_remembered_and_can_be_opened_again() {
        let (doors, now) = (Doors::default(), Instant::now());
        let open = [22, 80].map(|port| (port, now + 3600 * SECOND));
        doors.set_openings(&open, now);
        doors.set_openings(&open[1..], now);
        assert_eq!(doors.check(ANSWER, || now), Err(TunnelDrop::Closed));
        assert_eq!(doors.check(Passage::Answer(80), || now), Ok(()));
        doors.set_openings(&open, now);
        assert_eq!(doors.check(ANSWER, || now), Ok(()));
        doors.set_openings(&[], now);
        assert_eq!(check(&doors, now), [None, None, Some(TunnelDrop::Closed)]);
        // Being told again that nothing is open makes it no younger, and nothing is kept for ever.
        doors.set_openings(&[], now + CLOSED_KEPT - SECOND);
        assert_eq!(doors.openings.load().as_deref().map(Vec::len), Some(2));
        doors.set_openings(&[], now + CLOSED_KEPT);
        assert!(doors.openings.load().is_none());
    }

    #[test]
    fn in_quarantine_only_the_link_passes() {
        let (doors, now) = (Doors::default(), Instant::now());
        doors.set_openings(&[(22, now + SECOND)], now);
        doors.set_quarantine(true);
        assert_eq!(check(&doors, now), [None, Some(TunnelDrop::Quarantine), Some(TunnelDrop::Quarantine)]);
        assert_eq!(lets_out(&doors, now), [true, false, false]);
        // What would not pass anyway keeps its reason.
        assert_eq!(doors.check(Passage::Answer(23), || now), Err(TunnelDrop::Port));
        doors.set_quarantine(false);
        assert_eq!(lets_out(&doors, now), [true, true, true]);
    }

    #[test]
    fn only_so_many_ports_are_open_or_remembered() {
        let (doors, now) = (Doors::default(), Instant::now());
        let many: Vec<_> = (1000..).map(|port| (port, now + SECOND)).take(OPENINGS_MAX + 1).collect();
        doors.set_openings(&many, now);
        assert_eq!(doors.check(Passage::Answer(many[OPENINGS_MAX - 1].0), || now), Ok(()));
        assert_eq!(doors.check(Passage::Answer(many[OPENINGS_MAX].0), || now), Err(TunnelDrop::Port));
        doors.set_openings(&[(22, now + SECOND)], now);
        assert_eq!(doors.openings.load().as_deref().map(Vec::len), Some(OPENINGS_MAX));
        assert_eq!(doors.check(ANSWER, || now), Ok(()));
    }
}
