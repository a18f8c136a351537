//! What tells a probe's packet, and whatever comes of it, from everything else: content that nobody can guess, new in each round.

const NONCE_BYTES: usize = 12;
/// How far into a packet marks are looked for. Probes are shorter, and what quotes them is, too.
const LOOK_BYTES_MAX: usize = 1024;
/// Source ports begin at one of these. The attempts that come after it are far fewer than what is left above.
const PORT_MIN: u16 = 10_000;
const PORTS: u16 = 40_000;
/// How often a payload repeats its mark: each fragment of it has one.
const REPEATED: usize = 4;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const ICMP_HEADER_BYTES: usize = 8;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A round's mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    nonce: [u8; NONCE_BYTES],
    /// Of the first segments of connections, which carry nothing. What answers one acknowledges the next number.
    pub(super) sequence: u32,
    /// An attempt's number is its place in the list; it sends from the port of that number above this one. Another one in each
    /// round: what is left of a connection that was begun in the last one must not answer.
    port_first: u16,
    /// The attempt that asks for a neighbour: its answer can carry nothing.
    neighbour: Option<u16>,
}

/// What was made of a probe's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It arrived itself.
    Arrived,
    /// A connection was accepted.
    SynAck,
    /// A connection was refused, with an answer.
    Reset,
    /// An error was told.
    Error,
    EchoReply,
    /// A neighbour showed itself. That carries no mark: only where it was seen says whether an attempt asked for it.
    Neighbour,
    /// Any other answer.
    Answer,
}

impl What {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::SynAck => "was accepted",
            Self::Reset => "was answered by a reset",
            Self::Error => "was answered by an ICMP error",
            Self::EchoReply => "was answered by an echo reply",
            Self::Neighbour => "was answered by a neighbour",
            Self::Answer => "was answered",
        }
    }
}

/// A packet that has to do with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recognised {
    pub(super) attempt: u16,
    pub(super) what: What,
    /// The port that was tried, where it can be told.
    pub(super) port: Option<u16>,
}

impl Mark {
    pub(super) const fn new(nonce: [u8; NONCE_BYTES], sequence: u32, port_offset: u16) -> Self {
        Self { nonce, sequence, port_first: PORT_MIN + port_offset % PORTS, neighbour: None }
    }

