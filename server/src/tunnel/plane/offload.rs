//! Segmentation offload of the TUN interface: large packets of the kernel are cut into such as a tunnel takes, and neighbours
//! of one TCP stream out of a tunnel are put together to one for the kernel. Most of a packet's cost is the kernel's, and paid
//! per packet.
//!
//! A packet on such an interface has a header in front (`linux/virtio_net.h: struct virtio_net_hdr`, in the machine's byte
//! order): whether the checksum is still to be made, and into what the packet is to be cut.

use std::io::IoSlice;
use std::ops::Range;

/// Bytes of the header in front of each packet.
pub(crate) const HEAD_BYTES: usize = 10;
/// The largest packet.
pub(crate) const PACKET_BYTES_MAX: usize = 65_535;
/// Packets that are put together to one at most.
const SEGMENTS_MAX: usize = 64;
/// The largest IP and TCP headers that are put together: IPv6 without extensions, TCP with all options.
const HEADERS_BYTES_MAX: usize = 40 + 60;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The flag beside the kinds above: the TCP stream uses ECN.
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_SEQUENCE_AT: usize = 4;
const TCP_FLAGS_AT: usize = 13;
const TCP_CHECKSUM_AT: usize = 16;
const UDP_LENGTH_AT: usize = 4;
const UDP_CHECKSUM_AT: usize = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The kernel's packet does not fit its own header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of the kernel does not fit its offload header")]
pub(crate) struct OffloadError;

/// Where cut packets go.
pub(crate) trait Room {
    /// Adds a packet of two parts, and gives it back to be finished.
    fn add(&mut self, headers: &[u8], payload: &[u8]) -> Option<&mut [u8]>;
}

/// The header in front of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    flags: u8,
    kind: u8,
    headers_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_at: u16,
}

impl Head {
    fn decode(bytes: [u8; HEAD_BYTES]) -> Self {
        let [flags, kind, a0, a1, b0, b1, c0, c1, d0, d1] = bytes;
        Self {
            flags,
            kind,
            headers_bytes: u16::from_ne_bytes([a0, a1]),
            segment_bytes: u16::from_ne_bytes([b0, b1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_at: u16::from_ne_bytes([d0, d1]),
        }
    }

    fn encode(self) -> [u8; HEAD_BYTES] {
        let [a0, a1] = self.headers_bytes.to_ne_bytes();
        let [b0, b1] = self.segment_bytes.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [d0, d1] = self.checksum_at.to_ne_bytes();
        [self.flags, self.kind, a0, a1, b0, b1, c0, c1, d0, d1]
    }
}

/// A packet of the kernel, understood.
#[derive(Debug)]
pub(crate) struct Large<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    segment_bytes: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Goes as it is.
    Whole,
    Tcp {
        ip_bytes: usize,
    },
    Udp {
        ip_bytes: usize,
    },
}

impl<'a> Large<'a> {
    /// Reads what came from the interface: the header, then the packet.
    pub(crate) fn read(bytes: &'a mut [u8]) -> Result<Self, OffloadError> {
        let (head, packet) = bytes.split_first_chunk_mut().ok_or(OffloadError)?;
        let head = Head::decode(*head);
        match head.kind & !GSO_ECN {
            GSO_NONE => {
                if head.flags & NEEDS_CHECKSUM != 0 {
                    finish_checksum(packet, head.checksum_start.into(), head.checksum_at.into())?;
                }
                Ok(Self::whole(packet))
            }
            GSO_TCPV4 | GSO_TCPV6 => {
                let ip_bytes = usize::from(head.checksum_start);
                let tcp = packet.get(ip_bytes..).filter(|tcp| tcp.len() >= 20).ok_or(OffloadError)?;
                let tcp_bytes = usize::from(tcp[12] >> 4) * 4;
                if tcp_bytes < 20 {
                    return Err(OffloadError);
                }
                Self::cut(packet, ip_bytes + tcp_bytes, head.segment_bytes, Kind::Tcp { ip_bytes })
            }
            GSO_UDP => {
                let ip_bytes = usize::from(head.checksum_start);
                Self::cut(packet, ip_bytes + 8, head.segment_bytes, Kind::Udp { ip_bytes })
            }
            _ => Err(OffloadError),
        }
    }

