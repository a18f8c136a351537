//! Where a session stands, and the one table of how it moves on.

/// Where a session stands.
///
/// ```text
///            reset              keys               admitted
/// AwaitReset ─────> Handshaking ────> AwaitAdmission ─────> Live
///     │                  │                 │                 │   refused, told to go, told to end: a last message
///     │                  └─────────────────┴─────────────────┴─────> Ending
///     │ socket gone, violation, deadline                               │ acknowledged, deadline
///     └─ (from every state) ──────────────────────────────────────────────────> Closed
/// ```
///
/// Renegotiations happen inside `Live`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The peer's reset has not come. Deadline: [`FIRST_PACKET_WITHIN`](super::FIRST_PACKET_WITHIN) on a server.
    AwaitReset,
    /// TLS and the key exchange are under way. Deadline: [`HANDSHAKE_WITHIN`](super::HANDSHAKE_WITHIN).
    Handshaking,
    /// Keys are there. A server is to decide about its client and to tell it; a client waits to be told. Same deadline.
    AwaitAdmission,
    /// Packets go both ways. Deadline: silence of the peer.
    Live,
    /// A last message is on its way; whatever comes in but acknowledgements is dropped. Deadline:
    /// [`END_WITHIN`](super::END_WITHIN).
    Ending,
    /// It is over: nothing goes in or out any more.
    Closed,
}

/// What moves a session on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The peer's reset came.
    Reset,
    /// Both sides have the first key.
    Keys,
    /// A server has pushed what its client gets, or a client has it all.
    Admitted,
    /// This side has a last word for the peer.
    Leave,
    /// There is nothing more to be said.
    Close,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::AwaitReset, Self::Handshaking, Self::AwaitAdmission, Self::Live, Self::Ending, Self::Closed];

    /// Every transition there is; `None` where an event has no meaning.
    #[must_use]
    pub const fn next(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::AwaitReset, Event::Reset) => Some(Self::Handshaking),
            (Self::Handshaking, Event::Keys) => Some(Self::AwaitAdmission),
            (Self::AwaitAdmission, Event::Admitted) => Some(Self::Live),
            (Self::Handshaking | Self::AwaitAdmission | Self::Live, Event::Leave) => Some(Self::Ending),
            (Self::AwaitReset | Self::Handshaking | Self::AwaitAdmission | Self::Live | Self::Ending, Event::Close) => {
                Some(Self::Closed)
            }
            (Self::AwaitReset, Event::Keys | Event::Admitted | Event::Leave)
            | (Self::Handshaking, Event::Reset | Event::Admitted)
            | (Self::AwaitAdmission, Event::Reset | Event::Keys)
            | (Self::Live, Event::Reset | Event::Keys | Event::Admitted)
            | (Self::Ending, Event::Reset | Event::Keys | Event::Admitted | Event::Leave)
            | (Self::Closed, _) => None,
        }
    }
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 5] = [Self::Reset, Self::Keys, Self::Admitted, Self::Leave, Self::Close];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_this_one() {
        let mut table = String::new();
        for state in State::ALL {
            for event in Event::ALL {
                if let Some(next) = state.next(event) {
                    table += &format!("{state:?} + {event:?} = {next:?}\n");
                }
            }
        }
        insta::assert_snapshot!(table, @r"
        AwaitReset + Reset = Handshaking
        AwaitReset + Close = Closed
        Handshaking + Keys = AwaitAdmission
        Handshaking + Leave = Ending
        Handshaking + Close = Closed
        AwaitAdmission + Admitted = Live
        AwaitAdmission + Leave = Ending
        AwaitAdmission + Close = Closed
        Live + Leave = Ending
        Live + Close = Closed
        Ending + Close = Closed
        ");
    }
}
