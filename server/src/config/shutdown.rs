use super::section::section;
use super::value::Seconds;

const SOFT: Seconds = Seconds(20);
const HARD: Seconds = Seconds(5);

section! {
    /// How the node stops on SIGTERM or SIGINT. The service manager must allow for the sum of both, and for
    /// `postgres.stop_timeout_seconds`.
    pub struct Shutdown in "shutdown" {
        /// How long what is under way may take to end by itself. A second signal ends this stage.
        soft_seconds: Seconds = SOFT, in 0..=600;
        /// How long the rest may take to be cut.
        hard_seconds: Seconds = HARD, in 1..=60;
    }
}
