//! Drives a session over its connection until the client is there, or is not to be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::openvpn::{
    Admission, Authenticated, CloseReason, Event, Farewell, Output, ServerConfig, ServerEvent, Session, Start,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::turn::{Turn, Turns};
use crate::clock;
use crate::link::tls;
use crate::metrics::Failure;

/// A handshake whose client lets it wait for longer gives its turn to the next one, and asks for another when the client goes on:
/// who is slow, or says nothing, holds up nobody.
const HOLD_TURN: Duration = Duration::from_millis(20);
/// What is read at once.
const READ_BYTES: usize = 4_096;

/// A session on its way up.
pub(super) struct Handshake<'a> {
    stream: TcpStream,
    session: Box<Session>,
    turns: &'a Turns,
    turn: Option<Turn>,
    /// When a client that does not go on is given up. Moves on while the handshake waits for its turn.
    deadline: Instant,
    unsent: Vec<u8>,
    authenticated: Option<Box<Authenticated>>,
    is_connected: bool,
    closed: Option<CloseReason>,
}

impl<'a> Handshake<'a> {
    /// Begins with the bytes that told what the connection speaks, when its turn has come.
    pub(super) async fn begin(
        stream: TcpStream,
        mut first: Vec<u8>,
        config: Arc<ServerConfig>,
        turns: &'a Turns,
        within: Duration,
    ) -> Self {
        let turn = turns.take().await;
        let now = Instant::now();
        let session = Box::new(Session::server(now.into_std(), config, start()));
        let mut handshake = Self {
            stream,
            session,
            turns,
            turn: Some(turn),
            deadline: now + within,
            unsent: Vec::new(),
            authenticated: None,
            is_connected: false,
            closed: None,
        };
        handshake.feed(&mut first);
        handshake
    }

    /// Waits until the client has proven who it is.
    pub(super) async fn authenticate(&mut self) -> Result<Box<Authenticated>, Failure> {
        self.go_on(|handshake| handshake.authenticated.is_some()).await?;
        // What is left to do costs nothing.
        self.turn = None;
        Ok(self.authenticated.take().expect("waited for"))
    }

    /// Takes the client in, and waits until it knows.
    pub(super) async fn admit(&mut self, admission: &Admission) -> Result<(), Failure> {
        if self.session.admit(Instant::now().into_std(), admission).is_err() {
            return Err(Failure::Timeout);
        }
        self.drain();
        self.go_on(|handshake| handshake.is_connected).await
    }

    /// Sends the client away, and waits until it has heard that.
    pub(super) async fn send_away(&mut self, farewell: &Farewell) {
        self.session.end(Instant::now().into_std(), farewell);
        self.drain();
        // It ends by itself, whatever the client does.
        let _ = self.go_on(|_| false).await;
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// What is needed to go on with a session that is up.
    pub(super) fn into_parts(self) -> (TcpStream, Box<Session>) {
        (self.stream, self.session)
    }

    async fn go_on(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        loop {
            self.transmit().await?;
            if let Some(reason) = &self.closed {
                return Err(failure(reason));
            }
            if is_done(self) {
                return Ok(());
            }
            self.wait().await?;
            self.receive()?;
        }
    }

    async fn transmit(&mut self) -> Result<(), Failure> {
        let unsent = std::mem::take(&mut self.unsent);
        if unsent.is_empty() {
            return Ok(());
        }
        match timeout_at(self.deadline, self.stream.write_all(&unsent)).await {
            Ok(sent) => sent.map_err(|_| Failure::Closed),
            Err(_) => Err(Failure::Timeout),
        }
    }

    /// Waits until there is something to read, or until time asks for something.
    async fn wait(&mut self) -> Result<(), Failure> {
        if self.turn.is_some() {
            if timeout(HOLD_TURN, self.stream.readable()).await.is_ok() {
                return Ok(());
            }
            self.turn = None;
        }
        let due = self.session.poll_timeout().map_or(self.deadline, |(due, _)| self.deadline.min(due.into()));
        tokio::select! {
            readable = self.stream.readable() => readable.map_err(|_| Failure::Closed)?,
            () = sleep_until(due) => {
                let now = Instant::now();
                if now >= self.deadline {
                    return Err(Failure::Timeout);
                }
                self.session.handle_timeout(now.into_std());
                self.drain();
                return Ok(());
            }
        }
        // Only TLS is worth a turn.
        if self.session.agreed().is_none() {
            let asked_at = Instant::now();
            self.turn = Some(self.turns.take().await);
            self.deadline += asked_at.elapsed();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; READ_BYTES];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => {
                self.session.handle_end_of_stream(Instant::now().into_std());
                self.drain();
            }
            Ok(bytes) => self.feed(&mut buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Failure::Closed),
        }
        Ok(())
    }

    /// Packets of a client that knows of nothing yet are worth nothing: it sends them again.
    fn feed(&mut self, mut bytes: &mut [u8]) {
        let now = Instant::now().into_std();
        while !bytes.is_empty() {
            let consumed = self.session.handle_input(now, bytes).consumed;
            bytes = &mut bytes[consumed..];
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Transmit(bytes) => self.unsent.extend_from_slice(&bytes),
                Output::Event(Event::Server(ServerEvent::Authenticated(client))) => self.authenticated = Some(client),
                Output::Event(Event::Server(ServerEvent::Connected)) => self.is_connected = true,
                Output::Event(Event::Client(_) | Event::Rekeyed(_)) => {}
                Output::Closed(reason) => self.closed = Some(reason),
            }
        }
    }
}

fn start() -> Start {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).expect("the system's random source has no way to fail once it is seeded");
    Start { seed, unix_seconds: u32::try_from(clock::now().unix_timestamp()).unwrap_or(u32::MAX) }
}

/// Why it came to nothing, in the words of the other side of the port.
fn failure(reason: &CloseReason) -> Failure {
    match reason {
        CloseReason::Tls(error) => tls::failure_of(error),
        CloseReason::WeakTls | CloseReason::PeerAlert(_) => Failure::Tls,
        CloseReason::Deadline(_) => Failure::Timeout,
        CloseReason::Unwrap(_) | CloseReason::ClientKey(_) => Failure::Wrapping,
        CloseReason::PeerClosed
        | CloseReason::Truncated
        | CloseReason::PeerEndedTls
        | CloseReason::PeerExit
        | CloseReason::Ended => Failure::Closed,
        CloseReason::Frame(_)
        | CloseReason::Opcode(_)
        | CloseReason::KeyMethod1
        | CloseReason::Unexpected(_)
        | CloseReason::Packet(_)
        | CloseReason::SessionId
        | CloseReason::Budget
        | CloseReason::KeyExchange(_)
        | CloseReason::CertificateChanged
        | CloseReason::Refused(_)
        | CloseReason::Message(_)
        | CloseReason::Data(_)
        | CloseReason::Renegotiation
        | CloseReason::RenegotiationRate
        | CloseReason::PushRequests
        | CloseReason::AuthFailed(_)
        | CloseReason::Restart(_)
        | CloseReason::Halt(_)
        | CloseReason::Push(_) => Failure::Protocol,
    }
}
