use super::section::section;

const NODE_MAX: u32 = 4;
const TENANT_MAX: u32 = 1;
const TENANT_PER_HOUR_MAX: u32 = 60;
const SECONDS_MAX: u32 = 10;
const MBIT_PER_SECOND_MAX: u32 = 500;
const MEGABYTES_MAX: u32 = 1_000;
const KEEP_DAYS: u32 = 90;

section! {
    /// Tests of how fast the ways to devices are. Each direction is a test. One device has one at a time.
    pub struct LinkTest in "link_test" {
        /// Whether there are any.
        enabled: bool = true;
        /// Tests at the same time on this node. Each may take 10 MB of memory.
        node_max: u32 = NODE_MAX, in 1..=1_000;
        /// Of those, of one tenant.
        tenant_max: u32 = TENANT_MAX, in 1..=1_000;
        /// Tests of one tenant that begin within an hour, on all nodes.
        tenant_per_hour_max: u32 = TENANT_PER_HOUR_MAX, in 1..=100_000;
        /// How long a test may take. An upload is cut 3 seconds later.
        seconds_max: u32 = SECONDS_MAX, in 1..=10;
        /// Megabit a second of one test: faster it does not get.
        mbit_per_second_max: u32 = MBIT_PER_SECOND_MAX, in 1..=100_000;
        /// Megabytes of one test, which ends there.
        megabytes_max: u32 = MEGABYTES_MAX, in 1..=100_000;
        /// How long results are kept.
        keep_days: u32 = KEEP_DAYS, in 1..=3_650;
    }
}
