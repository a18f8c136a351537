//! Where a link stands, and the one table of how it moves on.

/// Where a link stands.
///
/// ```text
///            hello             welcome
/// AwaitHello ─────> AwaitWelcome ─────> Live
///     │                  │               │       goodbye of ours: asked for, a violation, a deadline, silence
///     └──────────────────┴───────────────┴─────> Closing
///     │                  │               │          │ socket gone, close deadline
///     └──────────────────┴───────────────┴──────────┴─────> Closed
///       goodbye of the peer, socket gone
/// ```
///
/// A device begins in `AwaitWelcome`, because its `Hello` is on the way from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Server: the device has said nothing yet. Deadline: [`Timing::hello_within`](super::Timing::hello_within).
    AwaitHello,
    /// The `Hello` is there, the `Welcome` is not. Deadline: [`WELCOME_WITHIN`](super::WELCOME_WITHIN), on a device
    /// [`WELCOME_WAIT_MAX`](super::WELCOME_WAIT_MAX).
    AwaitWelcome,
    /// Messages go both ways. Deadline: silence of the peer.
    Live,
    /// This side has said goodbye; whatever still comes in is dropped. Deadline: [`CLOSE_WITHIN`](super::CLOSE_WITHIN).
    Closing,
    /// It is over: nothing goes in or out any more.
    Closed,
}

/// What moves a link on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A valid `Hello` came.
    Hello,
    /// The `Welcome` was sent, or came.
    Welcome,
    /// This side says goodbye, for whatever reason.
    Leave,
    /// The peer said goodbye.
    PeerLeft,
    /// The socket is gone.
    TransportLost,
    /// The peer did not close in time.
    CloseDeadline,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::AwaitHello, Self::AwaitWelcome, Self::Live, Self::Closing, Self::Closed];

    /// Every transition there is; `None` where an event has no meaning.
    #[must_use]
    pub const fn next(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::AwaitHello, Event::Hello) => Some(Self::AwaitWelcome),
            (Self::AwaitWelcome, Event::Welcome) => Some(Self::Live),
            (Self::AwaitHello | Self::AwaitWelcome | Self::Live, Event::Leave) => Some(Self::Closing),
            (Self::AwaitHello | Self::AwaitWelcome | Self::Live, Event::PeerLeft | Event::TransportLost)
            | (Self::Closing, Event::TransportLost | Event::CloseDeadline) => Some(Self::Closed),
            (Self::AwaitHello, Event::Welcome | Event::CloseDeadline)
            | (Self::AwaitWelcome | Self::Live, Event::Hello | Event::CloseDeadline)
            | (Self::Live, Event::Welcome)
            | (Self::Closing, Event::Hello | Event::Welcome | Event::Leave | Event::PeerLeft)
            | (Self::Closed, _) => None,
        }
    }

    /// Whether the link is over, or about to be.
    #[must_use]
    pub const fn is_ending(self) -> bool {
        matches!(self, Self::Closing | Self::Closed)
    }
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 6] =
        [Self::Hello, Self::Welcome, Self::Leave, Self::PeerLeft, Self::TransportLost, Self::CloseDeadline];
}
