//! What a browser needs when it comes back from the OpenID provider. It is sealed into a cookie of that browser, and nothing of it is
//! kept here: whoever sends browsers away by the thousand, and never lets them come back, takes nobody's place.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::storage_key::StorageKey;

/// The cookie that ties the way back to the browser that set out.
pub(super) const COOKIE: &str = "__Host-cloudlink-sign-in";
/// How long somebody may take at the provider.
pub(super) const VALID_FOR: Duration = Duration::from_secs(600);
/// What is sealed, and for what: nothing else that is sealed with the key opens as this.
const PURPOSE: &str = "sign-in";

/// Good for one browser, and for as long as it says. The provider takes each code once, and each ID token is taken here once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WayBack {
    pub(super) state: String,
    pub(super) nonce: String,
    pub(super) verifier: String,
    pub(super) return_to: String,
    #[serde(with = "time::serde::timestamp")]
    pub(super) expires_at: OffsetDateTime,
}

impl WayBack {
    /// As the value of the cookie. Below the 4,096 bytes that browsers keep, since the path to return to is limited.
    pub(super) fn seal(&self, key: &StorageKey) -> String {
        let plain = serde_json::to_vec(self).expect("strings and a number are JSON");
        BASE64URL_NOPAD.encode(&key.seal(PURPOSE, &plain))
    }

    /// What the cookie says, if this server made it for this state, and not too long ago.
    pub(super) fn open(key: &StorageKey, cookie: &str, state: &str, now: OffsetDateTime) -> Option<Self> {
        let sealed = BASE64URL_NOPAD.decode(cookie.as_bytes()).ok()?;
        let plain = key.open(PURPOSE, &sealed).ok()?;
        let this: Self = serde_json::from_slice(&plain).ok()?;
        (this.state == state && now < this.expires_at).then_some(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way_back(expires_at: OffsetDateTime) -> WayBack {
        let [state, nonce, verifier] = ["state", "nonce", "verifier"].map(str::to_owned);
        WayBack { state, nonce, verifier, return_to: "/devices".to_owned(), expires_at }
    }

    #[test]
    fn opens_for_its_own_state_until_it_is_too_late_and_unchanged() {
        let key = StorageKey::from_bytes([1; 32]);
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let sealed = way_back(now + VALID_FOR).seal(&key);
        let open = |cookie: &str, state: &str, now| WayBack::open(&key, cookie, state, now);

        let opened = open(&sealed, "state", now + VALID_FOR - Duration::from_secs(1)).unwrap();
        assert_eq!((opened.nonce.as_str(), opened.verifier.as_str()), ("nonce", "verifier"));
        assert_eq!(opened.return_to, "/devices");
        assert!(open(&sealed, "state", now + VALID_FOR).is_none(), "it took too long");
        assert!(open(&sealed, "another", now).is_none());
        assert!(WayBack::open(&StorageKey::from_bytes([2; 32]), &sealed, "state", now).is_none());

        for position in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
            assert!(open(std::str::from_utf8(&changed).unwrap(), "state", now).is_none(), "at {position}");
        }
        assert!(open("", "state", now).is_none() && open("state", "state", now).is_none());
    }

    #[test]
    fn another_secret_of_the_same_key_is_no_way_back() {
        let key = StorageKey::from_bytes([1; 32]);
        let now = OffsetDateTime::UNIX_EPOCH;
        let plain = serde_json::to_vec(&way_back(now + VALID_FOR)).unwrap();
        let other = BASE64URL_NOPAD.encode(&key.seal("webhook", &plain));
        assert!(WayBack::open(&key, &other, "state", now).is_none());
    }

    #[test]
    fn fits_a_cookie() {
        let longest = WayBack {
            state: "s".repeat(64),
            nonce: "n".repeat(64),
            verifier: "v".repeat(128),
            return_to: "/".repeat(super::super::login::RETURN_TO_BYTES_MAX),
            expires_at: OffsetDateTime::UNIX_EPOCH,
        };
        assert!(COOKIE.len() + longest.seal(&StorageKey::from_bytes([1; 32])).len() < 3_000);
    }
}