    /// A packet of an interface without offload.
    pub(crate) fn whole(packet: &'a [u8]) -> Self {
        Self { headers: packet, payload: &[], segment_bytes: 0, kind: Kind::Whole }
    }

    fn cut(packet: &'a [u8], headers_bytes: usize, segment_bytes: u16, kind: Kind) -> Result<Self, OffloadError> {
        let (headers, payload) = packet.split_at_checked(headers_bytes).ok_or(OffloadError)?;
        let ip_bytes = match kind {
            Kind::Whole => 0,
            Kind::Tcp { ip_bytes } | Kind::Udp { ip_bytes } => ip_bytes,
        };
        let is_fit = match headers.first().map(|first| first >> 4) {
            Some(4) => ip_bytes >= 20,
            Some(6) => ip_bytes >= 40,
            Some(_) | None => false,
        };
        if !is_fit || segment_bytes == 0 {
            return Err(OffloadError);
        }
        Ok(Self { headers, payload, segment_bytes: segment_bytes.into(), kind })
    }

    /// Its IP and transport headers; of one that goes as it is, everything.
    pub(crate) fn headers(&self) -> &[u8] {
        self.headers
    }

    /// Where it comes from.
    pub(crate) fn source(&self) -> Option<std::net::IpAddr> {
        super::source(self.headers)
    }

    /// Where it goes.
    pub(crate) fn destination(&self) -> Option<std::net::IpAddr> {
        super::destination(self.headers)
    }

    /// How many packets it is cut into.
    pub(crate) fn segments(&self) -> usize {
        if self.kind == Kind::Whole { 1 } else { self.payload.len().div_ceil(self.segment_bytes).max(1) }
    }

    /// The most bytes of one of them.
    pub(crate) fn segment_bytes_max(&self) -> usize {
        self.headers.len() + self.payload.len().min(self.segment_bytes)
    }

    /// Puts the packets into `room`; says how many found none.
    pub(crate) fn segment(&self, room: &mut impl Room) -> usize {
        if self.kind == Kind::Whole {
            return usize::from(room.add(self.headers, self.payload).is_none());
        }
        let segments = self.segments();
        for number in 0..segments {
            let start = number * self.segment_bytes;
            let end = self.payload.len().min(start + self.segment_bytes);
            let Some(packet) = room.add(self.headers, &self.payload[start..end]) else { return segments - number };
            self.finish(packet, number, start, number + 1 == segments);
        }
        0
    }

