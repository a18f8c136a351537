//! What a server pushes to a client, and how a client reads it (wire page §3.8, §7).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::cipher::Cipher;

/// Bytes of one push reply with its NUL: what any version takes, and one control packet.
pub const PUSH_REPLY_BYTES_MAX: usize = 1024;
/// Bytes of one option (`options.h: OPTION_PARM_SIZE`).
pub const PUSH_OPTION_BYTES_MAX: usize = 255;
/// Options that a client keeps.
pub const PUSH_OPTIONS_MAX: usize = 1024;
/// Replies that may make up one push.
pub const PUSH_REPLIES_MAX: usize = 64;

/// What one client gets, as its server decides when it knows who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The tunnel's address. Packets from other addresses are dropped.
    pub ipv4: Ipv4Addr,
    /// The mask of the tunnel's network.
    pub netmask: Ipv4Addr,
    /// The server's own address in that network.
    pub gateway: Ipv4Addr,
    /// The same for IPv6, if there is any in the tunnel.
    pub ipv6: Option<AdmissionV6>,
    /// Any 24 bits; over TCP they need not be unique.
    pub peer_id: u32,
    /// Further options as in a configuration file, such as `route 10.0.0.0 255.0.0.0`. Options with a comma, with anything
    /// but printable ASCII or over [`PUSH_OPTION_BYTES_MAX`] are left away.
    pub options: Vec<String>,
}

/// The IPv6 side of an [`Admission`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionV6 {
    /// The tunnel's address. Packets from other addresses are dropped.
    pub address: Ipv6Addr,
    /// 64 to 124.
    pub prefix_bits: u8,
    /// The server's own address.
    pub gateway: Ipv6Addr,
}

/// Puts options into as few replies as there can be. One reply needs no continuation, which not every client knows.
pub(super) fn replies(options: &[String]) -> Vec<String> {
    const FIRST: &str = "PUSH_REPLY";
    const MORE: &str = ",push-continuation 2";
    const LAST: &str = ",push-continuation 1";

    let is_fit = |option: &&String| {
        option.len() <= PUSH_OPTION_BYTES_MAX && option.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b',')
    };
    let fit: Vec<&String> = options.iter().filter(is_fit).collect();
    let bytes: usize = fit.iter().map(|option| 1 + option.len()).sum();
    let is_split = FIRST.len() + bytes >= PUSH_REPLY_BYTES_MAX;
    let bytes_max = PUSH_REPLY_BYTES_MAX - 1 - if is_split { MORE.len() } else { 0 };
    let mut replies = vec![FIRST.to_owned()];
    for option in fit {
        let last = replies.last_mut().expect("starts with one");
        if last.len() + 1 + option.len() > bytes_max {
            last.push_str(MORE);
            replies.push(FIRST.to_owned());
        }
        let last = replies.last_mut().expect("starts with one");
        last.push(',');
        last.push_str(option);
    }
    if is_split {
        replies.last_mut().expect("starts with one").push_str(LAST);
    }
    replies
}

/// What a client was pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Every option as it came, in order, without continuations.
    pub options: Vec<String>,
    /// `ifconfig`: the tunnel's address and mask.
    pub ipv4: Option<(Ipv4Addr, Ipv4Addr)>,
    /// `ifconfig-ipv6`: the tunnel's address and prefix length.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// `route-gateway`: the server's address.
    pub gateway: Option<Ipv4Addr>,
    /// `peer-id`.
    pub peer_id: Option<u32>,
    /// `cipher`, as it was written.
    pub cipher: Option<String>,
    /// `ping`.
    pub ping: Option<Duration>,
    /// `ping-restart`.
    pub ping_restart: Option<Duration>,
    /// `tun-mtu`.
    pub mtu: Option<u16>,
    /// `protocol-flags tls-ekm`, or the older `key-derivation tls-ekm`.
    pub(super) has_tls_ekm: bool,
    /// `protocol-flags cc-exit`.
    pub(super) has_cc_exit: bool,
    /// `protocol-flags dyn-tls-crypt`.
    pub(super) has_dynamic_tls_crypt: bool,
    /// `protocol-flags aead-epoch`.
    pub(super) has_epoch: bool,
    replies: usize,
}

/// Why a push cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// More than anybody needs.
    #[error("the server pushes too many options")]
    TooMany,
    /// A cipher that this side did not offer.
    #[error("the server pushes a cipher that was not offered")]
    Cipher,
    /// The epoch format without what it needs.
    #[error("the server pushes aead-epoch without a peer id")]
    EpochWithoutPeerId,
}

/// Whether a push goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continuation {
    More,
    Complete,
}

