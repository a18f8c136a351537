//! One live tunnel: drives its session over its connection, with one timer, and moves packets between it and the plane.
//!
//! A connection that takes nothing holds up nothing else: reading goes on, time goes on, and what the client does not read
//! waits in bounded room and is then dropped. An idle tunnel owns no room at all: what comes in is decrypted in room that all
//! tunnels of a worker share, what goes out is encrypted where it waited.

mod bell;
mod inbound;
mod outbound;
#[cfg(test)]
pub(crate) mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::openvpn::{CloseReason, Counters, Farewell, Output, Session, Waited};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::plane::{Counts, Port};
use crate::link::{Ending, Handle};
use crate::metrics::TunnelDrop;
use bell::Bell;
use outbound::Outbox;

/// Reads and writes of one tunnel before others get their turn: about a quarter of a millisecond.
const ROUNDS_MAX: u32 = 4;

/// What a client logs when it is to connect to another node. `[N]`: if its profile names several servers, to the next one.
const RESTART_TEXT: &str = "[N]this node sends its devices to others";

/// A session that is up, and everything that it needs to go on.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) session: Box<Session>,
    pub(crate) stream: TcpStream,
    pub(crate) port: Port,
    pub(crate) handle: Arc<Handle>,
    /// When the client's certificate ends.
    pub(crate) expires_at: Instant,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// A fixed name, for metrics and the log.
    pub(crate) reason: &'static str,
    /// The connection was lost, or the client went: this side did not want it.
    pub(crate) is_loss: bool,
    /// What went through.
    pub(crate) counts: Counts,
}

/// Serves a tunnel until its end.
pub(crate) async fn run(tunnel: Tunnel, hard: CancellationToken) -> Ended {
    let handle = Arc::clone(&tunnel.handle);
    let mut driver = Box::new(Driver::new(tunnel));
    let bell = Arc::new(Bell::default());
    let end = loop {
        if let Some(ending) = handle.ending()
            && let Some(end) = driver.obey(ending)
        {
            break end;
        }
        tokio::select! {
            biased;
            is_over = bell.rung_by(stop(&hard, &handle)) => {
                if is_over {
                    break End::Told(Ending::Cut);
                }
            }
            end = poll_fn(|context| driver.poll(context)) => break end,
        }
    };
    driver.finish(&end)
}

/// Waits until the node stops hard, or has something to tell the tunnel; says whether it is the first.
async fn stop(hard: &CancellationToken, handle: &Handle) -> bool {
    tokio::select! {
        biased;
        () = hard.cancelled() => true,
        () = handle.woken() => false,
    }
}

/// Why a tunnel ends.
#[derive(Debug)]
enum End {
    Told(Ending),
    Closed(CloseReason),
    Lost(io::Error),
    /// The client takes nothing of what waits for it, for too long, or although it must be answered.
    Deaf,
}

impl End {
    /// Its name, and whether nobody here wanted it.
    fn reason(&self) -> (&'static str, bool) {
        match self {
            Self::Told(ending) => (told_reason(*ending), false),
            Self::Lost(_) => ("lost", true),
            Self::Deaf => ("slow", false),
            Self::Closed(CloseReason::PeerClosed | CloseReason::Truncated) => ("lost", true),
            Self::Closed(CloseReason::PeerExit) => ("device_closed", true),
            Self::Closed(CloseReason::Deadline(Waited::SignOfLife)) => ("timed_out", true),
            Self::Closed(reason) => (reason.label(), false),
        }
    }
}

fn told_reason(ending: Ending) -> &'static str {
    let Ending::Polite { code, .. } = ending else { return "cut" };
    match code {
        Code::Unspecified => "unspecified",
        Code::ShuttingDown => "shutting_down",
        Code::Replaced => "replaced",
        Code::Revoked => "revoked",
        Code::ProtocolError => "protocol_error",
        Code::TimedOut => "timed_out",
        Code::Version => "version",
        Code::Overloaded => "overloaded",
        Code::CertificateExpired => "certificate_expired",
    }
}

#[derive(Debug)]
struct Driver {
    tunnel: Tunnel,
    outbox: Outbox,
    timer: Pin<Box<Sleep>>,
    /// When time is to be looked at, if nothing happens before; never later than what is due.
    due: Instant,
    /// When the client is to be asked to come again.
    restart_at: Option<Instant>,
    /// What the rest of the node wants, while the session takes its leave.
    told: Option<Ending>,
    /// The session's counters as they were when they were last looked at.
    counted: Counters,
}

impl Driver {
    fn new(tunnel: Tunnel) -> Self {
        let timer = Box::pin(sleep_until(tunnel.expires_at));
        let counted = *tunnel.session.counters();
        let due = Instant::now();
        Self { tunnel, outbox: Outbox::default(), timer, due, restart_at: None, told: None, counted }
    }

