//! What the kernel knows of a connection.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::LazyLock;

use cloudlink_proto::ndt::TcpInfo;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};
use socket2::SockRef;
use tokio::net::TcpStream;

/// Up to what is used of `struct tcp_info` in `linux/tcp.h`, which only ever grows at its end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(unreachable_pub, reason = "what the macro makes of it is public")]
pub struct KernelInfo {
    state: [u8; 8],
    /// From `tcpi_rto` to `tcpi_total_retrans`.
    counts: [u32; 24],
    pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 3],
    min_rtt: u32,
    data_segments: [u32; 2],
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: [u32; 2],
    bytes_sent: u64,
    bytes_retrans: u64,
}

const RTT: usize = 15;
const RTT_VAR: usize = 16;

sockopt_impl!(
    /// The kernel gives as much as it has, up to what is asked for.
    Info, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, KernelInfo
);

/// Whether the kernel has all of it: since Linux 4.19.
static IS_KNOWN: LazyLock<bool> = LazyLock::new(|| {
    let release = nix::sys::utsname::uname().ok();
    let release = release.as_ref().and_then(|names| names.release().to_str()).unwrap_or_default();
    release_of(release).is_some_and(|release| release >= (4, 19))
});

fn release_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A connection below a WebSocket, to be looked at while that is at work.
#[derive(Debug)]
pub(super) struct Line(Option<OwnedFd>);

impl Line {
    pub(super) fn of(stream: &TcpStream) -> Self {
        // Without one there are the figures of the program.
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    pub(super) fn info(&self) -> Option<TcpInfo> {
        let descriptor = self.0.as_ref().filter(|_| *IS_KNOWN)?;
        let info = getsockopt(descriptor, Info).ok()?;
        Some(TcpInfo {
            busy_time: info.busy_time,
            bytes_acked: info.bytes_acked,
            bytes_received: info.bytes_received,
            bytes_sent: info.bytes_sent,
            bytes_retrans: info.bytes_retrans,
            elapsed_time: 0,
            min_rtt: info.min_rtt,
            rtt: info.counts[RTT],
            rtt_var: info.counts[RTT_VAR],
            rwnd_limited: info.rwnd_limited,
            snd_buf_limited: info.sndbuf_limited,
        })
    }

    /// The peer's and this node's, with ports.
    pub(super) fn addresses(&self) -> (String, String) {
        let Some(socket) = self.0.as_ref().map(SockRef::from) else { return Default::default() };
        let text = |address: std::io::Result<socket2::SockAddr>| {
            address.ok().and_then(|address| address.as_socket()).map(|address| address.to_string()).unwrap_or_default()
        };
        (text(socket.peer_addr()), text(socket.local_addr()))
    }

    /// What was sent and has not arrived yet is dropped with the connection.
    pub(super) fn abort(&self) {
        if let Some(socket) = self.0.as_ref().map(SockRef::from) {
            // A socket that is gone needs no reset.
            let _ = socket.set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn releases_are_read_by_their_first_two_numbers() {
        assert_eq!(release_of("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(release_of("4.19"), Some((4, 19)));
        assert_eq!(release_of("5"), None);
        assert_eq!(release_of(""), None);
    }

    #[tokio::test]
    async fn the_kernel_counts_what_goes_through() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut near = listener.accept().await.unwrap().0;
        let line = Line::of(&near);
        let before = line.info().unwrap();
        near.write_all(&[7; 70_000]).await.unwrap();
        far.read_exact(&mut [0; 70_000]).await.unwrap();
        far.write_all(&[7; 9_000]).await.unwrap();
        near.read_exact(&mut [0; 9_000]).await.unwrap();
        let after = line.info().unwrap();
        assert_eq!(after.bytes_received - before.bytes_received, 9_000);
        assert_eq!(after.bytes_sent - after.bytes_retrans - before.bytes_sent, 70_000);
        assert!(after.bytes_acked - before.bytes_acked >= 70_000, "the answer came after it: {after:?}");
        // On one machine: a microsecond at least, and no second.
        assert!((1..1_000_000).contains(&after.min_rtt) && after.rtt >= after.min_rtt, "{after:?}");
        let (client, server) = line.addresses();
        assert_eq!((client, server), (far.local_addr().unwrap().to_string(), near.local_addr().unwrap().to_string()));
    }
}
