//! A pseudo-terminal.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};
use tokio::net::unix::pipe;

/// The end that the agent has.
#[derive(Debug)]
pub(super) struct Pty {
    /// Not a pipe, but read and written like one.
    reader: pipe::Receiver,
    writer: pipe::Sender,
}

impl Pty {
    /// A new one, and the end that the program gets.
    pub(super) fn open(columns: u16, rows: u16) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        // By its number and not by its name, which another mount of devpts could have.
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut modes = tcgetattr(&slave)?;
        // Erasing takes a whole character.
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        tcsetwinsize(&master, winsize(columns, rows))?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let writer = pipe::Sender::from_file_unchecked(File::from(master.try_clone()?))?;
        let reader = pipe::Receiver::from_file_unchecked(File::from(master))?;
        Ok((Self { reader, writer }, slave))
    }

    /// Programs in the foreground are told by the system.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if let Err(error) = tcsetwinsize(&self.reader, winsize(columns, rows)) {
            tracing::debug!(%error, "a terminal was not resized");
        }
    }

    /// The process group in the foreground.
    pub(super) fn foreground(&self) -> Option<i32> {
        tcgetpgrp(&self.reader).ok().map(|group| group.as_raw_nonzero().get())
    }

    /// Reads what is there, after waiting for something. 0 when nobody has the other end open any more. May be dropped and
    /// called again.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.reader.readable().await?;
            match self.fill(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => return filled,
            }
        }
    }

    /// Reads what is there already; `None` when there is nothing.
    pub(super) fn read_at_once(&self, buffer: &mut [u8]) -> Option<usize> {
        let count = rustix::io::read(self.reader.as_fd(), buffer).ok()?;
        (count > 0).then_some(count)
    }

    /// Writes as much as is taken, after waiting until something is. May be dropped and called again.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.writer.writable().await?;
            match self.writer.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    /// Reads as long as there is something and room for it: the system gives little at a time.
    fn fill(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.try_read(&mut buffer[filled..]) {
                Ok(0) => break,
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if filled == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(filled)
    }
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}
