use super::section::section;

const RAW_KEEP_DAYS: u32 = 7;
const FIVE_MINUTES_KEEP_DAYS: u32 = 31;
const HOUR_KEEP_DAYS: u32 = 400;

section! {
    /// What devices measured, over time: each report is a sample.
    pub struct Telemetry in "telemetry" {
        /// Whether samples are kept. When not, there is the last report of each device only; what was kept before ages all the
        /// same.
        enabled: bool = true;
        /// How long samples are kept as they came, in whole days of UTC.
        raw_keep_days: u32 = RAW_KEEP_DAYS, in 1..=366;
        /// How long it is kept what they come to in five minutes: count, least, most and mean.
        five_minutes_keep_days: u32 = FIVE_MINUTES_KEEP_DAYS, in 1..=3_650;
        /// How long it is kept what they come to in an hour.
        hour_keep_days: u32 = HOUR_KEEP_DAYS, in 1..=36_500;
    }
}
