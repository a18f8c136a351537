//! The keys of the epoch data format (wire page §5.4): each epoch's key follows from the one before, and never back.

use aws_lc_rs::aead::{LessSafeKey, NONCE_LEN};
use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use super::cipher::Cipher;

/// Epochs ahead of the current one that are accepted, as in 2.7.
pub const FUTURE_EPOCHS: u16 = 4;
/// The last epoch that is used at all.
pub(super) const EPOCH_MAX: u16 = u16::MAX - FUTURE_EPOCHS - 1;
/// A sender that got here asks for a new key (`ssl.c: should_trigger_renegotiation`).
pub(super) const EPOCH_RENEGOTIATE: u16 = 0xf000;
/// The counter has 48 bits.
pub(super) const COUNTER_MAX: u64 = (1 << 48) - 1;

/// Where one direction's key chain stands.
#[derive(Clone)]
pub(super) struct EpochSecret {
    cipher: Cipher,
    epoch: u16,
    secret: Zeroizing<[u8; 32]>,
}

/// What encrypts the packets of one epoch.
pub(super) struct EpochKey {
    pub(super) epoch: u16,
    pub(super) key: LessSafeKey,
    iv: [u8; NONCE_LEN],
}

impl EpochSecret {
    /// The first epoch, from a cipher slot.
    pub(super) fn first(cipher: Cipher, slot: &[u8]) -> Self {
        let secret = *slot.first_chunk().expect("a cipher slot has 64 bytes");
        Self { cipher, epoch: 1, secret: Zeroizing::new(secret) }
    }

    pub(super) const fn epoch(&self) -> u16 {
        self.epoch
    }

    /// The epoch after this one, unless this is the last.
    pub(super) fn next(&self) -> Option<Self> {
        if self.epoch >= EPOCH_MAX {
            return None;
        }
        let mut secret = Zeroizing::new([0; 32]);
        self.expand(b"datakey upd", secret.as_mut_slice());
        Some(Self { cipher: self.cipher, epoch: self.epoch + 1, secret })
    }

    pub(super) fn key(&self) -> EpochKey {
        let mut key = Zeroizing::new(vec![0; self.cipher.key_bytes()]);
        self.expand(b"data_key", &mut key);
        let mut iv = [0; NONCE_LEN];
        self.expand(b"data_iv", &mut iv);
        EpochKey { epoch: self.epoch, key: self.cipher.key(&key), iv }
    }

    fn expand(&self, label: &[u8], out: &mut [u8]) {
        let length = u16::try_from(out.len()).expect("keys are short").to_be_bytes();
        let label_length = [u8::try_from(PREFIX.len() + label.len()).expect("labels are short")];
        hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, self.secret.as_slice())
            .expand(&[&length, &label_length, PREFIX, label, &[0]], OutputBytes(out.len()))
            .and_then(|expanded| expanded.fill(out))
            .expect("far below HKDF's longest output");
    }
}

const PREFIX: &[u8] = b"ovpn ";

impl EpochKey {
    /// The nonce of a packet, from its 8 bytes of epoch and counter.
    pub(super) fn nonce(&self, packet_id: [u8; 8]) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, over) in nonce.iter_mut().zip(packet_id) {
            *byte ^= over;
        }
        nonce
    }
}

impl std::fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EpochKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for EpochSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EpochSecret").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn the_chain_equals_appendix_a() {
        let slot: Vec<u8> = (128..192).collect();
        let first = EpochSecret::first(Cipher::Aes256Gcm, &slot);
        let mut key = [0; 32];
        first.expand(b"data_key", &mut key);
        assert_eq!(HEXLOWER.encode(&key), "8ae19b0628b1b54235ff66ade5f84cd12705df61a91fc1dad99f9556bd76adc5");
        assert_eq!(HEXLOWER.encode(&first.key().iv), "43800676e2d157ed47e4b116");
        let second = first.next().unwrap();
        assert_eq!(
            HEXLOWER.encode(second.secret.as_slice()),
            "1541028717ce58a2f883e974bd96ce6794e071dc9cfa953df615cfb4a134f433"
        );
        assert_eq!(second.epoch(), 2);
    }

    #[test]
    fn the_chain_ends_before_the_numbers_do() {
        let mut secret = EpochSecret::first(Cipher::Aes128Gcm, &[7; 64]);
        secret.epoch = EPOCH_MAX - 1;
        assert_eq!(secret.next().unwrap().epoch(), EPOCH_MAX);
        assert!(secret.next().unwrap().next().is_none());
    }
}
