//! The kernel says that somebody changed rules, anybody's. What it was is not read: it is a reason to look.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// NFNLGRP_NFTABLES of the kernel (linux/netfilter/nfnetlink.h), as a bit of the groups of an address.
const GROUP_NFTABLES: u32 = 1 << 6;
/// What is read at once; the rest of a longer message is lost, which does not matter.
const READ_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Events {
    socket: AsyncFd<OwnedFd>,
}

impl Events {
    /// To be called in a runtime.
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP_NFTABLES))?;
        #[expect(deprecated, reason = "its successor is unsafe, and a file that is owned outlives its registration")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self { socket })
    }

    /// Waits until something happened, and forgets what happened until now.
    pub(super) async fn happened(&self) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        let mut buffer = [0; READ_BYTES];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                // More than there was room for happened.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