    /// A new one, that nobody can guess.
    pub(super) fn random() -> Self {
        let mut nonce = [0; NONCE_BYTES];
        let mut numbers = [0; 6];
        for bytes in [&mut nonce[..], &mut numbers[..]] {
            aws_lc_rs::rand::fill(bytes).expect("the system's random source has no way to fail once it is seeded");
        }
        let [a, b, c, d, e, f] = numbers;
        Self::new(nonce, u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]))
    }

    /// Where an attempt sends from.
    pub(super) const fn port(&self, attempt: u16) -> u16 {
        self.port_first.saturating_add(attempt)
    }

    pub(super) fn with_neighbour(self, neighbour: Option<u16>) -> Self {
        Self { neighbour, ..self }
    }

    /// What the packets of an attempt carry.
    pub(super) fn payload(&self, attempt: u16) -> Vec<u8> {
        [&self.nonce[..], &attempt.to_be_bytes(), &[0; 2]].concat().repeat(REPEATED)
    }

    /// Whether a packet has to do with an attempt of the round.
    pub(super) fn recognise(&self, packet: &[u8]) -> Option<Recognised> {
        let (protocol, transport) = split(packet)?;
        let found = match protocol {
            TCP => self.segment(transport),
            ICMP | ICMP_V6 => self.control(protocol, transport),
            _ => None,
        };
        found.or_else(|| self.find(packet, What::Arrived))
    }

    /// Whether bytes carry the mark.
    pub(super) fn find(&self, bytes: &[u8], what: What) -> Option<Recognised> {
        let bytes = &bytes[..bytes.len().min(LOOK_BYTES_MAX)];
        let at = bytes.windows(NONCE_BYTES).position(|window| window == self.nonce)?;
        let attempt = u16::from_be_bytes(*bytes.get(at + NONCE_BYTES..)?.first_chunk()?);
        Some(Recognised { attempt, what, port: None })
    }

    fn segment(&self, segment: &[u8]) -> Option<Recognised> {
        let (source, destination) = ports(segment)?;
        let sequence = u32::from_be_bytes(*segment.get(4..)?.first_chunk()?);
        let acknowledged = segment.get(8..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes));
        // What quotes a segment may end behind its sequence number.
        let flags = segment.get(13).copied().unwrap_or(SYN);
        if flags & ACK == 0 && flags & SYN != 0 && sequence == self.sequence {
            let attempt = source.checked_sub(self.port_first)?;
            return Some(Recognised { attempt, what: What::Arrived, port: Some(destination) });
        }
        if flags & ACK != 0 && acknowledged == Some(self.sequence.wrapping_add(1)) {
            let what = match (flags & SYN != 0, flags & RST != 0) {
                (true, _) => What::SynAck,
                (false, true) => What::Reset,
                (false, false) => What::Answer,
            };
            let attempt = destination.checked_sub(self.port_first)?;
            return Some(Recognised { attempt, what, port: Some(source) });
        }
        None
    }

    fn control(&self, protocol: u8, message: &[u8]) -> Option<Recognised> {
        let kind = *message.first()?;
        match (protocol, kind) {
            (ICMP, 3 | 4 | 5 | 11 | 12) | (ICMP_V6, 1..=4) => {
                let quoted = message.get(ICMP_HEADER_BYTES..)?;
                let port = || ports(split(quoted)?.1).map(|(_, destination)| destination);
                let found = self.recognise(quoted)?;
                Some(Recognised { what: What::Error, port: found.port.or_else(port), ..found })
            }
            (ICMP, 0) | (ICMP_V6, 129) => self.find(message, What::EchoReply),
            // The reply to a timestamp: the number, and the time, which is the sequence.
            (ICMP, 14) => {
                let sent_at = message.get(ICMP_HEADER_BYTES..)?.first_chunk()?;
                let attempt = u16::from_be_bytes(*message.get(4..)?.first_chunk()?);
                let is_ours = u32::from_be_bytes(*sent_at) == self.sequence;
                is_ours.then_some(Recognised { attempt, what: What::Answer, port: None })
            }
            // On the tunnels' interface a neighbour shows itself to who asked: the kernel asks nobody there.
            (ICMP_V6, 136) => Some(Recognised { attempt: self.neighbour?, what: What::Neighbour, port: None }),
            _ => None,
        }
    }
}

/// The protocol behind the IP header, and what it carries.
fn split(packet: &[u8]) -> Option<(u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            Some((*packet.get(9)?, packet.get(header.max(IPV4_HEADER_BYTES)..)?))
        }
        6 => Some((*packet.get(6)?, packet.get(IPV6_HEADER_BYTES..)?)),
        _ => None,
    }
}

fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *transport.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// The port that the kernel's own connection goes to, if this is its first segment.
pub(super) fn syn_port(packet: &[u8]) -> Option<u16> {
    let (protocol, segment) = split(packet)?;
    let is_first = protocol == TCP && segment.get(13).is_some_and(|flags| flags & (SYN | ACK) == SYN);
    is_first.then(|| ports(segment)).flatten().map(|(_, destination)| destination)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::super::packet::Datagram;
    use super::*;

    const SEQUENCE: u32 = 0x8765_4321;

    fn mark() -> Mark {
        Mark::new(*b"unguessable!", SEQUENCE, 77)
    }

    fn pairs() -> [(IpAddr, IpAddr); 2] {
        [("100.64.0.2", "100.64.0.1"), ("fd00::2", "fd00::1")].map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()))
    }

    fn seen(packet: &[u8]) -> Option<(u16, What)> {
        mark().recognise(packet).map(|found| (found.attempt, found.what))
    }

    /// The first segment's answer, as a stack would make it.
    fn answer(from: SocketAddr, to: SocketAddr, flags: u8, acknowledged: u32) -> Vec<u8> {
        let mut packet = Datagram::syn(from, to, 1).packet();
        let at = if from.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        packet[at + 8..at + 12].copy_from_slice(&acknowledged.to_be_bytes());
        packet[at + 13] = flags;
        packet
    }

    #[test]
    fn a_probe_is_known_wherever_it_arrives() {
        for (from, to) in pairs() {
            let (source, destination) = (SocketAddr::new(from, mark().port(9)), SocketAddr::new(to, 53));
            let udp = Datagram::udp(source, destination, &mark().payload(9));
            assert_eq!(seen(&udp.packet()), Some((9, What::Arrived)));
            for fragment in udp.fragments(24, 1) {
                assert_eq!(seen(&fragment), Some((9, What::Arrived)));
            }
            assert_eq!(seen(&Datagram::syn(source, destination, SEQUENCE).packet()), Some((9, What::Arrived)));
            assert_eq!(
                seen(&Datagram::echo_request(from, to, 1, &mark().payload(3)).packet()),
                Some((3, What::Arrived))
            );
            let inside = Datagram::other(from, to, 47, &udp.packet()).packet();
            assert_eq!(seen(&inside), Some((9, What::Arrived)));
        }
    }

    #[test]
    fn answers_are_told_apart() {
        for (node, device) in pairs().map(|(a, b)| (b, a)) {
            let (from, to) = (SocketAddr::new(node, 80), SocketAddr::new(device, mark().port(9)));
            let next = SEQUENCE.wrapping_add(1);
            assert_eq!(seen(&answer(from, to, SYN | ACK, next)), Some((9, What::SynAck)));
            let found = mark().recognise(&answer(from, to, RST | ACK, next)).unwrap();
            assert_eq!(found, Recognised { attempt: 9, what: What::Reset, port: Some(80) });
            let probe = Datagram::udp(to, SocketAddr::new(node, 53), &mark().payload(9)).packet();
            let kind = if node.is_ipv4() { 3 } else { 1 };
            let error = Datagram::icmp_raw(node, device, kind, [0; 4], &probe).packet();
            let found = mark().recognise(&error).unwrap();
            assert_eq!(found, Recognised { attempt: 9, what: What::Error, port: Some(53) });
            let probe = Datagram::syn(to, SocketAddr::new(node, 53), SEQUENCE).packet();
            let error = Datagram::icmp_raw(node, device, kind, [0; 4], &probe).packet();
            assert_eq!(seen(&error), Some((9, What::Error)));
            let reply =
                Datagram::icmp_raw(node, device, if node.is_ipv4() { 0 } else { 129 }, [0; 4], &mark().payload(4));
            assert_eq!(seen(&reply.packet()), Some((4, What::EchoReply)));
        }
    }

    #[test]
    fn nothing_else_is_taken_for_a_probe() {
        for (from, to) in pairs() {
            let (source, destination) = (SocketAddr::new(from, mark().port(9)), SocketAddr::new(to, 53));
            let others = [
                Datagram::udp(source, destination, &Mark::new(*b"another one!", SEQUENCE, 77).payload(9)).packet(),
                Datagram::syn(source, destination, SEQUENCE.wrapping_add(1)).packet(),
                answer(destination, source, SYN | ACK, SEQUENCE),
                Datagram::echo_request(from, to, 1, b"a ping").packet(),
            ];
            for packet in others {
                assert_eq!(seen(&packet), None);
            }
        }
    }

    #[test]
    fn marks_differ() {
        assert_ne!(Mark::random(), Mark::random());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_looked_at_without_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = mark().recognise(&packet);
            let _ = syn_port(&packet);
        }

        #[test]
        fn damaged_probes_are_looked_at_without_a_panic(at in 0..80_usize, byte: u8, length in 0..80_usize) {
            for (from, to) in pairs() {
                let probe = Datagram::udp(SocketAddr::new(from, 1), SocketAddr::new(to, 53), &mark().payload(9)).packet();
                let mut error = Datagram::icmp_raw(to, from, 3, [0; 4], &probe).packet();
                if let Some(place) = error.get_mut(at) {
                    *place = byte;
                }
                error.truncate(length);
                let _ = mark().recognise(&error);
            }
        }
    }
}
