//! A cluster that is hurt while it works: thousands of simulated devices over both transports, commands at a steady rate under
//! grants that end and are taken back, and harms that follow from a seed.
//!
//! Everybody writes down what they saw ([`crate::history`]); [`crate::check`] judges it afterwards. [`device`] and [`swarm`] run in
//! processes of their own, [`plan`] draws the harms, [`harm`] does them, [`work`] asks for commands, [`watch`] looks at the
//! database, and [`mod@run`] brings all of it together.

pub mod device;
pub mod harm;
pub mod ledger;
pub mod plan;
pub mod run;
pub mod swarm;
pub mod watch;
pub mod work;
