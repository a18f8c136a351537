//! A TCP connection from the device to a target on its allow-list.
//!
//! The target is resolved on the device, and what is judged is the address that is then connected to: a name on the list stands
//! for hosts of the device's networks, not for the device itself or whatever else somebody lets the name point to.

pub mod allow;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use cloudlink_proto::link::message::Forward;
use cloudlink_proto::stream::{CHUNK_BYTES, Control};
use nix::ifaddrs::getifaddrs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use self::allow::{AllowList, bare};
use super::end::End;
use super::leg::{Heard, Leg, Receiver, Sender};

const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How many addresses of one name are tried.
const ADDRESSES_MAX: usize = 4;
/// The name that is never asked of a name server.
const LOCALHOST: &str = "localhost";

/// The target is not on the list.
#[derive(Debug, thiserror::Error)]
#[error("{target} is not on the device's allow-list")]
pub(super) struct Denied {
    target: String,
}

/// Who is asked for.
enum Host<'a> {
    Address(IpAddr),
    Name(&'a str),
}

/// Refuses what no resolution of the name could make allowed.
pub(super) fn check(asked: &Forward, list: &AllowList) -> Result<(), Denied> {
    let port = port(asked);
    let may_be = match Host::of(&asked.host) {
        Host::Address(address) => list.allows_address(address, port),
        Host::Name(name) => list.allows_name(name, port) || list.has_address(port),
    };
    if may_be { Ok(()) } else { Err(Denied::to(asked)) }
}

/// Connects, and passes bytes on in both directions until both have ended.
pub(super) async fn serve(leg: &mut Leg, asked: &Forward, list: &AllowList) -> End {
    let mut target = match connect(asked, list).await {
        Ok(target) => target,
        Err(end) => return end,
    };
    if let Err(end) = leg.sender.say(&Control::Ready).await {
        return end;
    }
    let (from_target, to_target) = target.split();
    let Leg { sender, receiver, line } = leg;
    let both = async { tokio::try_join!(up(from_target, sender), down(receiver, to_target)) };
    tokio::select! {
        passed = both => passed.map_or_else(|end| end, |_| End::Done),
        end = line.broken() => end,
    }
}

/// From the target to the node.
async fn up(mut target: ReadHalf<'_>, sender: &mut Sender) -> Result<(), End> {
    let mut buffer = BytesMut::new();
    loop {
        // What was sent is free again, so that this takes no new memory.
        buffer.reserve(CHUNK_BYTES);
        let room = (&mut target).take(CHUNK_BYTES as u64).read_buf(&mut buffer).await;
        if room.map_err(|error| broken(&error))? == 0 {
            return sender.say(&Control::Eof).await;
        }
        sender.pass(buffer.split().freeze()).await?;
    }
}

/// From the node to the target.
async fn down(receiver: &mut Receiver, mut target: WriteHalf<'_>) -> Result<(), End> {
    loop {
        match receiver.next().await? {
            Heard::Bytes(bytes) => target.write_all(&bytes).await.map_err(|error| broken(&error))?,
            Heard::Control(Control::Eof) => {
                // A target that is gone already has nothing to hear.
                let _ = target.shutdown().await;
                return Ok(());
            }
            Heard::Control(other) => return Err(End::Protocol(format!("{other:?} on a forwarded connection"))),
        }
    }
}

fn broken(error: &std::io::Error) -> End {
    End::failed("connection_reset", format!("the connection to the target broke: {error}"))
}

async fn connect(asked: &Forward, list: &AllowList) -> Result<TcpStream, End> {
    let port = port(asked);
    let found = resolve(&Host::of(&asked.host), port).await?;
    if found.is_empty() {
        return Err(End::failed("no_address", format!("the device finds no address of {}", asked.host)));
    }
    let judge = Judge { list, host: &asked.host, port, own: &own_addresses() };
    let allowed: Vec<IpAddr> = found.into_iter().filter(|address| judge.allows(*address)).take(ADDRESSES_MAX).collect();
    if allowed.is_empty() {
        return Err(End::failed("not_allowed", Denied::to(asked).to_string()));
    }
    match timeout(CONNECT_WITHIN, connect_to_any(&allowed, port)).await {
        Ok(connected) => connected,
        Err(_) => {
            let message = format!("the target did not answer within {} s", CONNECT_WITHIN.as_secs());
            Err(End::failed("timed_out", message))
        }
    }
}

/// Says which of the addresses of a host may be connected to.
struct Judge<'a> {
    list: &'a AllowList,
    host: &'a str,
    port: u16,
    own: &'a [IpAddr],
}

impl Judge<'_> {
    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.list.allows_address(address, self.port)
            || self.list.allows_name(self.host, self.port) && self.host_may_stand_for(address)
    }

    fn host_may_stand_for(&self, address: IpAddr) -> bool {
        let is_localhost = bare(self.host) == LOCALHOST;
        if is_localhost { address.is_loopback() } else { is_elsewhere(address, self.own) }
    }
}

