//! The terminal that somebody sits at: raw while a remote shell has it, and as it was before afterwards, whatever happens.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::{Mutex, Once, PoisonError};

use anyhow::Context;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::failure::Failure;
use crate::output::plain;

/// Undoes what a program that was cut off in the middle may have left behind: the second screen, an invisible cursor, reports of
/// the mouse, marks around what is pasted, colours, keys that mean something else. What is said then begins on a line of its own.
const RESET: &[u8] =
    b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[0m\r\n";
/// Of a device's terminal whose operator has none.
const SIZE_DEFAULT: Size = Size { columns: 80, rows: 24 };
const CELLS_MAX: u16 = 1_000;
const TERM_BYTES_MAX: usize = 64;
/// A terminal that can do nothing.
const TERM_DUMB: &str = "dumb";

/// How the terminal was. There is one at most, and a panic must be able to get at it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

/// Where a remote shell is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    /// Somebody types.
    pub(crate) is_typed: bool,
    /// Somebody looks.
    is_seen: bool,
}

impl Screen {
    /// Takes the terminal, if there is one.
    pub(crate) fn take() -> Result<Self, Failure> {
        let screen = Self { is_typed: io::stdin().is_terminal(), is_seen: io::stdout().is_terminal() };
        if screen.is_typed {
            PANIC_HOOK.call_once(|| {
                let report = panic::take_hook();
                panic::set_hook(Box::new(move |info| {
                    restore();
                    report(info);
                }));
            });
            let termios = tcgetattr(io::stdin()).context("the terminal cannot be asked for its state")?;
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(termios);
            screen.make_raw()?;
        }
        Ok(screen)
    }

    /// Whoever was stopped and goes on may find the terminal changed.
    pub(crate) fn make_raw(&self) -> Result<(), Failure> {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut raw) = before.clone() {
            cfmakeraw(&mut raw);
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).context("the terminal cannot be made raw")?;
        }
        Ok(())
    }

    /// A line of this program's own, between those of the remote shell.
    pub(crate) fn note(&self, text: &str) {
        let end = if self.is_typed { "\r\n" } else { "\n" };
        let begin = if self.is_seen { end } else { "" };
        let mut stderr = io::stderr().lock();
        // Nobody can be told when standard error is gone.
        let _ = write!(stderr, "{begin}[cloudlink] {}{end}", plain(text));
        let _ = stderr.flush();
    }

    /// After a shell that did not end by itself: what follows is readable.
    pub(crate) fn reset(&self) {
        if self.is_seen {
            let mut stdout = io::stdout().lock();
            let _ = stdout.write_all(RESET).and_then(|()| stdout.flush());
        }
    }
}

/// The value of TERM for the device.
#[must_use]
pub(crate) fn term() -> String {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let term = if io::stdout().is_terminal() { env::var("TERM").ok() } else { None };
    term.filter(|term| (1..=TERM_BYTES_MAX).contains(&term.len()) && term.bytes().all(allowed))
        .unwrap_or_else(|| TERM_DUMB.to_owned())
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

impl Size {
    /// Of the window.
    #[must_use]
    pub(crate) fn now() -> Self {
        let (stdout, stderr) = (console::Term::stdout(), console::Term::stderr());
        let size = if stdout.is_term() { stdout.size_checked() } else { stderr.size_checked() };
        size.map_or(SIZE_DEFAULT, |(rows, columns)| Self::within(columns, rows))
    }

    fn within(columns: u16, rows: u16) -> Self {
        // A terminal that has no size yet says 0.
        if columns == 0 || rows == 0 {
            return SIZE_DEFAULT;
        }
        Self { columns: columns.min(CELLS_MAX), rows: rows.min(CELLS_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_one_that_a_device_takes() {
        assert_eq!(Size::within(0, 0), SIZE_DEFAULT);
        assert_eq!(Size::within(132, 43), Size { columns: 132, rows: 43 });
        assert_eq!(Size::within(u16::MAX, 1), Size { columns: 1_000, rows: 1 });
    }
}
