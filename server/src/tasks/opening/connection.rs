//! Connections of this host to a port that was closed: the kernel lets nothing through any more, and says so to nobody. Whoever
//! uses one would wait for many minutes; so it is aborted (`SOCK_DESTROY` of `sock_diag(7)`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;
/// What identifies a socket: both ports, both addresses, the interface and a cookie.
const ID_BYTES: usize = 48;
/// Before it in an answer: family, state, timer, retransmissions.
const ID_AT: usize = 4;
/// Established, SYN sent, both FIN waits, close wait, last ACK and closing: what waits for the other end.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// The kernel answers while it is asked.
const ANSWER_SECONDS: i64 = 1;
/// Of one part of an answer: the kernel sends no more at once.
const PART_BYTES: usize = 32 * 1024;
/// Connections to one port that are aborted. More than anybody has; the others wait for their own time-outs.
const ABORTED_MAX: usize = 4096;

/// Aborts the TCP connections of this host to a port, and gives how many there were. But for those from the link's port, which
/// are the device's own: it may have begun one from the very port that was open. Blocks for a moment.
pub(super) fn abort(address: IpAddr, port: u16, link_port: u16) -> io::Result<usize> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
    let mut any = [0; ID_BYTES];
    any[2..4].copy_from_slice(&port.to_be_bytes());
    say(&socket, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &request(address, &any))?;
    let mut found = Vec::new();
    hear(&socket, |body| {
        let id = body.get(ID_AT..).and_then(<[u8]>::first_chunk::<ID_BYTES>);
        found.extend(id.filter(|id| leads_to(id, address, port) && id[..2] != link_port.to_be_bytes()));
    })?;
    found.truncate(ABORTED_MAX);
    let mut aborted = 0;
    for id in found {
        say(&socket, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &request(address, &id))?;
        match hear(&socket, |_| {}) {
            Ok(()) => aborted += 1,
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aborted)
}

/// `struct inet_diag_req_v2`
fn request(address: IpAddr, id: &[u8; ID_BYTES]) -> Vec<u8> {
    const TCP: u8 = 6;
    let mut request = vec![family(address), TCP, 0, 0];
    request.extend(STATES.to_ne_bytes());
    request.extend(id);
    request
}

fn family(address: IpAddr) -> u8 {
    const IPV4: u8 = 2;
    const IPV6: u8 = 10;
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

/// Whether a socket's other end is this.
fn leads_to(id: &[u8; ID_BYTES], address: IpAddr, port: u16) -> bool {
    let mut wanted = [0; 16];
    match address {
        IpAddr::V4(address) => wanted[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => wanted = address.octets(),
    }
    id[2..4] == port.to_be_bytes() && id[20..36] == wanted
}

fn say(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // One question at a time, to the kernel alone: neither number nor sender is needed.
    message.extend([0; 8]);
    message.extend(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    Ok(())
}

/// Reads an answer to its end.
fn hear(socket: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut part = vec![0; PART_BYTES];
    loop {
        let read = recv(socket.as_raw_fd(), &mut part, MsgFlags::empty())?;
        let mut rest = &part[..read];
        while let Some(message) = Message::read(&mut rest) {
            match message.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => each(message.body),
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes the next one off the front.
    fn read(rest: &mut &'a [u8]) -> Option<Self> {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let body = rest.get(HEADER_BYTES..length)?;
        *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Self { kind, body })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_to_the_port_are_aborted_and_no_others() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let listen = || TcpListener::bind(SocketAddr::from((address, 0))).unwrap();
            let (closed, other) = (listen(), listen());
            let port = closed.local_addr().unwrap().port();
            let connect = |to: &TcpListener| TcpStream::connect(to.local_addr().unwrap()).unwrap();
            let (mut one, mut two) = (connect(&closed), connect(&closed));
            let (mut kept, mut kept_too) = (connect(&other), connect(&closed));
            let link_port = kept_too.local_addr().unwrap().port();
            match abort(address, port, link_port) {
                Ok(aborted) => assert_eq!(aborted, 2),
                // It takes root, as tunnels do.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
                Err(error) => panic!("{error}"),
            }
            for stream in [&mut one, &mut two] {
                assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
            }
            for stream in [&mut kept, &mut kept_too] {
                stream.set_nonblocking(true).unwrap();
                assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
            assert_eq!(abort(address, port, link_port).unwrap(), 0);
        }
    }

    #[test]
    fn answers_that_are_cut_off_are_no_messages() {
        let whole = [20, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        for length in 0..whole.len() {
            assert!(Message::read(&mut &whole[..length]).is_none(), "{length}");
        }
        let mut rest = &whole[..];
        assert_eq!(Message::read(&mut rest).unwrap().body, [1, 2, 3, 4]);
        assert!(rest.is_empty());
        // A length that is less than its own header.
        assert!(Message::read(&mut &[4, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]).is_none());
    }
}
