//! Secrets that are given to people and devices once, and of which only a hash is stored: API tokens and enrollment tokens.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

/// 256 bits: cannot be guessed, so that a plain hash is enough to store it.
const SECRET_BYTES: usize = 32;

/// What a token is for, told by its first letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Calls the API.
    Api,
    /// Is traded for a token that calls the API, once.
    Bootstrap,
    /// Enrolls one device.
    Enrollment,
}

impl Purpose {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Api => "clk_",
            Self::Bootstrap => "clb_",
            Self::Enrollment => "cle_",
        }
    }
}

/// A new token: prefix and base64url of its random bytes.
pub struct Token {
    text: Zeroizing<String>,
}

impl Token {
    /// Draws a token from the system's randomness.
    #[must_use]
    pub fn generate(purpose: Purpose) -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        aws_lc_rs::rand::fill(bytes.as_mut()).expect("the system's random source has no way to fail once it is seeded");
        let mut text = String::from(purpose.prefix());
        BASE64URL_NOPAD.encode_append(bytes.as_ref(), &mut text);
        Self { text: Zeroizing::new(text) }
    }

    /// The token itself, to be shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of_text(&self.text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// SHA-256 of a token's text: what is stored, and what a presented token is looked up by. Looking up by hash leaks nothing
/// by its timing, for whoever knows the hash cannot find a token for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of a presented token, if it has the form of a token for `purpose`.
    #[must_use]
    pub fn of_presented(purpose: Purpose, text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(purpose.prefix())?;
        let is_token = encoded.len() == BASE64URL_NOPAD.encode_len(SECRET_BYTES)
            && BASE64URL_NOPAD.decode(encoded.as_bytes()).is_ok();
        is_token.then(|| Self::of_text(text))
    }

    /// The hash of a secret of another form.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self(hash)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presented_token_has_the_hash_of_the_generated_one() {
        let token = Token::generate(Purpose::Api);
        assert!(token.expose().starts_with("clk_"));
        assert_eq!(TokenHash::of_presented(Purpose::Api, token.expose()), Some(token.hash()));
    }

    #[test]
    fn what_has_another_form_is_no_token() {
        let token = Token::generate(Purpose::Enrollment);
        let longer = format!("{}A", token.expose());
        for text in
            ["", "clk_", "clk_AAAA", token.expose(), &longer, "clk_\u{e9}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
        {
            assert_eq!(TokenHash::of_presented(Purpose::Api, text), None, "{text:?}");
        }
    }

    #[test]
    fn no_two_tokens_are_the_same_and_debug_shows_none() {
        let (one, other) = (Token::generate(Purpose::Api), Token::generate(Purpose::Api));
        assert_ne!(one.hash(), other.hash());
        assert_eq!(format!("{one:?}"), "Token(redacted)");
    }
}
