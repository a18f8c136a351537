use super::section::section;
use super::value::Seconds;

const NOTICE: Seconds = Seconds(3);
const DRAIN: Seconds = Seconds(60);
const SOFT: Seconds = Seconds(20);
const HARD: Seconds = Seconds(5);

section! {
    /// How the node stops on SIGTERM or SIGINT. The service manager must allow for the sum of `drain_seconds`, `soft_seconds` and
    /// `hard_seconds`, and for `postgres.stop_timeout_seconds`.
    pub struct Shutdown in "shutdown" {
        /// How long `/readyz` says that nobody new is wanted before nobody is taken: a load balancer has to have asked, as often
        /// as it needs to believe it.
        notice_seconds: Seconds = NOTICE, in 0..=60;
        /// How long devices may take to connect to other nodes, which they do first, one after another. Over as soon as the last
        /// one has; 0, or without other nodes: they are told to come back later. A second signal ends this stage.
        drain_seconds: Seconds = DRAIN, in 0..=3_600;
        /// How long what is under way may take to end by itself. A second signal ends this stage.
        soft_seconds: Seconds = SOFT, in 0..=600;
        /// How long the rest may take to be cut.
        hard_seconds: Seconds = HARD, in 1..=60;
    }
}
