use proptest::prelude::*;
use proxy_header::{Error, ParseConfig, ProxiedAddress, ProxyHeader, Tlv};
use rstest::rstest;

use super::*;

const IPV4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb];
/// The beginning of a TLS record.
const BEHIND: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00";

fn v1(line: &str) -> Vec<u8> {
    format!("PROXY {line}\r\n").into_bytes()
}

fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [V2_MARK, &[command, family], &length, block].concat()
}

fn ipv6(source: Ipv6Addr) -> Vec<u8> {
    [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0x9c, 0x40, 0x01, 0xbb]].concat()
}

fn from(text: &str) -> Header {
    Header::Client(text.parse().unwrap())
}

#[rstest]
#[case::v1_ipv4(v1("TCP4 192.0.2.7 198.51.100.1 40000 443"), from("192.0.2.7:40000"))]
#[case::v1_ipv6(v1("TCP6 2001:db8::7 2001:db8::1 40000 443"), from("[2001:db8::7]:40000"))]
#[case::v1_ipv4_as_ipv6(v1("TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 40000 443"), from("192.0.2.7:40000"))]
#[case::v1_port_0(v1("TCP4 192.0.2.7 198.51.100.1 0 443"), from("192.0.2.7:0"))]
#[case::v1_unknown(v1("UNKNOWN"), Header::Local)]
#[case::v1_longest(
    v1("UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535"),
    Header::Local
)]
#[case::v2_ipv4(v2(0x21, 0x11, IPV4), from("192.0.2.7:40000"))]
#[case::v2_ipv6(v2(0x21, 0x21, &ipv6("2001:db8::7".parse().unwrap())), from("[2001:db8::7]:40000"))]
#[case::v2_ipv4_as_ipv6(v2(0x21, 0x21, &ipv6("::ffff:192.0.2.7".parse().unwrap())), from("192.0.2.7:40000"))]
#[case::v2_extensions(v2(0x21, 0x11, &[IPV4, b"\x03\x00\x04abcd\xea\x00\x02xy"].concat()), from("192.0.2.7:40000"))]
#[case::v2_extensions_cut_short(v2(0x21, 0x11, &[IPV4, b"\x03\xff"].concat()), from("192.0.2.7:40000"))]
#[case::v2_longest(v2(0x21, 0x11, &[IPV4, &[0; HEADER_BYTES_MAX - 28]].concat()), from("192.0.2.7:40000"))]
#[case::v2_local(LOCAL.to_vec(), Header::Local)]
#[case::v2_local_with_a_family_and_nothing_else(v2(0x20, 0x11, b""), Header::Local)]
#[case::v2_local_with_addresses(v2(0x20, 0x11, IPV4), Header::Local)]
#[case::v2_local_of_a_family_that_is_none(v2(0x20, 0xff, b"xy"), Header::Local)]
fn a_header_is_read_to_its_end_and_no_further(#[case] bytes: Vec<u8>, #[case] expected: Header) {
    let whole = [&bytes[..], BEHIND].concat();
    for end in 0..bytes.len() {
        assert_eq!(decode(&whole[..end]), Ok(None), "{end} bytes of {}", bytes.len());
    }
    for end in bytes.len()..=whole.len() {
        assert_eq!(decode(&whole[..end]), Ok(Some((expected, bytes.len()))), "{end} bytes");
    }
}

