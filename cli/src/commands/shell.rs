//! A terminal on a device.

use std::io;
use std::str::FromStr;

use bytes::Bytes;
use clap::Args;
use cloudlink_proto::stream::{Control, DATA_BYTES_MAX, Mode};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::{Context, support};
use crate::client::{Answer, Client};
use crate::failure::Failure;
use crate::model::SupportSession;
use crate::resolve;
use crate::stream::screen::{self, Screen, Size};
use crate::stream::{self, Escape, Heard, PING_INTERVAL, Receiver, Sender};

/// What is typed, at once.
const TYPED_BYTES_MAX: usize = 16 * 1024;
const _: () = assert!(TYPED_BYTES_MAX * 2 <= DATA_BYTES_MAX, "an escape that is none grows by a byte");
/// Exit code of a program that a signal ended, less the signal's number.
const SIGNALLED: u8 = 128;
/// Of a remote shell that a signal without a number here ended.
const SIGNALLED_SOMEHOW: u8 = 255;

const INTERRUPT: u8 = 0x03;

#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// Name or id of the device
    #[arg(required_unless_present_any = ["join", "watch"])]
    device: Option<String>,
    #[command(flatten)]
    why: support::Why,
    /// Join the terminal of this support session: see it, and type
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["watch", "reason", "grant"])]
    join: Option<String>,
    /// Watch the terminal of this support session
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["reason", "grant"])]
    watch: Option<String>,
}

/// What somebody is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It is the own session.
    Open,
    Join,
    Watch,
}

impl Shell {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let (part, session) = self.session(context, &client).await?;
        // Until the device is there Ctrl-C does what it always does.
        let stream = stream::open(&client, session.value.id, &query(part)).await?;
        let screen = Screen::take()?;
        hello(&screen, part, &session.value, context);
        let end = Terminal { screen: &screen, part }.run(stream).await;
        let clean = matches!(end, Ok(End::Exited(_)));
        if !clean {
            screen.reset();
        }
        drop(screen);
        match end? {
            End::Exited(0) | End::Left => Ok(()),
            End::Exited(status) => Err(Failure::Status(status)),
            End::Killed(number) => Err(Failure::Status(SIGNALLED + number)),
        }
    }

    async fn session(&self, context: &Context, client: &Client) -> Result<(Part, Answer<SupportSession>), Failure> {
        let (part, session) = match (&self.join, &self.watch) {
            (Some(session), _) => (Part::Join, session),
            (None, Some(session)) => (Part::Watch, session),
            (None, None) => {
                let device = self.device.as_deref().unwrap_or_default();
                let session = self.why.open(context, client, device, "terminal", json!({})).await?;
                return Ok((Part::Open, session));
            }
        };
        let session = client.support_session(support::id(session)?).await?;
        if session.value.kind != "terminal" {
            return Err(Failure::Usage(format!("{} is no terminal: {}", session.value.id, session.value.kind)));
        }
        if let Some(device) = &self.device {
            let device = resolve::device(client, device).await?.value;
            if device.id != session.value.device_id {
                return Err(Failure::Usage(format!("{} is not on {}", session.value.id, device.name)));
            }
        }
        Ok((part, session))
    }
}

fn query(part: Part) -> Vec<(&'static str, String)> {
    let mode = if part == Part::Watch { "watch" } else { "operate" };
    let mut query = vec![("mode", mode.to_owned())];
    if part != Part::Watch {
        let Size { columns, rows } = Size::now();
        query.extend([("columns", columns.to_string()), ("rows", rows.to_string())]);
    }
    if part == Part::Open {
        query.push(("term", screen::term()));
    }
    query
}

fn hello(screen: &Screen, part: Part, session: &SupportSession, context: &Context) {
    if !screen.is_typed {
        return;
    }
    let until = context.output.here().local(session.expires_at);
    screen.note(&match part {
        Part::Open => format!("Session {}, recorded, until {until} at most. ~? for help, ~. leaves.", session.id),
        Part::Join => format!("You have joined session {}, recorded, until {until} at most. ~. leaves.", session.id),
        Part::Watch => format!("You watch session {}, until {until} at most. Ctrl-C leaves.", session.id),
    });
}

/// How a terminal ended, if nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The remote shell, with that exit code.
    Exited(u8),
    /// Whoever sits here had enough.
    Left,
    /// This program was told to end by the signal of that number.
    Killed(u8),
}

#[derive(Debug)]
struct Terminal<'a> {
    screen: &'a Screen,
    part: Part,
}

