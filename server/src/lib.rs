//! cloudlinkd: the server that devices dial.
//!
//! Directions: `http`, `link` and `tasks` use `store`, `store` uses `model`, `model` uses `proto`. Only `store` names sqlx.
//! [`bus`] carries hints between them and never a fact: the database is the truth.

pub mod bus;
pub mod clock;
pub mod config;
pub mod http;
pub mod lifecycle;
pub mod metrics;
pub mod model;
pub mod secret;
pub mod store;
