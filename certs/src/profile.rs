//! How long each kind of certificate lives, and what its serial looks like.

use std::fmt;

use time::{Duration, OffsetDateTime, UtcOffset};

/// The fleet root. Replacing it touches every device, so it lives long.
pub const AUTHORITY_LIFETIME: Duration = Duration::days(20 * 365);
/// A device that is switched off for longer has to be enrolled again.
pub const DEVICE_LIFETIME: Duration = Duration::days(90);
/// A server certificate; the server renews its own.
pub const SERVER_LIFETIME: Duration = Duration::days(90);
/// A certificate for statements; the server renews its own. What was signed in this time stays valid for as long as it is kept.
pub const STATEMENT_LIFETIME: Duration = Duration::days(365);
/// A node's, for other nodes; it makes its own anew at each start and before the end.
pub const NODE_LIFETIME: Duration = Duration::days(30);
/// How far `not_before` lies in the past, so that a peer whose clock is a little slow takes a new certificate at once.
pub const BACKDATE: Duration = Duration::minutes(5);

/// When a certificate is valid: whole seconds, UTC, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// From one moment to another; parts of a second are cut off, because certificates cannot express them.
    pub fn new(not_before: OffsetDateTime, not_after: OffsetDateTime) -> Result<Self, ValidityError> {
        let not_before = to_certificate_time(not_before).ok_or(ValidityError::OutOfRange)?;
        let not_after = to_certificate_time(not_after).ok_or(ValidityError::OutOfRange)?;
        if not_before >= not_after {
            return Err(ValidityError::Empty);
        }
        Ok(Self { not_before, not_after })
    }

    /// What every certificate of ours gets: valid for `lifetime` from `now` on, and [`BACKDATE`] before it.
    pub fn starting_at(now: OffsetDateTime, lifetime: Duration) -> Result<Self, ValidityError> {
        let not_before = now.checked_sub(BACKDATE).ok_or(ValidityError::OutOfRange)?;
        let not_after = now.checked_add(lifetime).ok_or(ValidityError::OutOfRange)?;
        Self::new(not_before, not_after)
    }

    #[must_use]
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Whether `at` lies within.
    #[must_use]
    pub fn contains(&self, at: OffsetDateTime) -> bool {
        self.not_before <= at && at <= self.not_after
    }
}

/// Why there is no such [`Validity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidityError {
    #[error("the validity ends before it begins")]
    Empty,
    #[error("certificates can only express the years 1970 to 9999")]
    OutOfRange,
}

/// A certificate's serial number: 16 bytes, most of them random (RFC 5280 4.1.2.2 allows 20 and wants it positive).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial([u8; Self::LEN]);

impl Serial {
    /// Bytes in a serial.
    pub const LEN: usize = 16;

    /// Makes a serial out of random bytes. The two highest bits are fixed, so that the number is positive and its
    /// encoding always has [`Self::LEN`] bytes; 126 random bits remain.
    #[must_use]
    pub fn from_random(mut random: [u8; Self::LEN]) -> Self {
        random[0] = random[0] & 0x3f | 0x40;
        Self(random)
    }

    /// Big-endian, as [`crate::DeviceCertificate`] gives it back.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// UTC and whole seconds; `None` for years that the encoder or a verifier could not handle.
pub(crate) fn to_certificate_time(at: OffsetDateTime) -> Option<OffsetDateTime> {
    let at = at.checked_to_offset(UtcOffset::UTC)?;
    let at = at.replace_nanosecond(0).ok()?;
    (1970..=9999).contains(&at.year()).then_some(at)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn validity_is_in_whole_utc_seconds() {
        let validity = Validity::new(datetime!(2049-12-31 23:30:00.75 -1), datetime!(2050-06-01 00:00 +2)).unwrap();
        assert_eq!(validity.not_before(), datetime!(2050-01-01 00:30 UTC));
        assert_eq!(validity.not_before().offset(), UtcOffset::UTC);
        assert_eq!(validity.not_after(), datetime!(2050-05-31 22:00 UTC));
    }

    #[test]
    fn validity_refuses_what_certificates_cannot_express() {
        let now = datetime!(2026-01-01 00:00 UTC);
        assert_eq!(Validity::new(now, now), Err(ValidityError::Empty));
        assert_eq!(Validity::new(datetime!(1969-12-31 23:59 UTC), now), Err(ValidityError::OutOfRange));
        assert_eq!(Validity::starting_at(now, Duration::MAX), Err(ValidityError::OutOfRange));
    }

    #[test]
    fn both_ends_of_a_validity_are_inside() {
        let validity = Validity::new(datetime!(2026-01-01 00:00 UTC), datetime!(2026-01-02 00:00 UTC)).unwrap();
        assert!(validity.contains(datetime!(2026-01-01 00:00 UTC)));
        assert!(validity.contains(datetime!(2026-01-02 00:00 UTC)));
        assert!(!validity.contains(datetime!(2026-01-02 00:00:01 UTC)));
        assert!(!validity.contains(datetime!(2025-12-31 23:59:59 UTC)));
    }

    #[test]
    fn serials_are_positive_and_of_one_length() {
        for random in [[0x00; 16], [0xff; 16]] {
            let first = Serial::from_random(random).as_bytes()[0];
            assert!((0x40..0x80).contains(&first), "{first:#x}");
        }
    }
}