impl Terminal<'_> {
    async fn run(&self, (mut sender, mut receiver): (Sender, Receiver)) -> Result<End, Failure> {
        // From a pipe more may come than the device takes for a while, and the server waits for it.
        if self.screen.is_typed {
            receiver.expect_answers();
        }
        let end = tokio::select! {
            end = self.show(&mut receiver, tokio::io::stdout()) => end,
            end = self.type_in(&mut sender, tokio::io::stdin()) => end,
            number = killed() => Ok(End::Killed(number)),
        };
        sender.close().await;
        end
    }

    /// Shows what comes, until it is over.
    async fn show(&self, receiver: &mut Receiver, mut out: impl AsyncWrite + Unpin) -> Result<End, Failure> {
        loop {
            match receiver.next().await? {
                Heard::Bytes(bytes) => {
                    out.write_all(&bytes).await.map_err(Failure::of_output)?;
                    out.flush().await.map_err(Failure::of_output)?;
                }
                Heard::Gone => return Err(stream::gone()),
                Heard::Control(Control::Exit { status, signal }) => {
                    return Ok(End::Exited(exit_code(status, signal.as_deref())));
                }
                Heard::Control(Control::Failed { code, message }) => return Err(Failure::Device { code, message }),
                Heard::Control(Control::Closed { reason, message }) => return Err(Failure::Closed { reason, message }),
                Heard::Control(Control::Warning { seconds_left, reason }) => {
                    self.screen.note(&stream::warning(seconds_left, reason.as_deref()));
                }
                Heard::Control(Control::Joined { name, mode }) => self.screen.note(&match mode {
                    Mode::Operate => format!("{name} has joined, and can type."),
                    Mode::Watch => format!("{name} watches."),
                }),
                Heard::Control(Control::Left { name }) => self.screen.note(&format!("{name} has left.")),
                // What is said of other streams means nothing here.
                Heard::Control(
                    Control::Ready
                    | Control::Resize { .. }
                    | Control::Screen { .. }
                    | Control::Signal { .. }
                    | Control::Eof
                    | Control::File { .. }
                    | Control::Done { .. },
                ) => {}
            }
        }
    }

    /// Sends what is typed. Ends when whoever types leaves; that the connection is over is for the other direction to tell.
    async fn type_in(&self, sender: &mut Sender, mut input: impl AsyncRead + Unpin) -> Result<End, Failure> {
        let mut escape = Escape::new();
        let mut typed = vec![0; TYPED_BYTES_MAX];
        let mut pings = interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resized = signals(SignalKind::window_change())?;
        let mut resumed = signals(SignalKind::from_raw(Signal::SIGCONT as i32))?;
        let mut at_end = self.part == Part::Watch && !self.screen.is_typed;
        loop {
            let sent = tokio::select! {
                read = input.read(&mut typed), if !at_end => match read {
                    Ok(0) | Err(_) => {
                        at_end = true;
                        // A terminal that is gone takes its user with it.
                        if self.screen.is_typed {
                            return Ok(End::Left);
                        }
                        self.part == Part::Watch || sender.control(&Control::Eof).await
                    }
                    Ok(read) => match self.keys(&mut escape, &typed[..read]) {
                        None => return Ok(End::Left),
                        Some(bytes) => bytes.is_empty() || sender.bytes(bytes).await,
                    },
                },
                _ = resized.recv() => self.resize(sender).await,
                _ = resumed.recv() => {
                    self.screen.make_raw()?;
                    self.resize(sender).await
                }
                _ = pings.tick() => sender.ping().await,
            };
            if !sent {
                return std::future::pending().await;
            }
        }
    }

    /// What is to be sent of what was typed; `None` to leave.
    fn keys(&self, escape: &mut Escape, typed: &[u8]) -> Option<Bytes> {
        if !self.screen.is_typed {
            return (self.part != Part::Watch).then(|| Bytes::copy_from_slice(typed)).or_else(|| Some(Bytes::new()));
        }
        if self.part == Part::Watch && typed.contains(&INTERRUPT) {
            return None;
        }
        let typed = escape.feed(typed);
        if typed.help {
            self.screen.note("~. leaves the session, ~~ types a ~, ~? shows this; each at the beginning of a line.");
        }
        match (typed.leave, self.part) {
            (true, _) => None,
            (false, Part::Watch) => Some(Bytes::new()),
            (false, Part::Open | Part::Join) => Some(typed.bytes.into()),
        }
    }

    /// The terminal fits into the windows of all who type.
    async fn resize(&self, sender: &mut Sender) -> bool {
        if self.part == Part::Watch {
            return true;
        }
        let Size { columns, rows } = Size::now();
        sender.control(&Control::Resize { columns, rows }).await
    }
}

/// As a shell would give it.
fn exit_code(status: Option<u8>, signal: Option<&str>) -> u8 {
    match (status, signal.map(Signal::from_str)) {
        (Some(status), _) => status,
        (None, Some(Ok(signal))) => SIGNALLED.saturating_add(number(signal)),
        (None, Some(Err(_)) | None) => SIGNALLED_SOMEHOW,
    }
}

fn number(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(u8::MAX)
}

/// Waits for a signal that ends programs, so that the terminal is put right before.
pub(super) async fn killed() -> u8 {
    let wait = async |signal: Signal| {
        match signals(SignalKind::from_raw(signal as i32)) {
            Ok(mut signals) => signals.recv().await,
            // It is not caught, then, and ends the program by itself.
            Err(_) => std::future::pending().await,
        };
        number(signal)
    };
    tokio::select! {
        number = wait(Signal::SIGTERM) => number,
        number = wait(Signal::SIGHUP) => number,
        number = wait(Signal::SIGINT) => number,
        number = wait(Signal::SIGQUIT) => number,
    }
}

fn signals(kind: SignalKind) -> Result<Signals, Failure> {
    signal(kind).map_err(|error: io::Error| Failure::Other(error.into()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Some(0), None, 0)]
    #[case(Some(255), None, 255)]
    #[case(Some(3), Some("SIGKILL"), 3)]
    #[case(None, Some("SIGKILL"), 137)]
    #[case(None, Some("SIGTERM"), 143)]
    #[case(None, Some("SIGSTRANGE"), 255)]
    #[case(None, None, 255)]
    fn ends_as_a_local_shell_would(#[case] status: Option<u8>, #[case] signal: Option<&str>, #[case] expected: u8) {
        assert_eq!(exit_code(status, signal), expected);
    }
}
