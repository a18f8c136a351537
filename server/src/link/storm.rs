//! What a storm would come to, by what this node has measured.

use std::time::Duration;

use super::Links;
use crate::admission::cost::Kind;
use crate::admission::plan::{Storm, play};
use crate::model::storm_plan::{Bottleneck, StormCosts, StormPlan};

/// A plan is the same for the same question, as long as costs are.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

impl Links {
    /// So many devices come back to so many nodes like this one. Takes a processor for up to a few seconds. `None`: that is over too
    /// late to be foreseen.
    pub(crate) fn plan_storm(&self, devices: u32, nodes: u32) -> Option<StormPlan> {
        let admission = &self.0.admission;
        let nodes = nodes.max(1);
        let costs = self.storm_costs();
        let of_node = devices.div_ceil(nodes);
        let (mut rate, mut bottleneck) =
            (admission.rate(), if admission.is_fixed() { Bottleneck::FixedRate } else { Bottleneck::Processor });
        // All nodes share it.
        if let Some(database_ms) = costs.database_ms.filter(|ms| *ms > 0.0) {
            let share = 1_000.0 / database_ms / f64::from(nodes);
            if share < rate {
                (rate, bottleneck) = (share, Bottleneck::Database);
            }
        }
        if of_node > self.0.device.links_max {
            bottleneck = Bottleneck::Links;
        }
        let storm = Storm { devices: of_node, rate, limits: admission.limits() };
        if storm.is_endless() {
            return None;
        }
        let forecast = play(&storm, SEED);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let attempts = forecast.attempts as f64;
        Some(StormPlan {
            devices,
            nodes,
            per_node_per_second: rate,
            bottleneck,
            half_back_seconds: forecast.half.as_secs_f64(),
            nine_tenths_back_seconds: forecast.nine_tenths.as_secs_f64(),
            most_back_seconds: forecast.most.as_secs_f64(),
            all_back_seconds: forecast.all.as_secs_f64(),
            attempts_per_device: attempts / f64::from(of_node.max(1)),
            cpu_seconds_per_node: f64::from(of_node) * costs.connection_cpu_ms / 1_000.0,
            costs,
        })
    }

    fn storm_costs(&self) -> StormCosts {
        let costs = self.0.admission.costs();
        let of = |kind| costs.per_connection_of(kind).map(ms);
        let (standings, hellos) = (self.0.standings.tallied(), self.0.hellos.tallied());
        // The two are asked beside each other: the slower one counts.
        let database = standings.crowded.max(hellos.crowded);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let statements_per_link = (standings.statements + hellos.statements) as f64 / hellos.questions.max(1) as f64;
        StormCosts {
            connections_measured: costs.connections(),
            connection_cpu_ms: ms(costs.per_connection()),
            full_cpu_ms: of(Kind::Full),
            resumed_cpu_ms: of(Kind::Resumed),
            openvpn_cpu_ms: of(Kind::OpenVpn),
            overhead: costs.overhead(),
            database_ms: database.map(ms),
            statements_per_link,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