#[rstest]
#[case::tls(BEHIND, DecodeError::Missing)]
#[case::openvpn(b"\x00\x0e\x38", DecodeError::Missing)]
#[case::http(b"POST / HTTP/1.1\r\n", DecodeError::Missing)]
#[case::lower_case(b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n", DecodeError::Missing)]
#[case::no_space(b"PROXY\tTCP4 192.0.2.7 198.51.100.1 1 2\r\n", DecodeError::Missing)]
#[case::v2_other_mark(b"\r\n\r\n\0\r\nQUIT\r", DecodeError::Missing)]
#[case::nothing_said(&v1(""), DecodeError::Malformed)]
#[case::other_protocol(&v1("UDP4 192.0.2.7 198.51.100.1 1 2"), DecodeError::Malformed)]
#[case::unknown_and_more(&v1("UNKNOWNX"), DecodeError::Malformed)]
#[case::other_family(&v1("TCP4 2001:db8::7 2001:db8::1 1 2"), DecodeError::Malformed)]
#[case::mixed_families(&v1("TCP4 192.0.2.7 2001:db8::1 1 2"), DecodeError::Malformed)]
#[case::name(&v1("TCP4 localhost 198.51.100.1 1 2"), DecodeError::Malformed)]
#[case::scope(&v1("TCP6 fe80::1%eth0 2001:db8::1 1 2"), DecodeError::Malformed)]
#[case::octal(&v1("TCP4 192.0.2.07 198.51.100.1 1 2"), DecodeError::Malformed)]
#[case::two_spaces(&v1("TCP4  192.0.2.7 198.51.100.1 1 2"), DecodeError::Malformed)]
#[case::space_at_the_end(&v1("TCP4 192.0.2.7 198.51.100.1 1 2 "), DecodeError::Malformed)]
#[case::word_too_many(&v1("TCP4 192.0.2.7 198.51.100.1 1 2 3"), DecodeError::Malformed)]
#[case::word_too_few(&v1("TCP4 192.0.2.7 198.51.100.1 1"), DecodeError::Malformed)]
#[case::signed_port(&v1("TCP4 192.0.2.7 198.51.100.1 +1 2"), DecodeError::Malformed)]
#[case::leading_zero(&v1("TCP4 192.0.2.7 198.51.100.1 01 2"), DecodeError::Malformed)]
#[case::large_port(&v1("TCP4 192.0.2.7 198.51.100.1 1 65536"), DecodeError::Malformed)]
#[case::no_port(&v1("TCP4 192.0.2.7 198.51.100.1  2"), DecodeError::Malformed)]
#[case::carriage_return(&v1("TCP4 192.0.2.7 198.51.100.1 1\r2"), DecodeError::Malformed)]
#[case::line_feed(&v1("TCP4 192.0.2.7 198.51.100.1 1 2\nPROXY UNKNOWN"), DecodeError::Malformed)]
#[case::not_utf8(b"PROXY TCP4 \xff\r\n", DecodeError::Malformed)]
#[case::v1_without_end(&[V1_MARK, &[b'x'; 101]].concat(), DecodeError::TooLong)]
#[case::v1_end_too_late(&v1(&"x".repeat(100)), DecodeError::TooLong)]
#[case::v2_version_1(&v2(0x11, 0x11, IPV4), DecodeError::Malformed)]
#[case::v2_other_command(&v2(0x22, 0x11, IPV4), DecodeError::Malformed)]
#[case::v2_other_family(&v2(0x21, 0x41, IPV4), DecodeError::Malformed)]
#[case::v2_other_transport(&v2(0x21, 0x13, IPV4), DecodeError::Malformed)]
#[case::v2_unspecified(&v2(0x21, 0x00, b""), DecodeError::NoClient)]
#[case::v2_udp(&v2(0x21, 0x12, IPV4), DecodeError::NoClient)]
#[case::v2_unix(&v2(0x21, 0x31, &[0; 216]), DecodeError::NoClient)]
#[case::v2_no_addresses(&v2(0x21, 0x11, b""), DecodeError::Malformed)]
#[case::v2_half_an_address(&v2(0x21, 0x11, &IPV4[..11]), DecodeError::Malformed)]
#[case::v2_ipv4_said_to_be_ipv6(&v2(0x21, 0x21, IPV4), DecodeError::Malformed)]
#[case::v2_too_long(&[V2_MARK, b"\x21\x11\x0f\xf1"].concat(), DecodeError::TooLong)]
#[case::v2_longest_there_is(&[V2_MARK, b"\x20\x00\xff\xff"].concat(), DecodeError::TooLong)]
fn anything_else_is_refused(#[case] bytes: &[u8], #[case] expected: DecodeError) {
    assert_eq!(decode(bytes), Err(expected));
}

#[test]
fn what_tls_and_openvpn_begin_with_begins_no_header() {
    for first in 0..=u8::MAX {
        let expected = if first == b'P' || first == b'\r' { Ok(None) } else { Err(DecodeError::Missing) };
        assert_eq!(decode(&[first]), expected, "{first:#x}");
    }
}

