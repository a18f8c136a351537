//! Telling OpenVPN from TLS by a connection's first bytes (wire page §1.3).

/// How many bytes decide at most: never peek more.
pub const SNIFF_BYTES_MAX: usize = 3;

/// What a connection is about to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// A TLS handshake record.
    Tls,
    /// An OpenVPN client's first packet.
    OpenVpn,
    /// Nothing that is served here.
    Junk,
    /// Not decided yet: wait for more, with a deadline.
    NeedMore,
}

/// The content type of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// A hard reset of a client with key id 0, as [`Opcode::with`](super::opcode::Opcode::with) makes it.
const RESET_V2: u8 = 0x38;
/// The same with a wrapped client key behind it.
const RESET_V3: u8 = 0x50;
/// Frame lengths that stock servers take for a first packet, too (`ps.c: is_openvpn_protocol`).
const RESET_V2_BYTES: std::ops::RangeInclusive<u16> = 14..=255;
const RESET_V3_BYTES: std::ops::RangeInclusive<u16> = 336..=1278;

/// Decides by the first bytes; those behind the third are not looked at.
#[must_use]
pub fn sniff(first: &[u8]) -> Sniffed {
    match *first {
        [] => Sniffed::NeedMore,
        [TLS_HANDSHAKE, ..] => Sniffed::Tls,
        [high] if u16::from(high) <= RESET_V3_BYTES.end() >> 8 => Sniffed::NeedMore,
        [high, low] if is_first_length(u16::from_be_bytes([high, low])) => Sniffed::NeedMore,
        [high, low, RESET_V2, ..] if RESET_V2_BYTES.contains(&u16::from_be_bytes([high, low])) => Sniffed::OpenVpn,
        [high, low, RESET_V3, ..] if RESET_V3_BYTES.contains(&u16::from_be_bytes([high, low])) => Sniffed::OpenVpn,
        _ => Sniffed::Junk,
    }
}

fn is_first_length(length: u16) -> bool {
    RESET_V2_BYTES.contains(&length) || RESET_V3_BYTES.contains(&length)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing(b"", Sniffed::NeedMore)]
    #[case::tls(b"\x16", Sniffed::Tls)]
    #[case::client_hello(b"\x16\x03\x01\x02\x00", Sniffed::Tls)]
    #[case::one_byte(b"\x00", Sniffed::NeedMore)]
    #[case::two_bytes(b"\x00\x0e", Sniffed::NeedMore)]
    #[case::plain(b"\x00\x0e\x38", Sniffed::OpenVpn)]
    #[case::tls_auth_sha1(b"\x00\x2a\x38", Sniffed::OpenVpn)]
    #[case::tls_auth_sha512(b"\x00\x56\x38\xaa", Sniffed::OpenVpn)]
    #[case::tls_crypt(b"\x00\x36\x38", Sniffed::OpenVpn)]
    #[case::tls_crypt_v2(b"\x01\x61\x50", Sniffed::OpenVpn)]
    #[case::too_short(b"\x00\x0d", Sniffed::Junk)]
    #[case::v2_with_the_length_of_v3(b"\x01\x61\x38", Sniffed::Junk)]
    #[case::v3_with_the_length_of_v2(b"\x00\x36\x50", Sniffed::Junk)]
    #[case::another_opcode(b"\x00\x0e\x20", Sniffed::Junk)]
    #[case::key_id_1(b"\x00\x0e\x39", Sniffed::Junk)]
    #[case::too_long(b"\x04\xff", Sniffed::Junk)]
    #[case::high(b"\x05", Sniffed::Junk)]
    #[case::http(b"GET", Sniffed::Junk)]
    #[case::proxy_v1(b"PRO", Sniffed::Junk)]
    #[case::proxy_v2(b"\x0d\x0a\x0d", Sniffed::Junk)]
    #[case::ssh(b"SSH", Sniffed::Junk)]
    fn first_bytes_decide(#[case] first: &[u8], #[case] expected: Sniffed) {
        assert_eq!(sniff(first), expected);
    }

    #[test]
    fn three_bytes_always_decide() {
        for bytes in 0..=0x00ff_ffff_u32 {
            let [_, first @ ..] = bytes.to_be_bytes();
            assert_ne!(sniff(&first), Sniffed::NeedMore);
        }
    }

    #[test]
    fn a_decision_never_changes_with_more_bytes() {
        for bytes in 0..=0x0000_ffff_u32 {
            let [_, _, first @ ..] = bytes.to_be_bytes();
            let early = sniff(&first[..1]);
            assert!(early == Sniffed::NeedMore || early == sniff(&first));
        }
    }
}
