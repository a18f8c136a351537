use super::section::section;
use super::value::Seconds;

const INTERVAL: Seconds = Seconds(900);

section! {
    /// Polls of devices that cannot link.
    pub struct Poll in "poll" {
        /// How often such a device polls, give or take a tenth. What waits for it waits for that long.
        interval_seconds: Seconds = INTERVAL, in 1..=86_400;
    }
}
