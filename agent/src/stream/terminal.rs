//! A terminal: a program in a pseudo-terminal of its own, what it says, and what is typed.

mod process;
mod pty;
mod shell;

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::link::message::{StreamRequest, Terminal};
use cloudlink_proto::stream::{Control, DATA_BYTES_MAX, Signal as Asked};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep_until};

use self::process::Session;
use self::pty::Pty;
use self::shell::Shell;
pub use self::shell::become_if_asked;
use super::end::{Cut, End};
use super::leg::{Heard, Leg, Receiver, Sender};
use crate::config;

/// What was typed and the program has not taken yet, in bytes. With more, nothing more is read from the leg.
const TYPED_BYTES_MAX: usize = 256 * 1024;
/// What a program said before it ended is read up to this, in bytes.
const LAST_OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Nothing more is typed: each program that reads is told so, one after the other, until none is left.
const EOF_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What a terminal takes for the end of input: Ctrl-D.
const END_OF_INPUT: u8 = 4;

/// What would run in a terminal, and as whom. Nothing is started.
///
/// # Errors
/// When there could be none.
pub fn probe(settings: &config::Terminal) -> std::io::Result<String> {
    let shell = Shell::new(settings)?;
    Pty::open(80, 24)?;
    Ok(format!("{} as {}", shell.program.display(), shell.user))
}

/// Starts the program, and lets the operator speak with it. When this returns, nothing of it is left.
pub(super) async fn serve(
    leg: &mut Leg,
    asked: &Terminal,
    settings: &config::Terminal,
    request: &StreamRequest,
    cut: &Cut,
) -> End {
    let started = Shell::new(settings).and_then(|shell| start(&shell, asked, request));
    let (pty, mut session) = match started {
        Ok(started) => started,
        Err(error) => return End::failed("spawn_failed", format!("the terminal cannot be opened: {error}")),
    };
    let end = cut.or(converse(leg, &pty, &mut session)).await;
    if matches!(end, End::TimeIsUp | End::Stopping) {
        // Not a byte more, also while the program is still asked to go.
        end.say_last(leg, cut).await;
    }
    session.end().await;
    end
}

fn start(shell: &Shell, asked: &Terminal, request: &StreamRequest) -> std::io::Result<(Pty, Session)> {
    let (pty, slave) = Pty::open(size(asked.columns), size(asked.rows))?;
    let session_id = uuid::Uuid::from_slice(&request.session_id).unwrap_or_default();
    let session = Session::start(shell.command(slave, &asked.term, session_id)?)?;
    Ok((pty, session))
}

/// The protocol's limits hold: it always fits.
fn size(cells: u32) -> u16 {
    u16::try_from(cells).unwrap_or(u16::MAX)
}

async fn converse(leg: &mut Leg, pty: &Pty, session: &mut Session) -> End {
    let Leg { sender, receiver, line } = leg;
    if let Err(end) = sender.say(&Control::Ready).await {
        return end;
    }
    tokio::select! {
        end = say(sender, pty, session) => end,
        end = hear(receiver, pty) => end,
        end = line.broken() => end,
    }
}

/// All that the program says, and then how it ended.
async fn say(sender: &mut Sender, pty: &Pty, session: &mut Session) -> End {
    match output(sender, pty, session).await {
        Ok(status) => {
            let exit = exit(status);
            tracing::info!(exit = ?exit, "the shell has ended");
            sender.say(&exit).await.map_or_else(|end| end, |()| End::Done)
        }
        Err(end) => end,
    }
}