    fn finish(&self, packet: &mut [u8], number: usize, start: usize, is_last: bool) {
        let (Kind::Tcp { ip_bytes } | Kind::Udp { ip_bytes }) = self.kind else { return };
        finish_ip(packet, ip_bytes, number);
        let pseudo = pseudo_sum(packet, ip_bytes, if matches!(self.kind, Kind::Tcp { .. }) { TCP } else { UDP });
        let transport = &mut packet[ip_bytes..];
        let checksum_at = if matches!(self.kind, Kind::Tcp { .. }) {
            let sequence = transport[TCP_SEQUENCE_AT..].first_chunk_mut().expect("a TCP header has 20 bytes");
            // Sequence numbers wrap, and a packet has at most 65,535 bytes.
            *sequence = u32::from_be_bytes(*sequence).wrapping_add(low_u32(start)).to_be_bytes();
            if number > 0 {
                transport[TCP_FLAGS_AT] &= !CWR;
            }
            if !is_last {
                transport[TCP_FLAGS_AT] &= !(FIN | PSH);
            }
            TCP_CHECKSUM_AT
        } else {
            let length = low_u16(transport.len());
            put_u16(transport, UDP_LENGTH_AT, length);
            UDP_CHECKSUM_AT
        };
        put_u16(transport, checksum_at, 0);
        let checksum = fold(pseudo + sum(transport));
        // In UDP, 0 says that there is no checksum.
        put_u16(
            transport,
            checksum_at,
            if checksum == 0 && checksum_at == UDP_CHECKSUM_AT { 0xffff } else { checksum },
        );
    }
}

/// Gives packets that came out of a tunnel to `write`, in their order: each with a header in front, and neighbours of one TCP
/// stream as one. Says to `write` how many packets its bytes are.
pub(crate) fn merge(bytes: &[u8], packets: &[Range<usize>], mut write: impl FnMut(&[IoSlice<'_>], usize)) {
    let mut rest = packets;
    while let Some(first) = rest.first() {
        let (run, first_segment) = run(bytes, rest);
        match first_segment.filter(|_| run > 1) {
            Some(segment) => segment.write_run(bytes, &rest[..run], &mut write),
            None => write(&[IoSlice::new(&[0; HEAD_BYTES]), IoSlice::new(&bytes[first.clone()])], 1),
        }
        rest = &rest[run..];
    }
}

/// How many of the first packets are one piece of a TCP stream.
fn run(bytes: &[u8], packets: &[Range<usize>]) -> (usize, Option<Segment>) {
    let Some(first) = packets.first().and_then(|packet| Segment::read(&bytes[packet.clone()])) else {
        return (1, None);
    };
    // A checksum is over the whole packet, so it is looked at last, and only where it matters.
    let mut is_first_good = None;
    let mut run = 1;
    let mut last = first;
    let mut packet_bytes = first.headers_bytes + first.payload_bytes;
    for pair in packets.windows(2).take(SEGMENTS_MAX - 1) {
        let [before, packet] = pair else { break };
        if last.is_pushed || last.payload_bytes < first.payload_bytes {
            break;
        }
        let packet = &bytes[packet.clone()];
        if !first.is_same_stream(&bytes[before.clone()], packet) {
            break;
        }
        let Some(next) = Segment::read(packet).filter(|next| {
            next.headers_bytes == first.headers_bytes
                && next.payload_bytes <= first.payload_bytes
                && next.sequence == last.sequence.wrapping_add(low_u32(last.payload_bytes))
                && packet_bytes + next.payload_bytes <= PACKET_BYTES_MAX
                && *is_first_good.get_or_insert_with(|| first.is_good(&bytes[packets[0].clone()]))
                && next.is_good(packet)
        }) else {
            break;
        };
        packet_bytes += next.payload_bytes;
        last = next;
        run += 1;
    }
    (run, Some(first))
}

/// A TCP packet that can be put together with others if its checksum is good: payload, no flag but ACK and PSH, no IP options.
#[derive(Clone, Copy, Debug)]
struct Segment {
    is_ipv6: bool,
    ip_bytes: usize,
    headers_bytes: usize,
    payload_bytes: usize,
    sequence: u32,
    is_pushed: bool,
}

impl Segment {
    fn read(packet: &[u8]) -> Option<Self> {
        let (is_ipv6, ip_bytes) = match packet.first()? {
            0x45 if packet.len() > 40 && packet[9] == TCP && packet[6] & 0x3f == 0 && packet[7] == 0 => (false, 20),
            first if first >> 4 == 6 && packet.len() > 60 && packet[6] == TCP => (true, 40),
            _ => return None,
        };
        let tcp = &packet[ip_bytes..];
        let tcp_bytes = usize::from(tcp[12] >> 4) * 4;
        let headers_bytes = ip_bytes + tcp_bytes;
        let flags = tcp[TCP_FLAGS_AT];
        if tcp_bytes < 20 || packet.len() <= headers_bytes || packet.len() > PACKET_BYTES_MAX || flags & !PSH != ACK {
            return None;
        }
        let sequence = u32::from_be_bytes(*tcp[TCP_SEQUENCE_AT..].first_chunk()?);
        let payload_bytes = packet.len() - headers_bytes;
        Some(Self { is_ipv6, ip_bytes, headers_bytes, payload_bytes, sequence, is_pushed: flags & PSH != 0 })
    }

    /// Whether its checksum is right.
    fn is_good(&self, packet: &[u8]) -> bool {
        fold(pseudo_sum(packet, self.ip_bytes, TCP) + sum(&packet[self.ip_bytes..])) == 0
    }

    /// Whether two packets, the first of which is like this one, have the same headers but for what is counted on from packet to
    /// packet.
    fn is_same_stream(&self, one: &[u8], other: &[u8]) -> bool {
        let (Some(one), Some(other)) = (one.get(..self.headers_bytes), other.get(..self.headers_bytes)) else {
            return false;
        };
        // Lengths, IPv4's id and checksum may differ.
        let ip: &[Range<usize>] = if self.is_ipv6 { &[0..4, 6..40] } else { &[0..2, 6..10, 12..20] };
        let tcp = [0..4, 8..13, 14..16, 18..self.headers_bytes - self.ip_bytes];
        let tcp = tcp.into_iter().map(|range| self.ip_bytes + range.start..self.ip_bytes + range.end);
        ip.iter().cloned().chain(tcp).all(|range| one[range.clone()] == other[range])
    }

    fn write_run(&self, bytes: &[u8], packets: &[Range<usize>], write: &mut impl FnMut(&[IoSlice<'_>], usize)) {
        let payload = |packet: &Range<usize>| &bytes[packet.start + self.headers_bytes..packet.end];
        let first = &bytes[packets[0].clone()];
        let mut front = [0; HEAD_BYTES + HEADERS_BYTES_MAX];
        let front = &mut front[..HEAD_BYTES + self.headers_bytes];
        let (head, headers) = front.split_at_mut(HEAD_BYTES);
        headers.copy_from_slice(&first[..self.headers_bytes]);
        let payload_bytes: usize = packets.iter().map(|packet| payload(packet).len()).sum();
        self.finish_run(headers, payload_bytes, &bytes[packets[packets.len() - 1].clone()]);
        let encoded = Head {
            flags: NEEDS_CHECKSUM,
            kind: if self.is_ipv6 { GSO_TCPV6 } else { GSO_TCPV4 },
            headers_bytes: low_u16(self.headers_bytes),
            segment_bytes: low_u16(self.payload_bytes),
            checksum_start: low_u16(self.ip_bytes),
            checksum_at: low_u16(TCP_CHECKSUM_AT),
        };
        head.copy_from_slice(&encoded.encode());

        let mut parts = [IoSlice::new(&[]); 1 + SEGMENTS_MAX];
        parts[0] = IoSlice::new(front);
        for (part, packet) in parts[1..].iter_mut().zip(packets) {
            *part = IoSlice::new(payload(packet));
        }
        write(&parts[..=packets.len()], packets.len());
    }

    /// Makes the headers of the first packet those of all.
    fn finish_run(&self, headers: &mut [u8], payload_bytes: usize, last: &[u8]) {
        let transport_bytes = self.headers_bytes - self.ip_bytes + payload_bytes;
        if self.is_ipv6 {
            put_u16(headers, 4, low_u16(transport_bytes));
        } else {
            put_u16(headers, 2, low_u16(self.ip_bytes + transport_bytes));
            put_u16(headers, 10, 0);
            let checksum = fold(sum(&headers[..self.ip_bytes]));
            put_u16(headers, 10, checksum);
        }
        let flags_at = self.ip_bytes + TCP_FLAGS_AT;
        headers[flags_at] |= last[flags_at] & PSH;
        // The kernel goes on from here, if it ever needs the whole.
        let pseudo = !fold(pseudo_sum_of(headers, self.ip_bytes, TCP, transport_bytes));
        put_u16(headers, self.ip_bytes + TCP_CHECKSUM_AT, pseudo);
    }
}

/// Makes the IP header of a packet right that was cut out of a larger one.
fn finish_ip(packet: &mut [u8], ip_bytes: usize, number: usize) {
    let bytes = packet.len();
    if packet[0] >> 4 == 6 {
        put_u16(packet, 4, low_u16(bytes - 40));
        return;
    }
    put_u16(packet, 2, low_u16(bytes));
    let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(low_u16(number));
    put_u16(packet, 4, id);
    put_u16(packet, 10, 0);
    let checksum = fold(sum(&packet[..ip_bytes]));
    put_u16(packet, 10, checksum);
}

/// Makes a checksum that the kernel left to the interface: over everything from `start`, in which the pseudo header's sum
/// stands already.
fn finish_checksum(packet: &mut [u8], start: usize, at: usize) -> Result<(), OffloadError> {
    let covered = packet.get_mut(start..).filter(|covered| covered.len() >= at + 2).ok_or(OffloadError)?;
    let checksum = fold(sum(covered));
    put_u16(covered, at, if checksum == 0 { 0xffff } else { checksum });
    Ok(())
}

fn pseudo_sum(packet: &[u8], ip_bytes: usize, protocol: u8) -> u64 {
    pseudo_sum_of(packet, ip_bytes, protocol, packet.len() - ip_bytes)
}

fn pseudo_sum_of(headers: &[u8], ip_bytes: usize, protocol: u8, transport_bytes: usize) -> u64 {
    let addresses = if headers[0] >> 4 == 6 { 8..40 } else { 12..20.min(ip_bytes) };
    sum(&headers[addresses]) + u64::from(protocol) + u64::try_from(transport_bytes).unwrap_or(0)
}

/// The sum of 16-bit numbers that a checksum is made of, not folded yet. Two of them at a time, in the machine's byte order,
/// which the sum does not care about until it is read.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let (pairs, rest) = rest.as_chunks::<2>();
    total += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
    total += rest.first().map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])));
    u64::from(u16::from_be(!fold(total)))
}

