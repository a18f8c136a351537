//! Typed identifiers. Append-only: a kind, once here, keeps its name.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The identifier with this value.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The value, for a database or a wire.
            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }

            /// Reads the 16 bytes that the link protocol carries; `None` for any other length.
            #[must_use]
            pub fn from_wire(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }

            /// The 16 bytes that the link protocol carries.
            #[must_use]
            pub fn to_wire(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(self.0.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }
    )+};
}

id! {
    /// A customer.
    TenantId,
    /// A gateway.
    DeviceId,
    /// Somebody, or a robot, who calls the API.
    PersonId,
    /// A person's API token (not its secret).
    TokenId,
    /// A token that one device may enroll with (not its secret).
    EnrollmentTokenId,
    /// A tenant's permission.
    GrantId,
    /// One instruction to one device.
    CommandId,
    /// One OpenVPN session of a device.
    TunnelId,
    /// A port of a device that is open for support.
    OpeningId,
    /// A terminal, a port forward or a file copy under a grant.
    SupportSessionId,
    /// One connection of a support session.
    StreamId,
    /// What an operator asks a tenant for.
    AccessRequestId,
    /// What a tenant allows without being asked.
    AccessPolicyId,
    /// A key with which a tenant signs grants.
    SigningKeyId,
    /// Somebody's address for events.
    WebhookId,
    /// One event for one receiver.
    NoticeId,
    /// A selector with a name.
    GroupId,
    /// The same command to many devices.
    RolloutId,
    /// A rule over what devices measure.
    ThresholdId,
}