async fn output(sender: &mut Sender, pty: &Pty, session: &mut Session) -> Result<ExitStatus, End> {
    let mut buffer = vec![0; DATA_BYTES_MAX];
    let failed = |error: std::io::Error| End::failed("io_error", format!("the terminal is broken: {error}"));
    let status = loop {
        tokio::select! {
            biased;
            count = pty.read(&mut buffer) => match count.map_err(failed)? {
                // Nobody has the terminal open any more.
                0 => break session.wait().await.map_err(failed)?,
                count => sender.pass(Bytes::copy_from_slice(&buffer[..count])).await?,
            },
            status = session.wait() => break status.map_err(failed)?,
        }
    };
    // What it said last. What it left running may go on without end, and is not waited for.
    let mut left = LAST_OUTPUT_BYTES_MAX;
    while let Some(count) = pty.read_at_once(&mut buffer).filter(|_| left > 0) {
        left = left.saturating_sub(count);
        sender.pass(Bytes::copy_from_slice(&buffer[..count])).await?;
    }
    Ok(status)
}

fn exit(status: ExitStatus) -> Control {
    let signal = status.signal().map(|number| {
        Signal::try_from(number).map_or_else(|_| format!("SIG{number}"), |signal| signal.as_str().to_owned())
    });
    Control::Exit { status: status.code().and_then(|code| u8::try_from(code).ok()), signal }
}

/// All that the client says, to the program.
async fn hear(receiver: &mut Receiver, pty: &Pty) -> End {
    let mut typed = Typed::default();
    loop {
        tokio::select! {
            heard = receiver.next(), if typed.has_room() => {
                let end = match heard {
                    Ok(heard) => typed.take(heard, pty),
                    Err(end) => Err(end),
                };
                if let Err(end) = end {
                    return end;
                }
            }
            written = pty.write(&typed.bytes), if !typed.bytes.is_empty() => match written {
                Ok(count) => drop(typed.bytes.drain(..count)),
                Err(error) => {
                    tracing::debug!(%error, "the terminal takes nothing more");
                    return pending_end(receiver).await;
                }
            },
            () = sleep_until(typed.eof_at.unwrap_or_else(Instant::now)), if typed.eof_is_due() => {
                typed.bytes.push(END_OF_INPUT);
                typed.eof_at = Some(Instant::now() + EOF_AGAIN_AFTER);
            }
        }
    }
}

/// The program has ended or will soon, and how, is told by whoever reads its output.
async fn pending_end(receiver: &mut Receiver) -> End {
    loop {
        if let Err(end) = receiver.next().await {
            return end;
        }
    }
}

/// What was typed and is not yet with the program.
#[derive(Default)]
struct Typed {
    bytes: Vec<u8>,
    /// Nothing more comes: when the program is told so.
    eof_at: Option<Instant>,
}

impl Typed {
    fn has_room(&self) -> bool {
        self.bytes.len() < TYPED_BYTES_MAX
    }

    fn eof_is_due(&self) -> bool {
        self.eof_at.is_some() && self.bytes.is_empty()
    }

    fn take(&mut self, heard: Heard, pty: &Pty) -> Result<(), End> {
        match heard {
            Heard::Bytes(_) if self.eof_at.is_some() => {
                return Err(End::Protocol("bytes after the end of input".to_owned()));
            }
            Heard::Bytes(bytes) => self.bytes.extend_from_slice(&bytes),
            Heard::Control(Control::Resize { columns, rows }) => pty.resize(columns, rows),
            Heard::Control(Control::Signal { signal }) => signal_foreground(pty, signal),
            Heard::Control(Control::Eof) => self.eof_at = self.eof_at.or_else(|| Some(Instant::now())),
            Heard::Control(other) => return Err(End::Protocol(format!("{other:?} on a terminal"))),
        }
        Ok(())
    }
}

fn signal_foreground(pty: &Pty, asked: Asked) {
    let signal = match asked {
        Asked::Hup => Signal::SIGHUP,
        Asked::Int => Signal::SIGINT,
        Asked::Quit => Signal::SIGQUIT,
        Asked::Term => Signal::SIGTERM,
        Asked::Kill => Signal::SIGKILL,
    };
    let Some(group) = pty.foreground() else { return };
    if let Err(error) = killpg(Pid::from_raw(group), signal) {
        tracing::debug!(%error, %signal, "no process was signalled");
    }
}
