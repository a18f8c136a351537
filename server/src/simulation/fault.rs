//! Faults of the cluster, one at a time, each of which must be found.

use std::sync::LazyLock;

use super::harm::{ASLEEP, LATE, Theme};
use crate::cluster::tenure::{Act, Event, RULES, Rule, Rules, Standing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    // In the table of a node's tenure.
    NobodyIsFenced,
    DoubtIsNoReason,
    WhoeverWasGoneGoesOn,
    WhoeverIsFencedStaysSo,
    ItIsNeverTooLateToAsk,
    OutagesCount,
    // Around it.
    ALeaseIsThoughtLonger,
    ALeaseCountsFromItsAnswer,
    EverybodySaysToBeCutOff,
    LinksOutliveTheFence,
    NobodyIsTakenToBeGone,
    SettlingHoldsUpRenewing,
    OlderLinksStay,
    OrphansStay,
    PausesAddUp,
    WhoeverIsLateTakesItsTime,
    // In the database.
    NobodyIsToldThatItWasGone,
    WhoWasGoneIsToldOnce,
    WhoIsBackIsClosed,
    LeasesEndByTheClock,
    WhoeverRenewsIsGoneToo,
    EpochsAreGivenTwice,
    AnyLinkIsClosed,
    WhatIsClosedStays,
    AnyLinkClaims,
    AnyLinkReports,
    SentCommandsHaveNoDeadline,
    SendingsAreForgotten,
    // In a device.
    TheLedgerIsForgotten,
}

impl Fault {
    pub(super) const ALL: [Self; 29] = [
        Self::NobodyIsFenced,
        Self::DoubtIsNoReason,
        Self::WhoeverWasGoneGoesOn,
        Self::WhoeverIsFencedStaysSo,
        Self::ItIsNeverTooLateToAsk,
        Self::OutagesCount,
        Self::ALeaseIsThoughtLonger,
        Self::ALeaseCountsFromItsAnswer,
        Self::EverybodySaysToBeCutOff,
        Self::LinksOutliveTheFence,
        Self::NobodyIsTakenToBeGone,
        Self::SettlingHoldsUpRenewing,
        Self::OlderLinksStay,
        Self::OrphansStay,
        Self::PausesAddUp,
        Self::WhoeverIsLateTakesItsTime,
        Self::NobodyIsToldThatItWasGone,
        Self::WhoWasGoneIsToldOnce,
        Self::WhoIsBackIsClosed,
        Self::LeasesEndByTheClock,
        Self::WhoeverRenewsIsGoneToo,
        Self::EpochsAreGivenTwice,
        Self::AnyLinkIsClosed,
        Self::WhatIsClosedStays,
        Self::AnyLinkClaims,
        Self::AnyLinkReports,
        Self::SentCommandsHaveNoDeadline,
        Self::SendingsAreForgotten,
        Self::TheLedgerIsForgotten,
    ];

    /// The harms that it shows by: among all that can happen it shows as well, but later.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others show soon enough")]
    pub(super) fn theme(self) -> Option<Theme> {
        match self {
            Self::ItIsNeverTooLateToAsk | Self::WhoeverIsLateTakesItsTime => Some(ASLEEP),
            Self::WhoeverWasGoneGoesOn
            | Self::NobodyIsToldThatItWasGone
            | Self::WhoWasGoneIsToldOnce
            | Self::WhoIsBackIsClosed => Some(LATE),
            _ => None,
        }
    }

    /// The rules of a node's tenure, with the fault in them if it is one of theirs.
    pub(super) fn rules(fault: Option<Self>) -> Rules {
        use Event::{Deadline, Missed, NotAll, Overdue, Renewed};
        use Standing::{Fenced, Held};

        static FAULTY: LazyLock<[Vec<Rule>; 5]> = LazyLock::new(|| {
            [
                with(&[(Held, Deadline, Held, Act::Wait), (Held, Overdue, Held, Act::Wait)]),
                with(&[(Held, NotAll, Held, Act::Wait), (Held, Overdue, Held, Act::Ask)]),
                with(&[(Held, Missed, Held, Act::Serve)]),
                with(&[(Fenced, Renewed, Fenced, Act::Wait)]),
                with(&[(Held, Overdue, Held, Act::Ask)]),
            ]
        });
        match fault {
            Some(Self::NobodyIsFenced) => Rules { table: &FAULTY[0], ..RULES },
            Some(Self::DoubtIsNoReason) => Rules { table: &FAULTY[1], ..RULES },
            Some(Self::WhoeverWasGoneGoesOn) => Rules { table: &FAULTY[2], ..RULES },
            Some(Self::WhoeverIsFencedStaysSo) => Rules { table: &FAULTY[3], ..RULES },
            Some(Self::ItIsNeverTooLateToAsk) => Rules { table: &FAULTY[4], ..RULES },
            Some(Self::OutagesCount) => Rules { cut_off_turns: 1_000, ..RULES },
            _ => RULES,
        }
    }
}

/// The rules, but for these.
fn with(others: &[Rule]) -> Vec<Rule> {
    let is_other = |(of, on, ..): &Rule| others.iter().any(|(standing, event, ..)| (standing, event) == (of, on));
    let mut rules: Vec<Rule> = RULES.table.iter().filter(|rule| !is_other(rule)).copied().collect();
    assert!(rules.len() + others.len() == RULES.table.len(), "each is in place of one");
    rules.extend(others);
    rules
}
