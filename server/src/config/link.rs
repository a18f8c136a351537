use super::section::section;
use super::value::Seconds;

const PING_INTERVAL: Seconds = Seconds(25);
const MAX_MISSED_PINGS: u32 = 3;
const METRICS_INTERVAL: Seconds = Seconds(60);
const HELLO_TIMEOUT: Seconds = Seconds(10);
const SEND_QUEUE_MAX: u32 = 64;
const RECONNECT_SPREAD: Seconds = Seconds(60);
const RECONCILE_INTERVAL: Seconds = Seconds(5);

section! {
    /// Links of devices.
    pub struct Link in "link" {
        /// A side that has sent nothing for this long sends a ping. Below 30 s, after which many networks forget an idle
        /// connection.
        ping_interval_seconds: Seconds = PING_INTERVAL, in 1..=300;
        /// A link on which nothing came for this many ping intervals is dead. Presence is wrong for no longer than that.
        max_missed_pings: u32 = MAX_MISSED_PINGS, in 1..=10;
        /// How often a device reports its metrics; 0: never.
        metrics_interval_seconds: Seconds = METRICS_INTERVAL, in 0..=86_400;
        /// From the opening of the WebSocket to the device's first message.
        hello_timeout_seconds: Seconds = HELLO_TIMEOUT, in 1..=300;
        /// The most messages that wait to be sent to one device. A device that does not read them is cut.
        send_queue_max: u32 = SEND_QUEUE_MAX, in 8..=1_024;
        /// When the node stops, its devices come back spread over this time, so that they do not all come at once.
        reconnect_spread_seconds: Seconds = RECONNECT_SPREAD, in 1..=3_600;
        /// How often the database is asked for what hints may have missed: due commands, deadlines, revocations.
        reconcile_interval_seconds: Seconds = RECONCILE_INTERVAL, in 1..=60;
    }
}
