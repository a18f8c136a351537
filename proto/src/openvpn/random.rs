//! Random bytes from a caller's seed.

use aws_lc_rs::hmac;
use zeroize::Zeroize;

/// Random bytes for session ids, key exchange and new keys, all from one seed that the caller drew from the system.
///
/// Each draw replaces the state by a one-way function of itself, so what a session holds tells nothing about what it drew.
pub struct Random {
    state: [u8; 32],
}

impl Random {
    /// From 32 bytes that nobody else knows, and that are used for nothing else.
    #[must_use]
    pub const fn from_seed(seed: [u8; 32]) -> Self {
        Self { state: seed }
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.state);
        for (index, block) in (1_u64..).zip(out.chunks_mut(32)) {
            block.copy_from_slice(&hmac::sign(&key, &index.to_be_bytes()).as_ref()[..block.len()]);
        }
        self.state.copy_from_slice(hmac::sign(&key, &0_u64.to_be_bytes()).as_ref());
    }

    /// `N` bytes.
    #[must_use]
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}

impl Drop for Random {
    fn drop(&mut self) {
        self.state.zeroize();
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Random").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_repeat_with_the_seed() {
        let mut random = Random::from_seed([1; 32]);
        let mut again = Random::from_seed([1; 32]);
        let first: [u8; 70] = random.array();
        assert_eq!(first, again.array());
        assert_ne!(first, random.array());
        assert_ne!(first[..32], first[32..64]);
    }
}
