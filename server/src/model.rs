//! What the server knows about, without storage or transport. These types are also the shapes of the API: what is serialised
//! here is what callers see.

pub mod access_policy;
pub mod access_request;
pub mod api_scope;
pub mod audit;
pub mod boot;
pub mod busy_lock;
pub mod command;
pub mod configuration;
pub mod device;
pub mod drop;
pub mod enrollment_token;
pub mod grant;
pub mod group;
pub mod isolation_statement;
pub mod link_test;
pub mod network;
pub mod node;
pub mod notice;
pub mod opening;
pub mod openvpn_profile;
pub mod person;
pub mod proof;
pub mod recording;
pub mod rollout;
pub mod sample;
pub mod selector;
pub mod signing_key;
pub mod status;
pub mod storm_plan;
pub mod support_session;
pub mod tenant;
pub mod threshold;
pub mod token;
pub mod transport_failure;
pub mod webhook;

use uuid::Uuid;

/// A new identifier. They grow with time, so that a table's index grows at its end; nothing reads a time out of them.
#[must_use]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}
