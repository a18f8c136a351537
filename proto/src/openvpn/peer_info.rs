//! What a client says about itself: `KEY=VALUE` lines (wire page §3.6). All of it is an unauthenticated claim.

/// Lines that are looked at; the rest is ignored.
pub const PEER_INFO_LINES_MAX: usize = 128;
/// Bytes of one value that are kept for people to read.
pub const CLAIM_BYTES_MAX: usize = 64;
/// Bytes of `IV_CIPHERS` that are looked at.
const CIPHERS_BYTES_MAX: usize = 1024;

/// What a client can do: the bits of `IV_PROTO`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities(u64);

impl Abilities {
    /// May be pushed a peer id and then speaks DATA_V2.
    pub const DATA_V2: Self = Self(1 << 1);
    /// Wants the push reply at once.
    pub const REQUEST_PUSH: Self = Self(1 << 2);
    /// Data keys may come from the TLS exporter.
    pub const TLS_KEY_EXPORT: Self = Self(1 << 3);
    /// Knows `EXIT`, and `protocol-flags`.
    pub const CC_EXIT_NOTIFY: Self = Self(1 << 7);
    /// Knows `AUTH_FAILED,TEMP`.
    pub const AUTH_FAILED_TEMP: Self = Self(1 << 8);
    /// Control packets of later keys may be wrapped under a key of the first.
    pub const DYNAMIC_TLS_CRYPT: Self = Self(1 << 9);
    /// Knows the epoch data format.
    pub const DATA_EPOCH: Self = Self(1 << 10);

    /// From the number in `IV_PROTO`. Anything that is not a number is no ability at all.
    fn parse(value: &[u8]) -> Self {
        let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        Self(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// Whether all of `others` are there.
    #[must_use]
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// The number in `IV_PROTO`.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl std::fmt::Debug for Abilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Abilities({})", self.0)
    }
}

/// What a server reads of it. Where a key comes twice, the first one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// `IV_PROTO`.
    pub abilities: Abilities,
    /// `IV_CIPHERS`, colon-separated. `None`: not said; empty: none.
    pub ciphers: Option<Vec<u8>>,
    /// `IV_NCP`: 2 means that the client knows AES-256-GCM and AES-128-GCM and takes what is pushed.
    pub ncp: u8,
    /// `IV_MTU`: a tunnel MTU up to this may be pushed.
    pub mtu_max: Option<u16>,
    /// `IV_COMP_STUBv2=1`: can be told to leave the compression framing away.
    pub has_stub_v2: bool,
    /// `IV_VER`, cut to [`CLAIM_BYTES_MAX`]. Arbitrary bytes of the peer.
    pub version: Vec<u8>,
    /// `IV_PLAT`, cut to [`CLAIM_BYTES_MAX`]. Arbitrary bytes of the peer.
    pub platform: Vec<u8>,
}

impl PeerInfo {
    /// Reads the lines; nothing in them is an error.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let value = |name: &[u8]| -> Option<&[u8]> {
            text.split(|byte| *byte == b'\n').take(PEER_INFO_LINES_MAX).find_map(|line| {
                let rest = line.strip_prefix(name)?.strip_prefix(b"=")?;
                Some(rest.strip_suffix(b"\r").unwrap_or(rest))
            })
        };
        let claim =
            |name| value(name).map_or_else(Vec::new, |value| value[..value.len().min(CLAIM_BYTES_MAX)].to_vec());
        let number = |name| std::str::from_utf8(value(name)?).ok()?.parse::<u16>().ok();
        Self {
            abilities: value(b"IV_PROTO").map(Abilities::parse).unwrap_or_default(),
            ciphers: value(b"IV_CIPHERS").map(|list| list[..list.len().min(CIPHERS_BYTES_MAX)].to_vec()),
            ncp: number(b"IV_NCP").and_then(|ncp| u8::try_from(ncp).ok()).unwrap_or(0),
            mtu_max: number(b"IV_MTU"),
            has_stub_v2: value(b"IV_COMP_STUBv2") == Some(b"1"),
            version: claim(b"IV_VER"),
            platform: claim(b"IV_PLAT"),
        }
    }

    /// Whether a pushed `cipher` is understood.
    #[must_use]
    pub const fn takes_pushed_cipher(&self) -> bool {
        self.ciphers.is_some() || self.ncp >= 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[test]
    fn reads_what_a_stock_client_says() {
        let info = PeerInfo::parse(
            b"IV_VER=2.6.14\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM\n\
              IV_PROTO=990\nIV_COMP_STUBv2=1\n",
        );
        assert_eq!(info.version, b"2.6.14");
        assert_eq!(info.platform, b"linux");
        assert_eq!((info.mtu_max, info.ncp, info.has_stub_v2), (Some(1600), 2, true));
        assert_eq!(info.ciphers.as_deref(), Some(b"AES-256-GCM:AES-128-GCM".as_slice()));
        for ability in
            [Abilities::DATA_V2, Abilities::REQUEST_PUSH, Abilities::TLS_KEY_EXPORT, Abilities::CC_EXIT_NOTIFY]
        {
            assert!(info.abilities.has(ability));
        }
        assert!(!info.abilities.has(Abilities::DATA_EPOCH));
    }

    #[rstest]
    #[case(b"IV_PROTO=", 0)]
    #[case(b"IV_PROTO=0x3de", 0)]
    #[case(b"IV_PROTO=-1", 0)]
    #[case(b"IV_PROTO=+2", 0)]
    #[case(b"IV_PROTO=99999999999999999999999", 0)]
    #[case(b"IV_PROTO=2\nIV_PROTO=990", 2)]
    #[case(b"XIV_PROTO=2\n IV_PROTO=2", 0)]
    #[case(b"", 0)]
    fn odd_abilities_are_none(#[case] text: &[u8], #[case] expected: u64) {
        assert_eq!(PeerInfo::parse(text).abilities.bits(), expected);
    }

    #[test]
    fn lines_and_values_are_bounded() {
        let mut text = b"A=1\n".repeat(PEER_INFO_LINES_MAX);
        text.extend_from_slice(b"IV_PROTO=2");
        assert_eq!(PeerInfo::parse(&text).abilities.bits(), 0);
        assert_eq!(PeerInfo::parse(&[b"IV_VER=".as_slice(), &[0x1b; 900]].concat()).version, [0x1b; CLAIM_BYTES_MAX]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            _ = PeerInfo::parse(&bytes);
        }
    }
}
