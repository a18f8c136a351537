//! What may come out of a tunnel: whole IP packets from an address that was given to it (wire page §9).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses of one tunnel, and what fits through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPolicy {
    /// The only IPv4 source.
    pub ipv4: Ipv4Addr,
    /// The only IPv6 source; without one no IPv6 comes through.
    pub ipv6: Option<Ipv6Addr>,
    /// The largest packet.
    pub mtu: u16,
}

/// Why a packet from inside a tunnel is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum InnerDrop {
    /// Neither IPv4 nor IPv6, or not as long as it says: also anything with a compression byte in front.
    #[error("not a whole IP packet")]
    Malformed,
    /// Larger than the tunnel's MTU.
    #[error("larger than the tunnel's MTU")]
    TooLarge,
    /// From an address of somebody else.
    #[error("from {0}, which is not the tunnel's address")]
    Source(IpAddr),
    /// From a link-local IPv6 address, as every Linux client sends by itself.
    #[error("from a link-local address")]
    LinkLocal,
    /// A fragment: its ports cannot be seen by any filter behind.
    #[error("a fragment")]
    Fragment,
}

impl InnerPolicy {
    /// Judges a packet.
    ///
    /// # Errors
    /// The packet is to be dropped and counted.
    pub fn check(&self, packet: &[u8]) -> Result<(), InnerDrop> {
        if packet.len() > usize::from(self.mtu) {
            return Err(InnerDrop::TooLarge);
        }
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => self.check_v4(packet),
            Some(6) => self.check_v6(packet),
            _ => Err(InnerDrop::Malformed),
        }
    }

    fn check_v4(&self, packet: &[u8]) -> Result<(), InnerDrop> {
        let head: &[u8; 20] = packet.first_chunk().ok_or(InnerDrop::Malformed)?;
        let head_bytes = usize::from(head[0] & 0x0f) * 4;
        let total_bytes = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if head_bytes < head.len() || head_bytes > total_bytes || total_bytes != packet.len() {
            return Err(InnerDrop::Malformed);
        }
        let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
        if source != self.ipv4 {
            return Err(InnerDrop::Source(source.into()));
        }
        // More fragments, or an offset.
        if u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0 {
            return Err(InnerDrop::Fragment);
        }
        Ok(())
    }

    fn check_v6(&self, packet: &[u8]) -> Result<(), InnerDrop> {
        let head: &[u8; 40] = packet.first_chunk().ok_or(InnerDrop::Malformed)?;
        let payload_bytes = usize::from(u16::from_be_bytes([head[4], head[5]]));
        if head.len() + payload_bytes != packet.len() {
            return Err(InnerDrop::Malformed);
        }
        let source: [u8; 16] = *head[8..].first_chunk().expect("a header has 40 bytes");
        let source = Ipv6Addr::from(source);
        if source.is_unicast_link_local() {
            return Err(InnerDrop::LinkLocal);
        }
        if Some(source) != self.ipv6 {
            return Err(InnerDrop::Source(source.into()));
        }
        if has_fragment_header(head[6], &packet[head.len()..]) {
            return Err(InnerDrop::Fragment);
        }
        Ok(())
    }
}

/// Walks the extension headers that may stand before a fragment header.
fn has_fragment_header(mut next: u8, mut rest: &[u8]) -> bool {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;

    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
        let [following, length, ..] = *rest else { return false };
        next = following;
        rest = rest.get((usize::from(length) + 1) * 8..).unwrap_or(&[]);
    }
    next == FRAGMENT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: InnerPolicy = InnerPolicy {
        ipv4: Ipv4Addr::new(10, 77, 0, 2),
        ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
        mtu: 1500,
    };

    fn v4(source: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[3] = 28;
        packet[12..16].copy_from_slice(&source.octets());
        packet
    }

    fn v6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[5] = u8::try_from(payload.len()).unwrap();
        packet[6] = next;
        packet[8..24].copy_from_slice(&source.octets());
        packet.extend_from_slice(payload);
        packet
    }

    fn own_v6() -> Ipv6Addr {
        POLICY.ipv6.unwrap()
    }

    #[test]
    fn only_the_tunnels_own_addresses_pass() {
        assert_eq!(POLICY.check(&v4(POLICY.ipv4)), Ok(()));
        assert_eq!(POLICY.check(&v6(own_v6(), 17, &[0; 8])), Ok(()));
        for source in [[10, 77, 0, 1], [0, 0, 0, 0], [255; 4], [224, 0, 0, 1], [10, 77, 0, 3]].map(Ipv4Addr::from) {
            assert_eq!(POLICY.check(&v4(source)), Err(InnerDrop::Source(source.into())));
        }
        let other = "fd00::3".parse().unwrap();
        assert_eq!(POLICY.check(&v6(other, 17, &[])), Err(InnerDrop::Source(other.into())));
        let without = InnerPolicy { ipv6: None, ..POLICY };
        assert_eq!(without.check(&v6(own_v6(), 17, &[])), Err(InnerDrop::Source(own_v6().into())));
    }

    #[test]
    fn link_local_sources_are_a_matter_of_their_own() {
        assert_eq!(POLICY.check(&v6("fe80::1".parse().unwrap(), 58, &[0; 8])), Err(InnerDrop::LinkLocal));
    }

    #[test]
    fn packets_must_be_as_long_as_they_say() {
        let good = v4(POLICY.ipv4);
        for length in 0..good.len() {
            assert_eq!(POLICY.check(&good[..length]), Err(InnerDrop::Malformed));
        }
        assert_eq!(POLICY.check(&[good.as_slice(), &[0]].concat()), Err(InnerDrop::Malformed));
        let mut short_head = good.clone();
        short_head[0] = 0x44;
        assert_eq!(POLICY.check(&short_head), Err(InnerDrop::Malformed));
        let mut long_head = good;
        long_head[0] = 0x4f;
        assert_eq!(POLICY.check(&long_head), Err(InnerDrop::Malformed));
        let good = v6(own_v6(), 17, &[0; 8]);
        assert_eq!(POLICY.check(&good[..47]), Err(InnerDrop::Malformed));
        // Compression bytes look like versions 15 and 6.
        for first in [0xfa, 0xfb, 0x66, 0x69] {
            assert_eq!(POLICY.check(&[&[first], v4(POLICY.ipv4).as_slice()].concat()), Err(InnerDrop::Malformed));
        }
        assert_eq!(POLICY.check(&vec![0x45; 1501]), Err(InnerDrop::TooLarge));
    }

    #[test]
    fn fragments_are_dropped() {
        for (high, low) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
            let mut packet = v4(POLICY.ipv4);
            (packet[6], packet[7]) = (high, low);
            assert_eq!(POLICY.check(&packet), Err(InnerDrop::Fragment));
        }
        let mut dont_fragment = v4(POLICY.ipv4);
        dont_fragment[6] = 0x40;
        assert_eq!(POLICY.check(&dont_fragment), Ok(()));
        assert_eq!(POLICY.check(&v6(own_v6(), 44, &[0; 8])), Err(InnerDrop::Fragment));
        let behind_options = [44, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(POLICY.check(&v6(own_v6(), 60, &behind_options)), Err(InnerDrop::Fragment));
        assert_eq!(POLICY.check(&v6(own_v6(), 60, &[44])), Ok(()));
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 1..200), six in any::<bool>()) {
            bytes[0] = if six { 0x60 } else { 0x45 };
            _ = POLICY.check(&bytes);
        }
    }
}