#[rstest]
#[case(b"PROXY ", true)]
#[case(b"PROXY nonsense", true)]
#[case(V2_MARK, true)]
#[case(&LOCAL, true)]
#[case(b"", false)]
#[case(b"PROXY", false)]
#[case(b"POST / HTTP/1.1", false)]
#[case(b"\r\n\r\n", false)]
#[case(BEHIND, false)]
fn a_mark_is_told_from_what_it_could_become(#[case] first: &[u8], #[case] expected: bool) {
    assert_eq!(is_marked(first), expected);
    assert_eq!(is_marked(&first[..first.len().min(MARK_BYTES_MAX)]), expected);
}

fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let ipv4 = || any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from);
    let ipv6 = || any::<(Ipv6Addr, u16)>().prop_map(SocketAddr::from);
    prop_oneof![(ipv4(), ipv4()), (ipv6(), ipv6())]
}

/// Bytes that are nearly a header, more often than not.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let anything = || prop::collection::vec(any::<u8>(), 0..300);
    let line = "(TCP4|TCP6|UNKNOWN)?( ?[0-9a-f.:]{0,20}){0,5} ?\r?\n?.{0,80}";
    let head = (0x1f_u8..0x23, prop::sample::select(vec![0x00_u8, 0x10, 0x11, 0x12, 0x21, 0x31, 0x41]), 0_u16..300);
    prop_oneof![
        anything(),
        line.prop_map(|line| [V1_MARK, line.as_bytes()].concat()),
        (head, anything()).prop_map(|((command, family, length), rest)| {
            [V2_MARK, &[command, family], &length.to_be_bytes(), &rest].concat()
        }),
    ]
}

proptest! {
    /// Another implementation writes it.
    #[test]
    fn every_client_is_understood(
        (source, destination) in addresses(),
        extension in prop::option::of(prop::collection::vec(any::<u8>(), 0..1000)),
        behind in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
        let expected = Header::Client(SocketAddr::new(source.ip().to_canonical(), source.port()));
        let mut bytes = Vec::new();
        match extension {
            None => header.encode_v1(&mut bytes).unwrap(),
            Some(extension) => {
                header.append_tlv(Tlv::Custom(0xea, extension.into()));
                header.encode_v2(&mut bytes).unwrap();
            }
        }
        let length = bytes.len();
        bytes.extend(behind);
        prop_assert_eq!(decode(&bytes), Ok(Some((expected, length))));
        for end in 0..length {
            prop_assert_eq!(decode(&bytes[..end]), Ok(None));
        }
    }

    #[test]
    fn a_verdict_never_changes_with_more_bytes(bytes in nearly()) {
        let mut verdict = Ok(None);
        for end in 0..=bytes.len() {
            let now = decode(&bytes[..end]);
            if verdict != Ok(None) {
                prop_assert_eq!(now, verdict);
            }
            if let Ok(Some((_, length))) = now {
                prop_assert!(length <= end && length <= HEADER_BYTES_MAX);
            }
            verdict = now;
        }
        prop_assert!(verdict != Ok(None) || bytes.len() < HEADER_BYTES_MAX);
    }

    /// Another implementation, which is less strict, reads the same out of what is taken.
    #[test]
    fn who_is_taken_for_the_client_is_so_elsewhere(bytes in nearly()) {
        if let Ok(Some((Header::Client(client), length))) = decode(&bytes) {
            let read = ProxyHeader::parse(&bytes, ParseConfig::default());
            let (header, theirs) = read.map_err(|error: Error| TestCaseError::fail(format!("{error}")))?;
            let source = header.proxied_address().unwrap().source;
            prop_assert_eq!((SocketAddr::new(source.ip().to_canonical(), source.port()), theirs), (client, length));
        }
    }
}

#[test]
fn what_is_said_of_a_connection_of_the_balancers_own_is_understood_elsewhere() {
    let (header, length) = ProxyHeader::parse(&LOCAL, ParseConfig::default()).unwrap();
    assert_eq!((header.proxied_address(), length), (None, LOCAL.len()));
}