impl Pushed {
    /// Adds one reply's options.
    pub(super) fn add(&mut self, text: &str) -> Result<Continuation, PushError> {
        self.replies += 1;
        if self.replies > PUSH_REPLIES_MAX {
            return Err(PushError::TooMany);
        }
        let mut continuation = Continuation::Complete;
        for option in text.split(',').filter(|option| !option.is_empty()) {
            match option {
                "push-continuation 2" => continuation = Continuation::More,
                "push-continuation 1" => continuation = Continuation::Complete,
                _ if self.options.len() >= PUSH_OPTIONS_MAX => return Err(PushError::TooMany),
                _ => {
                    self.read(option);
                    self.options.push(option.to_owned());
                }
            }
        }
        Ok(continuation)
    }

    /// The cipher, if a known one was pushed.
    pub(super) fn known_cipher(&self) -> Option<Cipher> {
        self.cipher.as_ref().and_then(|name| Cipher::from_name(name.as_bytes()))
    }

    fn read(&mut self, option: &str) {
        let mut words = option.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let mut word = || words.next();
        match name {
            "ifconfig" => self.ipv4 = parse(word()).zip(parse(word())),
            "ifconfig-ipv6" => {
                let (address, bits) = word().and_then(|text| text.split_once('/')).unzip();
                self.ipv6 = parse(address).zip(parse(bits));
            }
            "route-gateway" => self.gateway = parse(word()),
            "peer-id" => self.peer_id = parse(word()).filter(|id| *id <= 0x00ff_ffff),
            "cipher" => self.cipher = word().map(str::to_owned),
            "ping" => self.ping = seconds(word()),
            "ping-restart" => self.ping_restart = seconds(word()),
            "tun-mtu" => self.mtu = parse(word()),
            "key-derivation" => self.has_tls_ekm |= word() == Some("tls-ekm"),
            "protocol-flags" => words.for_each(|flag| match flag {
                "cc-exit" => self.has_cc_exit = true,
                "tls-ekm" => self.has_tls_ekm = true,
                "dyn-tls-crypt" => self.has_dynamic_tls_crypt = true,
                "aead-epoch" => self.has_epoch = true,
                _ => {}
            }),
            _ => {}
        }
    }
}

fn parse<T: std::str::FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

/// At most a day, as 2.7 has it; zero is off.
fn seconds(word: Option<&str>) -> Option<Duration> {
    parse(word).filter(|seconds| (1..=86_400).contains(seconds)).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_options_go_in_one_reply_without_continuation() {
        let options = ["topology subnet".to_owned(), "ping 10".to_owned()];
        assert_eq!(replies(&options), ["PUSH_REPLY,topology subnet,ping 10"]);
        assert_eq!(replies(&[]), ["PUSH_REPLY"]);
    }

    #[test]
    fn options_that_would_break_the_message_are_left_away() {
        let options = ["a,b".to_owned(), "c\0d".to_owned(), "x".repeat(256), "ok".to_owned()];
        assert_eq!(replies(&options), ["PUSH_REPLY,ok"]);
    }

    proptest! {
        #[test]
        fn a_client_reads_what_a_server_pushed(lengths in prop::collection::vec(1_usize..=255, 0..120)) {
            let options: Vec<String> = lengths.into_iter().map(|length| "r".repeat(length)).collect();
            let mut pushed = Pushed::default();
            let replies = replies(&options);
            for (index, reply) in replies.iter().enumerate() {
                prop_assert!(reply.len() < PUSH_REPLY_BYTES_MAX);
                let text = reply.strip_prefix("PUSH_REPLY").unwrap().strip_prefix(',').unwrap_or_default();
                let is_last = index + 1 == replies.len();
                prop_assert_eq!(pushed.add(text).unwrap() == Continuation::Complete, is_last);
            }
            prop_assert_eq!(pushed.options, options);
        }

        #[test]
        fn arbitrary_pushes_never_panic(text in ".*") {
            _ = Pushed::default().add(&text);
        }
    }

    #[test]
    fn a_stock_servers_push_is_understood() {
        let mut pushed = Pushed::default();
        let text = "route-gateway 10.77.0.1,topology subnet,ping 10,ping-restart 60,ifconfig 10.77.0.2 255.255.255.0,\
                    ifconfig-ipv6 fd00::2/64 fd00::1,peer-id 0,cipher AES-256-GCM,\
                    protocol-flags cc-exit tls-ekm dyn-tls-crypt,tun-mtu 1500";
        assert_eq!(pushed.add(text), Ok(Continuation::Complete));
        assert_eq!(pushed.ipv4, Some((Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(255, 255, 255, 0))));
        assert_eq!(pushed.ipv6, Some(("fd00::2".parse().unwrap(), 64)));
        assert_eq!(pushed.known_cipher(), Some(Cipher::Aes256Gcm));
        assert_eq!((pushed.peer_id, pushed.mtu), (Some(0), Some(1500)));
        assert_eq!(pushed.ping_restart, Some(Duration::from_secs(60)));
        assert!(pushed.has_cc_exit && pushed.has_tls_ekm && pushed.has_dynamic_tls_crypt && !pushed.has_epoch);
    }
}
