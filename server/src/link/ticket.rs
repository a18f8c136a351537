//! Session tickets of the device port: stateless, and good on every node. The keys come from the database, where they lie
//! encrypted; each is used for a period and accepted for one more.
//!
//! What a ticket says was true for one root of the fleet and one trust domain. The keys are derived for these: under another
//! root, or in another domain, no ticket of before can be read, and everything is proven anew.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use cloudlink_certs::TrustDomain;
use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::storage_key::StorageKey;
use crate::store::ticket::{SealedKey, TicketKeys, ticket_key_add, ticket_keys};
use crate::store::{Store, StoreError};

const INFO: &[u8] = b"cloudlink/ticket/v1";
const SECRET_BYTES: usize = 32;
/// Before a ticket, which begins with the number of its key.
const NUMBER_BYTES: usize = 8;
/// A ticket that is longer is none of ours: two certificates and what TLS needs take a third of it.
const TICKET_BYTES_MAX: usize = 16 * 1024;

/// Makes tickets, and reads them.
pub struct Tickets {
    storage: Arc<StorageKey>,
    /// What the keys are derived for.
    context: [u8; digest::SHA256_OUTPUT_LEN],
    period_seconds: u32,
    keys: ArcSwap<Keys>,
}

/// As the database told them.
struct Keys {
    /// The period that it was at that time, ...
    number: i64,
    /// ... and how far in.
    into_period: Duration,
    at: Instant,
    known: Vec<(i64, LessSafeKey)>,
}

impl Tickets {
    /// Without a key, and so without tickets, until they are refreshed. `resumption`: how long a session may be resumed at
    /// most. `None`: never.
    #[must_use]
    pub fn new(
        storage: Arc<StorageKey>,
        root: &CertificateDer<'_>,
        trust_domain: &TrustDomain,
        resumption: Duration,
    ) -> Option<Arc<Self>> {
        let period_seconds = u32::try_from(resumption.as_secs() / 2).unwrap_or(u32::MAX).max(1);
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(digest::digest(&digest::SHA256, root).as_ref());
        context.update(trust_domain.to_string().as_bytes());
        let context = context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        let keys = Keys { number: 0, into_period: Duration::ZERO, at: Instant::now(), known: Vec::new() };
        let keys = ArcSwap::from_pointee(keys);
        (!resumption.is_zero()).then(|| Arc::new(Self { storage, context, period_seconds, keys }))
    }

    /// How often the keys are to be read again: the next period's are known long before it begins.
    pub(crate) fn refresh_every(&self) -> Duration {
        Duration::from_secs(self.period_seconds.into()) / 4
    }

