//! Version 1: one file an endpoint. Each has its errors with the problems that they are told as, a short handler, and its
//! tests. A new one needs a line here and its line in the table of `router`.

pub(super) mod access_policy {
    pub(crate) mod approve;
    pub(crate) mod create;
    pub(crate) mod list;
    pub(crate) mod revoke;
    pub(crate) mod show;
}
pub(super) mod access_request {
    pub(crate) mod approve;
    pub(crate) mod create;
    pub(crate) mod deny;
    pub(crate) mod list;
    pub(super) mod record;
    pub(crate) mod show;
    pub(crate) mod withdraw;
}
pub(super) mod audit {
    pub(crate) mod export;
    pub(crate) mod list;
}
pub(super) mod auth {
    pub(crate) mod callback;
    pub(crate) mod config;
    pub(crate) mod login;
    pub(crate) mod logout;
    pub(crate) mod session;
    mod way_back;
}
pub(super) mod command {
    pub(crate) mod cancel;
    pub(crate) mod create;
    pub(crate) mod event;
    pub(crate) mod list;
    pub(crate) mod show;
}
pub(super) mod configuration {
    pub(crate) mod create;
    pub(crate) mod schema;
    pub(crate) mod show;
    #[cfg(test)]
    mod tests;
    pub(crate) mod update;
    mod write;
}
pub(super) mod device {
    pub(crate) mod boot;
    pub(crate) mod drop;
    pub(crate) mod link_test;
    pub(crate) mod list;
    pub(crate) mod metrics;
    pub(crate) mod openvpn_profile;
    pub(crate) mod quarantine;
    pub(crate) mod release;
    pub(crate) mod revoke;
    pub(crate) mod sample;
    pub(crate) mod scrape;
    pub(crate) mod show;
    pub(crate) mod update;
}
pub(super) mod enrollment_token {
    pub(crate) mod create;
    pub(crate) mod list;
}
pub(super) mod event {
    pub(crate) mod stream;
}
pub(super) mod grant {
    pub(crate) mod create;
    pub(crate) mod extend;
    pub(crate) mod list;
    pub(crate) mod receipt;
    pub(crate) mod revoke;
    pub(crate) mod show;
    pub(crate) mod statement;
}
pub(super) mod group {
    pub(crate) mod create;
    pub(crate) mod delete;
    pub(crate) mod list;
    pub(crate) mod show;
    pub(crate) mod update;
}
pub(super) mod isolation_proof {
    pub(crate) mod create;
    pub(crate) mod list;
    pub(crate) mod show;
}
pub(super) mod me {
    pub(crate) mod show;
}
pub(super) mod network {
    pub(crate) mod show;
}
pub(super) mod node {
    pub(crate) mod drain;
    pub(crate) mod list;
    pub(crate) mod resume;
    pub(crate) mod show;
}
pub(super) mod opening {
    pub(crate) mod close;
    pub(crate) mod create;
    pub(crate) mod list;
    pub(crate) mod show;
}
pub(super) mod person {
    pub(crate) mod create;
    pub(crate) mod email;
    pub(crate) mod list;
    pub(crate) mod update;
}
pub(super) mod recording {
    pub(crate) mod content;
    pub(crate) mod list;
    pub(crate) mod show;
}
pub(super) mod rollout {
    pub(crate) mod apply;
    pub(crate) mod change;
    pub(crate) mod execution;
    pub(crate) mod list;
    pub(crate) mod plan;
    pub(crate) mod show;
    #[cfg(test)]
    mod tests;
}
pub(super) mod signing_key {
    pub(crate) mod create;
    pub(crate) mod list;
    pub(crate) mod require;
    pub(crate) mod revoke;
}
pub(super) mod status {
    pub(crate) mod show;
}
pub(super) mod storm_plan {
    pub(crate) mod show;
}
pub(super) mod support_session {
    pub(crate) mod close;
    pub(crate) mod create;
    pub(crate) mod list;
    pub(crate) mod show;
    pub(crate) mod stream;
}
pub(super) mod tenant {
    pub(crate) mod create;
    pub(crate) mod isolation_statement;
    pub(crate) mod list;
    pub(crate) mod show;
    pub(crate) mod update;
}
pub(super) mod threshold {
    pub(crate) mod alert;
    pub(crate) mod create;
    pub(crate) mod delete;
    pub(crate) mod list;
    pub(crate) mod show;
    pub(crate) mod update;
}
pub(super) mod token {
    pub(crate) mod create;
    pub(crate) mod list;
    pub(crate) mod revoke;
}
pub(super) mod transport_report {
    pub(crate) mod show;
}
pub(super) mod webhook {
    pub(crate) mod create;
    pub(crate) mod delivery;
    pub(crate) mod disable;
    pub(crate) mod list;
    pub(crate) mod rotate;
    pub(crate) mod show;
    pub(crate) mod test;
}