    /// Does what the rest of the node asks for. A client that is turned away hears nothing: it comes again by itself, and is
    /// let in as soon as it may be. Told so, it would end for good (wire page, rule 8).
    fn obey(&mut self, ending: Ending) -> Option<End> {
        let now = Instant::now();
        if let Ending::Polite { code: Code::ShuttingDown, retry_after, .. } = ending {
            // Clients come again at once when they are asked to, so this side spreads them over time. A node that stops may lose its
            // place meanwhile: then nobody may wait for his turn.
            let restart_at = self.restart_at.unwrap_or(now + retry_after).min(now + retry_after);
            self.restart_at = Some(restart_at);
            self.due = self.due.min(restart_at);
            None
        } else if let Ending::Polite { .. } = ending {
            self.leave(now, ending, &Farewell::Silent);
            None
        } else {
            Some(End::Told(ending))
        }
    }

    fn leave(&mut self, now: Instant, ending: Ending, farewell: &Farewell) {
        if self.told.is_none() {
            self.told = Some(ending);
            self.tunnel.session.end(now.into_std(), farewell);
        }
    }

    /// Moves whatever can be moved, but not for ever.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        self.tunnel.port.wake(context.waker());
        for _ in 0..ROUNDS_MAX {
            let now = Instant::now();
            if now >= self.due
                && let Err(end) = self.pass_time(now)
            {
                return Poll::Ready(end);
            }
            match self.round(context, now) {
                Ok(true) => {}
                Ok(false) => {
                    if self.is_waiting(context, now) {
                        return Poll::Pending;
                    }
                }
                Err(end) => return Poll::Ready(end),
            }
        }
        self.due = self.due_next();
        // At the end of the line, behind other tunnels.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether there may be more to do.
    fn round(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let has_read = self.read(context, now)?;
        self.drain_session()?;
        let has_written = self.write(context, now)?;
        Ok(has_read || has_written)
    }

    /// Does what is due.
    fn pass_time(&mut self, now: Instant) -> Result<(), End> {
        if now >= self.tunnel.expires_at {
            self.leave(now, Ending::CERTIFICATE_EXPIRED, &Farewell::Silent);
        }
        if self.restart_at.is_some_and(|restart_at| now >= restart_at) {
            self.leave(now, Ending::SHUTTING_DOWN, &Farewell::Restart(RESTART_TEXT.to_owned()));
        }
        let session = &mut self.tunnel.session;
        if session.poll_timeout().is_some_and(|(due, _)| due <= now.into_std()) {
            session.handle_timeout(now.into_std());
            self.outbox.shrink();
            self.tunnel.port.shrink();
        }
        self.give_up_deaf(now)
    }

    /// Sees to it that the task is woken for what is due next. Says whether that is later than now.
    fn is_waiting(&mut self, context: &mut Context<'_>, now: Instant) -> bool {
        self.due = self.due_next();
        // A timer that fires too early costs less than one that is set anew with each packet.
        if self.due < self.timer.deadline() {
            self.timer.as_mut().reset(self.due);
        }
        while self.due > now {
            if self.timer.as_mut().poll(context).is_pending() {
                return true;
            }
            if self.timer.deadline() >= self.due {
                return false;
            }
            self.timer.as_mut().reset(self.due);
        }
        false
    }

    fn due_next(&self) -> Instant {
        let owner = [Some(self.tunnel.expires_at), self.restart_at].into_iter().filter(|_| self.told.is_none());
        let session = self.tunnel.session.poll_timeout().map(|(due, _)| Instant::from_std(due));
        owner.chain([session, self.deaf_at()]).flatten().min().unwrap_or(self.tunnel.expires_at)
    }

    fn drain_session(&mut self) -> Result<(), End> {
        while let Some(output) = self.tunnel.session.poll_output() {
            match output {
                Output::Transmit(frames) => self.outbox.push(frames).map_err(|outbound::Full| End::Deaf)?,
                // A renegotiation is nobody's business.
                Output::Event(_) => {}
                Output::Closed(reason) => return Err(self.told.map_or(End::Closed(reason), End::Told)),
            }
        }
        Ok(())
    }

    /// Counts what the session dropped since the last time.
    fn count_drops(&mut self) {
        let (now, before) = (*self.tunnel.session.counters(), self.counted);
        if now == before {
            return;
        }
        self.counted = now;
        let drops = [
            (TunnelDrop::Source, now.source - before.source),
            (TunnelDrop::LinkLocal, now.link_local - before.link_local),
            (TunnelDrop::Malformed, now.malformed - before.malformed),
            (TunnelDrop::Fragment, now.fragments - before.fragments),
            (TunnelDrop::Key, now.unknown_key - before.unknown_key),
        ];
        for (reason, packets) in drops {
            self.tunnel.port.drop_packets(reason, packets.into());
        }
    }

    fn finish(mut self: Box<Self>, end: &End) -> Ended {
        self.count_drops();
        let Tunnel { port, handle, .. } = &self.tunnel;
        let (reason, is_loss) = end.reason();
        match end {
            End::Closed(close) => tracing::debug!(device = %handle.key.device_id, reason, %close, "a tunnel has ended"),
            End::Lost(error) => tracing::debug!(device = %handle.key.device_id, reason, %error, "a tunnel has ended"),
            End::Told(_) | End::Deaf => tracing::debug!(device = %handle.key.device_id, reason, "a tunnel has ended"),
        }
        Ended { reason, is_loss, counts: port.traffic().counts() }
    }
}
