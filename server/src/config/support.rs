use std::path::PathBuf;

use super::section::section;
use super::value::{Seconds, Warnings};

const SESSIONS_MAX: u32 = 1_000;
const SESSIONS_PER_DEVICE_MAX: u32 = 16;
const OPEN_WITHIN: Seconds = Seconds(15);
const IDLE_TIMEOUT: Seconds = Seconds(900);
const RECORDING_LAG: Seconds = Seconds(5);
const WARN_BEFORE: [u32; 2] = [600, 120];

section! {
    /// Support sessions: terminals, port forwards and file copies, and their recordings.
    pub struct Support in "support" {
        /// The most sessions that this node serves at once. Bounds memory: at most 700 kB for each of their connections.
        sessions_max: u32 = SESSIONS_MAX, in 1..=100_000;
        /// The most sessions of one device at once.
        sessions_per_device_max: u32 = SESSIONS_PER_DEVICE_MAX, in 1..=1_000;
        /// How long a device may take to open a stream that it is asked for.
        open_timeout_seconds: Seconds = OPEN_WITHIN, in 1..=120;
        /// A session in which no byte moved for this long is closed.
        idle_timeout_seconds: Seconds = IDLE_TIMEOUT, in 10..=86_400;
        /// A session whose recording cannot be written for this long is closed: what is not recorded does not happen.
        recording_lag_seconds: Seconds = RECORDING_LAG, in 1..=60;
        /// How long before the end of access both sides are told that it comes, the longest time first.
        warn_before_seconds: Warnings = warn_before();
        /// The key that recordings, and secrets of webhooks, are encrypted with: 32 bytes in hex, as `openssl rand -hex 32` makes
        /// them; further lines are keys of before, to read with. By default `pki/storage.key` under `data_dir`, made at the first
        /// start. All nodes need the same; without it recordings cannot be read again.
        storage_key: Option<PathBuf> = None;
    }
}

fn warn_before() -> Warnings {
    Warnings::new(WARN_BEFORE).expect("two times that fall, and within the bounds")
}