    /// Reads the keys of all nodes, and adds what is lacking.
    pub(crate) async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let period_seconds = i32::try_from(self.period_seconds).unwrap_or(i32::MAX);
        let read = async {
            let mut connection = store.take().await?;
            let mut at = Instant::now();
            let mut there = ticket_keys(&mut connection, period_seconds).await?;
            if self.lacking(&there).count() > 0 {
                for number in self.lacking(&there) {
                    ticket_key_add(&mut connection, period_seconds, &self.new_key(number)).await?;
                }
                at = Instant::now();
                there = ticket_keys(&mut connection, period_seconds).await?;
            }
            connection.finish().await?;
            Ok((at, there))
        };
        let (at, there) = store.within(read).await?;
        self.take(at, &there);
        Ok(())
    }

    /// The periods, the one that is and the next, that have no key yet.
    fn lacking<'a>(&self, there: &'a TicketKeys) -> impl Iterator<Item = i64> + use<'a> {
        let (number, _) = self.period_at(there.now);
        [number, number + 1].into_iter().filter(|number| there.keys.iter().all(|key| key.number != *number))
    }

    fn new_key(&self, number: i64) -> SealedKey {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        fill_random(secret.as_mut());
        SealedKey { number, sealed: self.storage.seal(&self.purpose(number), secret.as_ref()) }
    }

    fn take(&self, at: Instant, there: &TicketKeys) {
        let (number, into_period) = self.period_at(there.now);
        let known = there.keys.iter().filter_map(|key| Some((key.number, self.open(key)?))).collect();
        self.keys.store(Arc::new(Keys { number, into_period, at, known }));
    }

    fn open(&self, key: &SealedKey) -> Option<LessSafeKey> {
        let opened = self.storage.open(&self.purpose(key.number), &key.sealed);
        match opened {
            Ok(secret) => Some(self.derive(&secret)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot read a key of session tickets: every handshake of devices is a full one");
                None
            }
        }
    }

    fn derive(&self, secret: &[u8]) -> LessSafeKey {
        let mut key = Zeroizing::new([0; SECRET_BYTES]);
        Salt::none(HKDF_SHA256)
            .extract(secret)
            .expand(&[INFO, &self.context], HKDF_SHA256)
            .and_then(|okm| okm.fill(key.as_mut()))
            .expect("32 bytes are one block of SHA-256");
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).expect("a key of AES-256 has 32 bytes"))
    }

    fn purpose(&self, number: i64) -> String {
        format!("ticket key {} {number}", self.period_seconds)
    }

    /// The period at this time of the database, and how far in it is.
    fn period_at(&self, seconds: f64) -> (i64, Duration) {
        let period = f64::from(self.period_seconds);
        let number = (seconds / period).floor();
        #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
        let number_whole = number as i64;
        (number_whole, Duration::from_secs_f64((seconds - number * period).clamp(0.0, period)))
    }

    fn encrypt_at(&self, now: Instant, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        let number = keys.number_at(now, self.period_seconds);
        let key = keys.find(number)?;
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce);
        let mut body = plain.to_vec();
        let number = number.to_be_bytes();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(number), &mut body).ok()?;
        Some([&number[..], &nonce, &body].concat())
    }

    fn decrypt_at(&self, now: Instant, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (number, rest) = ticket.split_first_chunk::<NUMBER_BYTES>()?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys.load();
        let made_in = i64::from_be_bytes(*number);
        let current = keys.number_at(now, self.period_seconds);
        // Another node may be a moment ahead.
        if !(current - 1..=current + 1).contains(&made_in) {
            return None;
        }
        let mut plain = body.to_vec();
        let key = keys.find(made_in)?;
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(*number), &mut plain).ok()?;
        let length = opened.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl Keys {
    fn number_at(&self, now: Instant, period_seconds: u32) -> i64 {
        let periods = (self.into_period + now.duration_since(self.at)).as_secs() / u64::from(period_seconds);
        self.number.saturating_add(i64::try_from(periods).unwrap_or(i64::MAX))
    }

    fn find(&self, number: i64) -> Option<&LessSafeKey> {
        self.known.iter().find(|(of, _)| *of == number).map(|(_, key)| key)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// For which any ticket is good.
    fn lifetime(&self) -> u32 {
        self.period_seconds
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(Instant::now(), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(Instant::now(), cipher)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("period_seconds", &self.period_seconds).finish_non_exhaustive()
    }
}

fn fill_random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source has no way to fail once it is seeded");
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESUMPTION: Duration = Duration::from_secs(2_000);
    const PERIOD: Duration = Duration::from_secs(1_000);
    /// 200 s into period 7.
    const NOW: f64 = 7_200.0;

    fn tickets(storage: u8, root: &[u8], trust_domain: &str) -> Arc<Tickets> {
        let storage = Arc::new(StorageKey::from_bytes([storage; 32]));
        let root = CertificateDer::from_slice(root);
        Tickets::new(storage, &root, &trust_domain.parse().unwrap(), RESUMPTION).unwrap()
    }

    /// What is in the database.
    fn keys(tickets: &Tickets) -> TicketKeys {
        TicketKeys { now: NOW, keys: (6..=8).map(|number| tickets.new_key(number)).collect() }
    }

    #[test]
    fn nodes_with_the_same_keys_read_one_anothers_tickets() {
        let (one, other) = (tickets(1, b"root", "fleet.test"), tickets(1, b"root", "fleet.test"));
        let (there, at) = (keys(&one), Instant::now());
        one.take(at, &there);
        other.take(at, &there);
        let ticket = one.encrypt_at(at, b"session").unwrap();
        assert_ne!(ticket, one.encrypt_at(at, b"session").unwrap(), "no two are the same");
        assert!(!ticket.windows(7).any(|part| part == b"session"));
        assert_eq!(other.decrypt_at(at, &ticket).unwrap(), b"session");
        assert_eq!(one.lifetime(), 1_000);
    }

    #[test]
    fn a_ticket_of_another_root_trust_domain_or_fleet_is_none() {
        let one = tickets(1, b"root", "fleet.test");
        let (there, at) = (keys(&one), Instant::now());
        one.take(at, &there);
        let ticket = one.encrypt_at(at, b"session").unwrap();
        for other in [tickets(1, b"toor", "fleet.test"), tickets(1, b"root", "other.test")] {
            other.take(at, &there);
            assert!(other.encrypt_at(at, b"session").is_some(), "it has keys");
            assert_eq!(other.decrypt_at(at, &ticket), None);
        }
        // Without the storage key there are no tickets at all.
        let other = tickets(2, b"root", "fleet.test");
        other.take(at, &there);
        assert_eq!(other.encrypt_at(at, b"session"), None);
        assert_eq!(other.decrypt_at(at, &ticket), None);
    }

    #[test]
    fn a_ticket_is_good_for_its_period_and_the_next() {
        let tickets = tickets(1, b"root", "fleet.test");
        let (there, at) = (keys(&tickets), Instant::now());
        tickets.take(at, &there);
        let ticket = tickets.encrypt_at(at, b"session").unwrap();
        let end = at + Duration::from_secs(800);
        let next = tickets.encrypt_at(end, b"session").unwrap();
        assert_eq!((&ticket[..8], &next[..8]), (&7_i64.to_be_bytes()[..], &8_i64.to_be_bytes()[..]));
        let last = end + PERIOD - Duration::from_millis(1);
        assert!(tickets.decrypt_at(last, &ticket).is_some());
        assert_eq!(tickets.decrypt_at(last + Duration::from_millis(1), &ticket), None);
        // The keys were not read again for so long that none is left.
        assert_eq!(tickets.encrypt_at(end + PERIOD, b"session"), None);
        assert!(tickets.decrypt_at(end + PERIOD, &next).is_some());
        assert_eq!(tickets.decrypt_at(end + 2 * PERIOD, &next), None);
    }

    #[test]
    fn what_was_changed_or_cut_is_no_ticket() {
        let tickets = tickets(1, b"root", "fleet.test");
        let (there, at) = (keys(&tickets), Instant::now());
        tickets.take(at, &there);
        let ticket = tickets.encrypt_at(at, b"session").unwrap();
        for index in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[index] ^= 1;
            assert_eq!(tickets.decrypt_at(at, &changed), None, "byte {index}");
            assert_eq!(tickets.decrypt_at(at, &ticket[..index]), None, "{index} bytes");
        }
        assert_eq!(tickets.decrypt_at(at, &vec![0; TICKET_BYTES_MAX + 1]), None);
    }

    #[test]
    fn without_keys_there_are_no_tickets() {
        let tickets = tickets(1, b"root", "fleet.test");
        assert_eq!(tickets.encrypt(b"session"), None);
        assert_eq!(tickets.decrypt(&[0; 64]), None);
        assert_eq!(tickets.lacking(&TicketKeys { now: NOW, keys: Vec::new() }).collect::<Vec<_>>(), [7, 8]);
        let storage = Arc::new(StorageKey::from_bytes([1; 32]));
        let root = CertificateDer::from_slice(b"root");
        assert!(Tickets::new(storage, &root, &"fleet.test".parse().unwrap(), Duration::ZERO).is_none());
    }
}