async fn resolve(host: &Host<'_>, port: u16) -> Result<Vec<IpAddr>, End> {
    let name = match host {
        Host::Address(address) => return Ok(vec![address.to_canonical()]),
        Host::Name(name) if bare(name) == LOCALHOST => {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        Host::Name(name) => *name,
    };
    match timeout(RESOLVE_WITHIN, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(found)) => Ok(found.map(|found| found.ip().to_canonical()).collect()),
        Ok(Err(error)) => Err(End::failed("no_address", format!("the device cannot resolve {name}: {error}"))),
        Err(_) => Err(End::failed("timed_out", format!("the device could not resolve {name} in time"))),
    }
}

async fn connect_to_any(addresses: &[IpAddr], port: u16) -> Result<TcpStream, End> {
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(*address, port)).await {
            Ok(target) => {
                // As soon as something is said it is to be there; where that cannot be set, it is a little late.
                let _ = target.set_nodelay(true);
                tracing::debug!(%address, port, "connected to the target");
                return Ok(target);
            }
            Err(error) => failure = Some(error),
        }
    }
    let error = failure.unwrap_or_else(|| std::io::Error::other("no address"));
    let is = |kind| error.kind() == kind;
    let code = if is(std::io::ErrorKind::ConnectionRefused) {
        "connection_refused"
    } else if is(std::io::ErrorKind::TimedOut) {
        "timed_out"
    } else {
        "unreachable"
    };
    Err(End::failed(code, format!("the device cannot connect to the target: {error}")))
}

/// Whether a name may stand for this address: neither the device itself, nor anything that is not one host of a network. For
/// these, the list must name the address.
fn is_elsewhere(address: IpAddr, own: &[IpAddr]) -> bool {
    let is_plain = match address {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.octets()[0] == 0
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast())
        }
    };
    is_plain && !own.contains(&address)
}

fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    });
    addresses.collect()
}

/// The protocol's limits hold: it is one.
fn port(asked: &Forward) -> u16 {
    u16::try_from(asked.port).unwrap_or_default()
}

impl<'a> Host<'a> {
    fn of(host: &'a str) -> Self {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        bare.parse().map_or(Self::Name(host), Self::Address)
    }
}

impl Denied {
    fn to(asked: &Forward) -> Self {
        Self { target: format!("{}:{}", asked.host, asked.port) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("192.168.1.7", true)]
    #[case("10.0.0.1", true)]
    #[case("8.8.8.8", true)]
    #[case("fd00::7", true)]
    #[case("2001:db8::1", true)]
    #[case("127.0.0.1", false)]
    #[case("127.9.9.9", false)]
    #[case("0.0.0.0", false)]
    #[case("0.1.2.3", false)]
    #[case("169.254.169.254", false)]
    #[case("224.0.0.1", false)]
    #[case("255.255.255.255", false)]
    #[case("::1", false)]
    #[case("::", false)]
    #[case("fe80::1", false)]
    #[case("ff02::1", false)]
    #[case("::ffff:127.0.0.1", false)]
    #[case("192.168.1.1", false)]
    #[case("fd00::1", false)]
    fn a_name_stands_for_hosts_of_a_network_only(#[case] address: IpAddr, #[case] expected: bool) {
        let own = ["192.168.1.1", "fd00::1"].map(|own| own.parse().unwrap());
        assert_eq!(is_elsewhere(address.to_canonical(), &own), expected);
    }

    #[test]
    fn what_is_judged_is_the_address_that_the_name_stands_for() {
        let list =
            AllowList::new(["localhost:80", "plc.test:502", "10.0.0.0/8:502"].map(|e| e.parse().unwrap()).into());
        let own = ["192.168.1.1".parse().unwrap()];
        let judged = |host: &str, address: &str, port| {
            Judge { list: &list, host, port, own: &own }.allows(address.parse().unwrap())
        };
        for (host, address, port, allowed) in [
            ("plc.test", "192.168.1.7", 502, true),
            ("PLC.test.", "192.168.1.7", 502, true),
            // Rebound to the device itself, to a neighbour's metadata, to another port.
            ("plc.test", "127.0.0.1", 502, false),
            ("plc.test", "192.168.1.1", 502, false),
            ("plc.test", "169.254.169.254", 502, false),
            ("plc.test", "192.168.1.7", 80, false),
            // The address is on the list, whatever its name is.
            ("other.test", "10.1.2.3", 502, true),
            ("other.test", "192.168.1.7", 502, false),
            ("localhost", "127.0.0.1", 80, true),
            ("localhost", "::1", 80, true),
            ("localhost", "127.0.0.1", 502, false),
            ("127.0.0.1", "127.0.0.1", 80, false),
        ] {
            assert_eq!(judged(host, address, port), allowed, "{host} at {address}, port {port}");
        }
    }
}
