use super::section::section;
use super::value::Seconds;

const CPU_SHARE_PERCENT: u32 = 50;
const WAITING_MAX: u32 = 1_024;
const WAIT: Seconds = Seconds(10);
const REGISTRATIONS_MAX: u32 = 512;
const RETRY_AFTER: Seconds = Seconds(5);

section! {
    /// How fast new connections are let in on the device port when many come at once. Connections that are there already
    /// are never slowed.
    pub struct Admission in "admission" {
        /// How much of the machine's processor time new connections may take. With what one of them costs, which the node
        /// measures, this gives how many a second are let in.
        cpu_share_percent: u32 = CPU_SHARE_PERCENT, in 1..=100;
        /// So many new connections a second instead, whatever they cost.
        handshakes_per_second: Option<u32> = None, in 1..=1_000_000;
        /// The most connections that wait for their handshake. Beyond it, the tenant with most of them waiting gives way,
        /// and whoever gives way is closed at once. Below `device.unauthenticated_max`, which counts them, too.
        waiting_max: u32 = WAITING_MAX, in 1..=100_000;
        /// How long a connection waits at most for its handshake. One that would have to wait for longer is closed at once.
        wait_seconds: Seconds = WAIT, in 1..=45;
        /// The most devices whose certificate is known and whose link the database is asked about, at the same time. Beyond
        /// half of it each tenant has its part. Who is too many is told when to come back.
        registrations_max: u32 = REGISTRATIONS_MAX, in 1..=100_000;
        /// When those are to come back.
        retry_after_seconds: Seconds = RETRY_AFTER, in 1..=300;
    }
}