/// The checksum of a sum.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !low_u16(usize::try_from(sum).unwrap_or(0))
}

fn put_u16(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

/// Of numbers that are small enough: lengths within a packet.
fn low_u16(number: usize) -> u16 {
    u16::try_from(number & 0xffff).expect("16 bits")
}

fn low_u32(number: usize) -> u32 {
    u32::try_from(number & 0xffff_ffff).expect("32 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Room without end.
    #[derive(Default)]
    struct Packets(Vec<Vec<u8>>);

    impl Room for Packets {
        fn add(&mut self, headers: &[u8], payload: &[u8]) -> Option<&mut [u8]> {
            self.0.push([headers, payload].concat());
            self.0.last_mut().map(Vec::as_mut_slice)
        }
    }

    /// A packet of a TCP stream, as a client's kernel makes it.
    #[derive(Clone, Debug)]
    struct Tcp {
        is_ipv6: bool,
        port: u16,
        id: u16,
        sequence: u32,
        flags: u8,
        options: Vec<u8>,
        payload: Vec<u8>,
    }

    impl Tcp {
        fn packet(&self) -> Vec<u8> {
            let tcp_bytes = 20 + self.options.len();
            let transport_bytes = low_u16(tcp_bytes + self.payload.len());
            let mut packet = if self.is_ipv6 {
                let mut head = vec![0x60, 0, 0, 0, 0, 0, TCP, 64];
                head[4..6].copy_from_slice(&transport_bytes.to_be_bytes());
                head.extend([[0xfd; 16], [0xfe; 16]].concat());
                head
            } else {
                let mut head = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
                head[2..4].copy_from_slice(&(20 + transport_bytes).to_be_bytes());
                head[4..6].copy_from_slice(&self.id.to_be_bytes());
                let checksum = fold(sum(&head));
                put_u16(&mut head, 10, checksum);
                head
            };
            let ip_bytes = packet.len();
            packet.extend(self.port.to_be_bytes());
            packet.extend([0, 80]);
            packet.extend(self.sequence.to_be_bytes());
            packet.extend([0, 0, 0, 9, u8::try_from(tcp_bytes / 4).unwrap() << 4, self.flags, 1, 0, 0, 0, 0, 0]);
            packet.extend(&self.options);
            packet.extend(&self.payload);
            let checksum = fold(pseudo_sum(&packet, ip_bytes, TCP) + sum(&packet[ip_bytes..]));
            put_u16(&mut packet, ip_bytes + TCP_CHECKSUM_AT, checksum);
            packet
        }
    }

    /// What the interface is given for these packets: whole writes, and of how many packets each is.
    fn written(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, usize)> {
        let mut bytes = vec![0xaa; 7];
        let mut ranges = Vec::new();
        for packet in packets {
            ranges.push(bytes.len()..bytes.len() + packet.len());
            bytes.extend(packet);
        }
        let mut writes = Vec::new();
        merge(&bytes, &ranges, |parts, count| {
            writes.push((parts.iter().flat_map(|part| part.to_vec()).collect(), count));
        });
        writes
    }

    /// What the kernel would make of a write, were it to go out again.
    fn cut(write: &[u8]) -> Vec<Vec<u8>> {
        let mut write = write.to_vec();
        let large = Large::read(&mut write).unwrap();
        let mut packets = Packets::default();
        assert_eq!(large.segment(&mut packets), 0);
        assert!(packets.0.len() == large.segments());
        assert!(packets.0.iter().all(|packet| packet.len() <= large.segment_bytes_max()));
        packets.0
    }

    fn stream(is_ipv6: bool, payloads: &[usize]) -> Vec<Vec<u8>> {
        let (mut sequence, mut id) = (u32::MAX - 2000, u16::MAX);
        let packet = |&bytes: &usize| {
            let payload = (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let tcp = Tcp { is_ipv6, port: 7, id, sequence, flags: ACK, options: vec![1; 12], payload };
            sequence = sequence.wrapping_add(low_u32(bytes));
            id = id.wrapping_add(1);
            tcp.packet()
        };
        payloads.iter().map(packet).collect()
    }

    #[test]
    fn neighbours_of_a_stream_become_one_and_come_apart_as_they_were() {
        for is_ipv6 in [false, true] {
            let packets = stream(is_ipv6, &[1448, 1448, 1448, 100]);
            let writes = written(&packets);
            assert_eq!(writes.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [4]);
            assert_eq!(cut(&writes[0].0), packets);
        }
    }

    #[test]
    fn what_a_receiver_could_tell_apart_stays_apart() {
        let counts = |packets: &[Vec<u8>]| written(packets).iter().map(|(_, count)| *count).collect::<Vec<_>>();
        let base = stream(false, &[100, 100]);
        assert_eq!(counts(&base), [2]);
        // Of another stream, of another time to live, with another window, without a place in between, a repetition.
        for (at, value) in [(21, 9), (8, 63), (34, 2), (27, 0xff)] {
            let mut packets = base.clone();
            packets[1][at] = value;
            assert_eq!(counts(&packets), [1, 1], "{at}");
        }
        assert_eq!(counts(&[base[0].clone(), base[0].clone()]), [1, 1]);
        // A larger one behind a smaller, anything behind a push, an empty one.
        assert_eq!(counts(&stream(false, &[100, 200, 200])), [1, 2]);
        assert_eq!(counts(&stream(false, &[100, 0, 100])), [1, 1, 1]);
        assert_eq!(counts(&stream(false, &[100, 50, 50, 50])), [2, 2]);
        // A wrong checksum is for the kernel to see.
        let mut packets = base;
        *packets[1].last_mut().unwrap() ^= 1;
        assert_eq!(counts(&packets), [1, 1]);
        // No more than fit into one packet.
        assert_eq!(counts(&stream(false, &[1448; 50])), [45, 5]);
        assert_eq!(counts(&stream(true, &[10; 100])), [64, 36]);
    }

    #[test]
    fn a_checksum_that_the_kernel_left_open_is_made() {
        let packet = stream(false, &[33]).remove(0);
        let mut open = packet.clone();
        let pseudo = !fold(pseudo_sum(&packet, 20, TCP));
        put_u16(&mut open, 20 + TCP_CHECKSUM_AT, pseudo);
        let head = Head { flags: NEEDS_CHECKSUM, checksum_start: 20, checksum_at: 16, ..Head::default() };
        assert_eq!(cut(&[&head.encode()[..], &open].concat()), [packet]);
    }

    #[test]
    fn large_udp_packets_are_cut_into_datagrams() {
        let mut packet = vec![0x60, 0, 0, 0, 1, 2, UDP, 64];
        packet.extend([[0xfd; 16], [0xfe; 16]].concat());
        packet.extend([0, 7, 0, 80, 1, 2, 0, 0]);
        packet.extend([5; 250]);
        let head = Head { kind: GSO_UDP, segment_bytes: 100, checksum_start: 40, checksum_at: 6, ..Head::default() };
        let datagrams = cut(&[&head.encode()[..], &packet].concat());
        assert_eq!(datagrams.iter().map(Vec::len).collect::<Vec<_>>(), [148, 148, 98]);
        for datagram in datagrams {
            assert_eq!(usize::from(u16::from_be_bytes([datagram[44], datagram[45]])), datagram.len() - 40);
            assert_eq!(fold(pseudo_sum(&datagram, 40, UDP) + sum(&datagram[40..])), 0);
        }
    }

    #[test]
    fn a_checksum_is_that_of_the_internet() {
        // RFC 1071, section 3.
        assert_eq!(!fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        for bytes in 0..20_usize {
            let data: Vec<u8> = (0..bytes).map(|at| u8::try_from(200 + at).unwrap()).collect();
            let slow: u64 =
                data.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low))).sum();
            assert_eq!(fold(sum(&data)), fold(slow), "{bytes}");
        }
    }

    fn tcp() -> impl Strategy<Value = Tcp> {
        (
            any::<bool>(),
            0_u16..2,
            prop_oneof![4 => Just(ACK), 1 => Just(ACK | PSH), 1 => any::<u8>()],
            0_usize..3,
            0_usize..3,
        )
            .prop_map(|(is_ipv6, port, flags, options, payload)| Tcp {
                is_ipv6,
                port,
                id: 0,
                sequence: 0,
                flags,
                options: vec![1; options * 4],
                payload: vec![3; payload * 50],
            })
    }

    proptest! {
        #[test]
        fn whatever_is_put_together_comes_apart_as_it_was(streams in prop::collection::vec((tcp(), 1_u16..6), 1..20)) {
            let mut sequences = [0_u32; 2];
            let mut id = 0;
            let mut packets = Vec::new();
            for (tcp, count) in streams {
                for _ in 0..count {
                    let sequence = &mut sequences[usize::from(tcp.port)];
                    packets.push(Tcp { id, sequence: *sequence, ..tcp.clone() }.packet());
                    *sequence = sequence.wrapping_add(low_u32(tcp.payload.len()));
                    id += 1;
                }
            }
            let mut again = Vec::new();
            for (write, count) in written(&packets) {
                let parts = cut(&write);
                prop_assert_eq!(parts.len(), count);
                again.extend(parts);
            }
            prop_assert_eq!(again, packets);
        }

        #[test]
        fn arbitrary_packets_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..7, six in any::<bool>()) {
            if let [_, first_kind, _, _, _, segment, start_low, start_high, ..] = bytes.as_mut_slice() {
                (*first_kind, *segment, *start_low, *start_high) = (kind, 0, if six { 40 } else { 20 }, 0);
            }
            if let Some(version) = bytes.get_mut(HEAD_BYTES) {
                *version = if six { 0x60 } else { 0x45 };
            }
            let packet = bytes.get(HEAD_BYTES..).unwrap_or_default().to_vec();
            if let Ok(large) = Large::read(&mut bytes) {
                large.segment(&mut Packets::default());
            }
            _ = written(&[packet.clone(), packet]);
        }
    }
}
