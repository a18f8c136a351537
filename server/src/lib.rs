//! cloudlinkd: the server that devices dial.
//!
//! Directions: `http`, `link` and `tasks` use `store`, `store` uses `model`, `model` uses `proto`. Only `store` names sqlx.
//! [`bus`] carries hints between them and never a fact: the database is the truth.

mod admission;
pub mod app;
mod batch;
pub mod bus;
pub mod clock;
mod cluster;
pub mod config;
pub mod drain;
pub mod file;
pub mod http;
pub mod http_server;
pub mod isolation;
pub mod lifecycle;
pub mod link;
pub mod metrics;
pub mod model;
pub mod notice;
pub mod operations;
pub mod people;
pub mod pki;
pub mod port;
pub mod postgres;
pub mod privilege;
#[cfg(test)]
mod property;
pub mod proxy;
pub mod recording;
mod sampler;
pub mod secret;
pub mod sign_in;
#[cfg(test)]
mod simulation;
pub mod storage_key;
pub mod store;
pub mod support;
pub mod tasks;
pub mod telemetry;
mod trace;
pub mod tunnel;
mod websocket;
