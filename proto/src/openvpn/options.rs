//! The options string that both sides send to find out whether their configurations fit (wire page §3.5).

/// A client's options string, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options(Vec<u8>);

/// What a server says that has not heard its client's.
const SERVER_OPTIONS: &[u8] =
    b"V4,dev-type tun,link-mtu 1543,tun-mtu 1500,proto TCPv4_SERVER,auth SHA1,keysize 128,key-method 2,tls-server";

impl Options {
    pub(super) const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    fn words(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b',')
    }

    /// The client puts a compression byte before each packet: `compress` or `comp-lzo` in any form.
    pub(super) fn has_compression(&self) -> bool {
        self.words().any(|word| word == b"comp-lzo")
    }

    /// The client's interface is an Ethernet one.
    pub(super) fn is_tap(&self) -> bool {
        self.words().any(|word| word == b"dev-type tap")
    }

    /// The only cipher of a client that negotiates none.
    pub(super) fn cipher(&self) -> Option<&[u8]> {
        self.words().find_map(|word| word.strip_prefix(b"cipher "))
    }

    /// The string that suits the client without a warning: its own, with the roles exchanged.
    pub(super) fn mirrored(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return SERVER_OPTIONS.to_vec();
        }
        let words: Vec<Vec<u8>> = self.words().map(mirrored).collect();
        words.join(&b',')
    }
}

fn mirrored(word: &[u8]) -> Vec<u8> {
    match word {
        b"tls-client" => b"tls-server".to_vec(),
        b"keydir 1" => b"keydir 0".to_vec(),
        b"keydir 0" => b"keydir 1".to_vec(),
        _ => match word.strip_suffix(b"_CLIENT") {
            Some(proto) if proto.starts_with(b"proto ") => [proto, b"_SERVER"].concat(),
            _ => word.to_vec(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_answer_is_the_clients_own_string_with_the_roles_exchanged() {
        let options = Options::new(
            b"V4,dev-type tun,link-mtu 1543,tun-mtu 1500,proto TCPv4_CLIENT,auth SHA1,keysize 128,key-method 2,tls-client"
                .to_vec(),
        );
        assert_eq!(options.mirrored(), SERVER_OPTIONS);
        assert_eq!(Options::new(b"V4,keydir 1".to_vec()).mirrored(), b"V4,keydir 0");
        assert_eq!(Options::default().mirrored(), SERVER_OPTIONS);
    }

    #[test]
    fn reads_compression_and_cipher() {
        let options = Options::new(b"V4,dev-type tun,comp-lzo,cipher BF-CBC".to_vec());
        assert!(options.has_compression() && !options.is_tap());
        assert_eq!(options.cipher(), Some(b"BF-CBC".as_slice()));
        assert!(Options::new(b"V4,dev-type tap".to_vec()).is_tap());
    }

    proptest! {
        #[test]
        fn arbitrary_strings_never_panic_and_are_answered_in_their_length(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let options = Options::new(bytes.clone());
            _ = (options.is_tap(), options.has_compression(), options.cipher());
            prop_assert!(bytes.is_empty() || options.mirrored().len() == bytes.len());
        }
    }
}
