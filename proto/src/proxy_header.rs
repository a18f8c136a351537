//! The PROXY protocol, versions 1 and 2: the first bytes of a connection, in which a load balancer says for whom it makes it
//! (<https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>, cited by section).
//!
//! Whoever reads a header takes the sender's word for who a client is, so its caller decides whose word that may be. To drive
//! it: call [`decode`] with all that has come so far, until it gives something else than `None`; what is behind the header is
//! left to whoever speaks next. What a header says beyond the client's address is skipped, and so are its extensions (TLVs).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is taken. The specification asks for 536 (§2), and balancers add some hundred bytes; nginx takes as
/// many as this.
pub const HEADER_BYTES_MAX: usize = 4096;
/// With which both versions begin.
const V1_MARK: &[u8] = b"PROXY ";
const V2_MARK: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// How many of the first bytes tell a header from anything else.
pub const MARK_BYTES_MAX: usize = V2_MARK.len();
/// The longest line of version 1, its end included (§2.1).
const V1_BYTES_MAX: usize = 107;
/// Up to the length of what follows (§2.2).
const V2_HEAD_BYTES: usize = 16;
/// The header of a connection that a proxy makes for itself.
pub const LOCAL: [u8; V2_HEAD_BYTES] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The connection is for this client. An IPv4 address that was written as IPv6 is an IPv4 address.
    Client(SocketAddr),
    /// The balancer has a reason of its own, such as to see whether somebody is there: the connection is the balancer's.
    Local,
}

/// Why a connection has no header that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The connection does not begin with one.
    #[error("there is no PROXY header")]
    Missing,
    /// It is none of version 1 or 2.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// It is for somebody, and does not say whom, or for somebody who did not come by TCP.
    #[error("the PROXY header names no client of TCP over IPv4 or IPv6")]
    NoClient,
    /// It is longer than its version allows, or than [`HEADER_BYTES_MAX`].
    #[error("the PROXY header is too long")]
    TooLong,
}

/// Whether these bytes, of which [`MARK_BYTES_MAX`] are enough, are the beginning of a header and of nothing else.
#[must_use]
pub fn is_marked(first: &[u8]) -> bool {
    first.starts_with(V1_MARK) || first.starts_with(V2_MARK)
}

/// Reads the header at the beginning of these bytes, and how long it is. `None`: all of them belong to a header, and there is
/// more of it to come.
pub fn decode(bytes: &[u8]) -> Result<Option<(Header, usize)>, DecodeError> {
    if begins(bytes, V1_MARK) {
        decode_v1(bytes)
    } else if begins(bytes, V2_MARK) {
        decode_v2(bytes)
    } else {
        Err(DecodeError::Missing)
    }
}

/// Whether that is how they begin, as far as they go.
fn begins(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.iter().zip(mark).all(|(byte, expected)| byte == expected)
}

/// §2.1, as in `PROXY TCP4 192.0.2.7 198.51.100.1 40000 443`.
fn decode_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, DecodeError> {
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_BYTES_MAX { Ok(None) } else { Err(DecodeError::TooLong) };
    };
    let text = std::str::from_utf8(&line[V1_MARK.len()..end]).map_err(|_| DecodeError::Malformed)?;
    let mut words = text.split(' ');
    let client = match words.next() {
        Some("TCP4") => v1_client::<Ipv4Addr>(words),
        Some("TCP6") => v1_client::<Ipv6Addr>(words),
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => return Ok(Some((Header::Local, end + 2))),
        Some(_) | None => None,
    };
    let client = client.ok_or(DecodeError::Malformed)?;
    Ok(Some((Header::Client(client), end + 2)))
}

/// Reads source, destination, and the port of each.
fn v1_client<'a, A>(mut words: impl Iterator<Item = &'a str>) -> Option<SocketAddr>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let (source, destination) = (words.next()?.parse::<A>().ok()?, words.next()?.parse::<A>());
    let (port, destination_port) = (v1_port(words.next()?)?, v1_port(words.next()?));
    let is_whole = destination.is_ok() && destination_port.is_some() && words.next().is_none();
    is_whole.then(|| SocketAddr::new(source.into().to_canonical(), port))
}

/// Decimal, with no sign and no leading zero.
fn v1_port(text: &str) -> Option<u16> {
    let is_plain = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
    if is_plain { text.parse().ok() } else { None }
}

/// §2.2.
fn decode_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, DecodeError> {
    match bytes.get(V2_MARK.len()) {
        None | Some(&(V2_LOCAL | V2_PROXY)) => {}
        Some(_) => return Err(DecodeError::Malformed),
    }
    let Some(&[command, family, high, low]) = bytes.get(V2_MARK.len()..V2_HEAD_BYTES) else { return Ok(None) };
    let end = V2_HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if end > HEADER_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    let Some(block) = bytes.get(V2_HEAD_BYTES..end) else { return Ok(None) };
    // What else a proxy says of a connection of its own means nothing.
    let header = if command == V2_LOCAL { Header::Local } else { Header::Client(v2_client(family, block)?) };
    Ok(Some((header, end)))
}

/// Version and command.
const V2_LOCAL: u8 = 0x20;
const V2_PROXY: u8 = 0x21;

fn v2_client(family: u8, block: &[u8]) -> Result<SocketAddr, DecodeError> {
    let client = match family {
        0x11 => v2_source::<4>(block).map(|(source, port)| (IpAddr::from(source), port)),
        0x21 => v2_source::<16>(block).map(|(source, port)| (IpAddr::from(source), port)),
        // Unspecified, UDP, Unix sockets.
        0x00..=0x02 | 0x10 | 0x12 | 0x20 | 0x22 | 0x30..=0x32 => return Err(DecodeError::NoClient),
        _ => None,
    };
    let (source, port) = client.ok_or(DecodeError::Malformed)?;
    Ok(SocketAddr::new(source.to_canonical(), port))
}

/// Out of source, destination, and the port of each. Extensions follow.
fn v2_source<const N: usize>(block: &[u8]) -> Option<([u8; N], u16)> {
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (_, rest) = rest.split_first_chunk::<N>()?;
    let [high, low, _, _] = rest.first_chunk::<4>()?;
    Some((*source, u16::from_be_bytes([*high, *low])))
}

#[cfg(test)]
mod tests;
