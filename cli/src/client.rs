//! The API, typed: one method a route. What is sent and how often is in `transport`.

mod problem;
mod sse;
mod transport;

use std::collections::VecDeque;
use std::fmt::Write as _;

use anyhow::Context;
use cloudlink_proto::stream::SUBPROTOCOL;
use futures_util::StreamExt;
use jiff::Timestamp;
use jiff::civil::Date;
use reqwest::header::HeaderValue;
use reqwest::{Upgraded, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) use problem::Problem;
pub(crate) use transport::{Call, Pieces, backoff};

use crate::connection::Connection;
use crate::failure::Failure;
use crate::model::{
    AccessPolicy, AccessRequest, Alert, AuditEntry, Command, ConfigurationDocument, ConfigurationDrift, Delivery,
    Device, DeviceBoots, DeviceConfiguration, DeviceDrops, DeviceSamples, Email, EnrollmentToken, Execution, Grant,
    Granted, Group, LinkTest, Me, Node, Opening, Person, Proof, Recording, Rollout, SignInConfig, SignedReceipt,
    SignedStatement, SigningKey, Status, StormPlan, SupportSession, Tenant, Threshold, Token, TransportReport, Webhook,
};
use transport::{Reply, Transport};

/// Items asked for at once: the API's maximum.
const PAGE_ITEMS: usize = 200;
/// The largest profile of an OpenVPN client that is read. Real ones have 5 kB.
const PROFILE_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) struct Client {
    transport: Transport,
}

/// One thing: as this program understands it, and as it came, for `--json`.
#[derive(Clone, Debug)]
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    pub(crate) json: Value,
    pub(crate) etag: Option<HeaderValue>,
}

impl<T: DeserializeOwned> Answer<T> {
    fn new(json: Value, etag: Option<HeaderValue>) -> Result<Self, Failure> {
        let value = serde::Deserialize::deserialize(&json)
            .context("the server's answer is not what this version of cloudlink understands: is it too old?")?;
        Ok(Self { value, json, etag })
    }

    fn of_reply(reply: Reply) -> Result<Self, Failure> {
        Self::new(reply.json, reply.etag)
    }
}

/// Things, over as many pages as it takes.
#[derive(Debug)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<Answer<T>>,
    /// There are more than were asked for.
    pub(crate) has_more: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceFilter {
    /// `key:value`
    pub(crate) labels: Vec<String>,
    pub(crate) selector: Option<String>,
    pub(crate) linked: bool,
    pub(crate) quarantined: bool,
    pub(crate) name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AlertFilter {
    pub(crate) threshold_id: Option<Uuid>,
    pub(crate) device_id: Option<Uuid>,
    pub(crate) is_firing: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct CommandFilter {
    pub(crate) device_id: Option<Uuid>,
    pub(crate) grant_id: Option<Uuid>,
    pub(crate) state: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ProofFilter {
    pub(crate) node: Option<String>,
    pub(crate) outcome: Option<String>,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpeningFilter {
    pub(crate) device_id: Option<Uuid>,
    pub(crate) grant_id: Option<Uuid>,
    pub(crate) open: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SupportSessionFilter {
    pub(crate) device_id: Option<Uuid>,
    pub(crate) grant_id: Option<Uuid>,
    pub(crate) person_id: Option<Uuid>,
    pub(crate) live: Option<bool>,
    pub(crate) from: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RecordingFilter {
    pub(crate) tenant_id: Option<Uuid>,
    pub(crate) device_id: Option<Uuid>,
    pub(crate) grant_id: Option<Uuid>,
    pub(crate) person_id: Option<Uuid>,
    pub(crate) kind: Option<&'static str>,
    pub(crate) from: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct AccessRequestFilter {
    pub(crate) state: Option<String>,
    pub(crate) device_id: Option<Uuid>,
    pub(crate) tenant_id: Option<Uuid>,
}

impl Client {
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        Ok(Self { transport: Transport::new(connection)? })
    }

    /// Somebody who is nobody yet.
    pub(crate) fn anonymous(api: &Url, ca_pem: Option<&str>) -> Result<Self, Failure> {
        Ok(Self { transport: Transport::anonymous(api, ca_pem)? })
    }

    /// How to sign in.
    pub(crate) async fn sign_in_config(&self) -> Result<Answer<SignInConfig>, Failure> {
        self.one(Call::get("/auth/config")).await
    }

    /// Trades what proves who somebody is for a token.
    pub(crate) async fn session_create(&self, body: Value) -> Result<Answer<Token>, Failure> {
        self.one(Call::post("/auth/session", body)).await
    }

    /// Ends the token that this client calls with.
    pub(crate) async fn logout(&self) -> Result<Answer<Value>, Failure> {
        self.one(Call::post("/auth/logout", json!({}))).await
    }

    pub(crate) async fn me(&self) -> Result<Answer<Me>, Failure> {
        self.one(Call::get("/me")).await
    }

    pub(crate) async fn tenants(&self, limit: usize) -> Result<List<Tenant>, Failure> {
        self.list(limit, || Call::get("/tenants")).await
    }

    pub(crate) async fn tenant(&self, id: Uuid) -> Result<Answer<Tenant>, Failure> {
        self.one(Call::get(format!("/tenants/{id}"))).await
    }

    pub(crate) async fn tenant_create(&self, body: Value) -> Result<Answer<Tenant>, Failure> {
        self.one(Call::post("/tenants", body)).await
    }

    pub(crate) async fn tenant_patch(&self, tenant: &Answer<Tenant>, body: Value) -> Result<Answer<Tenant>, Failure> {
        let call = Call::patch(format!("/tenants/{}", tenant.value.id), body);
        self.one(call.if_match(tenant.etag.as_ref())).await
    }

    pub(crate) async fn isolation_statement(
        &self,
        tenant: Uuid,
        day: Date,
    ) -> Result<Answer<SignedStatement>, Failure> {
        self.one(Call::get(format!("/tenants/{tenant}/isolation-statements/{day}"))).await
    }

    pub(crate) async fn receipt(&self, grant: Uuid) -> Result<Answer<SignedReceipt>, Failure> {
        self.one(Call::get(format!("/grants/{grant}/receipt"))).await
    }

    pub(crate) async fn people(&self, limit: usize) -> Result<List<Person>, Failure> {
        self.list(limit, || Call::get("/people")).await
    }

    pub(crate) async fn person_create(&self, body: Value) -> Result<Answer<Person>, Failure> {
        self.one(Call::post("/people", body)).await
    }

    pub(crate) async fn person_activate(&self, id: Uuid, active: bool) -> Result<Answer<Person>, Failure> {
        self.one(Call::patch(format!("/people/{id}"), json!({ "active": active })).repeatable()).await
    }

    pub(crate) async fn email(&self, person: Uuid) -> Result<Answer<Email>, Failure> {
        self.one(Call::get(format!("/people/{person}/email"))).await
    }

    pub(crate) async fn email_set(&self, person: Uuid, email: Option<&str>) -> Result<Answer<Email>, Failure> {
        self.one(Call::put(format!("/people/{person}/email"), json!({ "email": email })).repeatable()).await
    }

    pub(crate) async fn groups(&self, limit: usize) -> Result<List<Group>, Failure> {
        self.list(limit, || Call::get("/groups")).await
    }

    pub(crate) async fn group(&self, id: Uuid) -> Result<Answer<Group>, Failure> {
        self.one(Call::get(format!("/groups/{id}"))).await
    }

    pub(crate) async fn group_create(&self, body: Value) -> Result<Answer<Group>, Failure> {
        self.one(Call::post("/groups", body)).await
    }

    pub(crate) async fn group_patch(&self, group: &Answer<Group>, body: Value) -> Result<Answer<Group>, Failure> {
        let call = Call::patch(format!("/groups/{}", group.value.id), body);
        self.one(call.if_match(group.etag.as_ref())).await
    }

    pub(crate) async fn group_delete(&self, id: Uuid) -> Result<Answer<Group>, Failure> {
        self.one(Call::post(format!("/groups/{id}/delete"), json!({})).repeatable()).await
    }

    pub(crate) async fn thresholds(&self, limit: usize) -> Result<List<Threshold>, Failure> {
        self.list(limit, || Call::get("/thresholds")).await
    }

    pub(crate) async fn threshold(&self, id: Uuid) -> Result<Answer<Threshold>, Failure> {
        self.one(Call::get(format!("/thresholds/{id}"))).await
    }

    pub(crate) async fn threshold_create(&self, body: Value) -> Result<Answer<Threshold>, Failure> {
        self.one(Call::post("/thresholds", body)).await
    }

    pub(crate) async fn threshold_patch(
        &self,
        threshold: &Answer<Threshold>,
        body: Value,
    ) -> Result<Answer<Threshold>, Failure> {
        let call = Call::patch(format!("/thresholds/{}", threshold.value.id), body);
        self.one(call.if_match(threshold.etag.as_ref())).await
    }

    pub(crate) async fn threshold_delete(&self, id: Uuid) -> Result<Answer<Threshold>, Failure> {
        self.one(Call::post(format!("/thresholds/{id}/delete"), json!({})).repeatable()).await
    }

    pub(crate) async fn alerts(&self, limit: usize, filter: &AlertFilter) -> Result<List<Alert>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/alerts"), "threshold_id", filter.threshold_id.as_ref());
            let call = with(call, "device_id", filter.device_id.as_ref());
            with(call, "state", filter.is_firing.then_some("firing").as_ref())
        })
        .await
    }

    /// Those of a device, or of a name, if either is given.
    pub(crate) async fn configuration_documents(
        &self,
        limit: usize,
        device: Option<Uuid>,
        name: Option<&str>,
    ) -> Result<List<ConfigurationDocument>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/configuration-documents"), "device_id", device.as_ref());
            with(call, "name", name.as_ref())
        })
        .await
    }

    pub(crate) async fn configuration_document(&self, id: Uuid) -> Result<Answer<ConfigurationDocument>, Failure> {
        self.one(Call::get(format!("/configuration-documents/{id}"))).await
    }

    pub(crate) async fn configuration_versions(
        &self,
        id: Uuid,
        limit: usize,
    ) -> Result<List<ConfigurationDocument>, Failure> {
        self.list(limit, || Call::get(format!("/configuration-documents/{id}/versions"))).await
    }

    pub(crate) async fn configuration_version(
        &self,
        id: Uuid,
        version: i64,
    ) -> Result<Answer<ConfigurationDocument>, Failure> {
        self.one(Call::get(format!("/configuration-documents/{id}/versions/{version}"))).await
    }

    pub(crate) async fn configuration_create(&self, body: Value) -> Result<Answer<ConfigurationDocument>, Failure> {
        self.one(Call::post("/configuration-documents", body)).await
    }

    pub(crate) async fn configuration_update(
        &self,
        document: &Answer<ConfigurationDocument>,
        body: Value,
    ) -> Result<Answer<ConfigurationDocument>, Failure> {
        let call = Call::put(format!("/configuration-documents/{}", document.value.id), body);
        self.one(call.if_match(document.etag.as_ref())).await
    }

    pub(crate) async fn configuration_rollback(
        &self,
        document: &Answer<ConfigurationDocument>,
        body: Value,
    ) -> Result<Answer<ConfigurationDocument>, Failure> {
        let call = Call::post(format!("/configuration-documents/{}/rollback", document.value.id), body);
        self.one(call.if_match(document.etag.as_ref())).await
    }

    pub(crate) async fn device_configuration(&self, device: Uuid) -> Result<Answer<DeviceConfiguration>, Failure> {
        self.one(Call::get(format!("/devices/{device}/configuration"))).await
    }

    pub(crate) async fn configuration_drift(
        &self,
        limit: usize,
        state: Option<&str>,
    ) -> Result<List<ConfigurationDrift>, Failure> {
        self.list(limit, || with(Call::get("/configuration-drift"), "state", state.as_ref())).await
    }

    pub(crate) async fn configuration_schema(&self, tenant: Uuid) -> Result<Answer<Value>, Failure> {
        self.one(Call::get(format!("/tenants/{tenant}/configuration-schema"))).await
    }

    pub(crate) async fn configuration_schema_set(
        &self,
        tenant: Uuid,
        before: &Answer<Value>,
        body: Value,
    ) -> Result<Answer<Value>, Failure> {
        let call = Call::put(format!("/tenants/{tenant}/configuration-schema"), body);
        self.one(call.if_match(before.etag.as_ref())).await
    }

    pub(crate) async fn rollouts(&self, limit: usize) -> Result<List<Rollout>, Failure> {
        self.list(limit, || Call::get("/rollouts")).await
    }

    pub(crate) async fn rollout(&self, id: Uuid) -> Result<Answer<Rollout>, Failure> {
        self.one(Call::get(format!("/rollouts/{id}"))).await
    }

    pub(crate) async fn rollout_executions(&self, id: Uuid, limit: usize) -> Result<List<Execution>, Failure> {
        self.list(limit, || Call::get(format!("/rollouts/{id}/executions"))).await
    }

    pub(crate) async fn rollout_plan(&self, body: Value) -> Result<Answer<Rollout>, Failure> {
        self.one(Call::post("/rollouts", body)).await
    }

    /// `verb`: `apply`, `pause`, `resume` or `cancel`.
    pub(crate) async fn rollout_change(&self, id: Uuid, verb: &str, body: Value) -> Result<Answer<Rollout>, Failure> {
        self.one(Call::post(format!("/rollouts/{id}/{verb}"), body)).await
    }

    pub(crate) async fn webhooks(&self, limit: usize) -> Result<List<Webhook>, Failure> {
        self.list(limit, || Call::get("/webhooks")).await
    }

    pub(crate) async fn webhook(&self, id: Uuid) -> Result<Answer<Webhook>, Failure> {
        self.one(Call::get(format!("/webhooks/{id}"))).await
    }

    pub(crate) async fn webhook_create(&self, body: Value) -> Result<Answer<Webhook>, Failure> {
        self.one(Call::post("/webhooks", body)).await
    }

    pub(crate) async fn webhook_test(&self, id: Uuid) -> Result<Answer<Delivery>, Failure> {
        self.one(Call::post(format!("/webhooks/{id}/test"), json!({}))).await
    }

    pub(crate) async fn webhook_rotate(&self, id: Uuid) -> Result<Answer<Webhook>, Failure> {
        self.one(Call::post(format!("/webhooks/{id}/rotate"), json!({}))).await
    }

    pub(crate) async fn webhook_disable(&self, id: Uuid) -> Result<Answer<Webhook>, Failure> {
        self.one(Call::post(format!("/webhooks/{id}/disable"), json!({})).repeatable()).await
    }

    pub(crate) async fn webhook_deliveries(&self, id: Uuid, limit: usize) -> Result<List<Delivery>, Failure> {
        self.list(limit, || Call::get(format!("/webhooks/{id}/deliveries"))).await
    }

    pub(crate) async fn tokens(&self, limit: usize, person: Option<Uuid>) -> Result<List<Token>, Failure> {
        self.list(limit, || with(Call::get("/tokens"), "person_id", person.as_ref())).await
    }

    pub(crate) async fn token_create(&self, body: Value) -> Result<Answer<Token>, Failure> {
        self.one(Call::post("/tokens", body)).await
    }

    pub(crate) async fn token_revoke(&self, id: Uuid) -> Result<Answer<Value>, Failure> {
        self.one(Call::post(format!("/tokens/{id}/revoke"), json!({})).repeatable()).await
    }

    pub(crate) async fn enrollment_tokens(&self, limit: usize) -> Result<List<EnrollmentToken>, Failure> {
        self.list(limit, || Call::get("/enrollment-tokens")).await
    }

    pub(crate) async fn enrollment_token_create(&self, body: Value) -> Result<Answer<EnrollmentToken>, Failure> {
        self.one(Call::post("/enrollment-tokens", body)).await
    }

    pub(crate) async fn devices(&self, limit: usize, filter: &DeviceFilter) -> Result<List<Device>, Failure> {
        self.list(limit, || {
            let mut call = Call::get("/devices");
            for label in &filter.labels {
                call = call.query("label", label);
            }
            call = with(call, "selector", filter.selector.as_ref());
            if filter.linked {
                call = call.query("linked", "true");
            }
            if filter.quarantined {
                call = call.query("quarantined", "true");
            }
            with(call, "name", filter.name.as_ref())
        })
        .await
    }

    pub(crate) async fn device(&self, id: Uuid) -> Result<Answer<Device>, Failure> {
        self.one(Call::get(format!("/devices/{id}"))).await
    }

    pub(crate) async fn device_patch(&self, device: &Answer<Device>, body: Value) -> Result<Answer<Device>, Failure> {
        let call = Call::patch(format!("/devices/{}", device.value.id), body);
        self.one(call.if_match(device.etag.as_ref())).await
    }

    pub(crate) async fn device_revoke(&self, id: Uuid) -> Result<Answer<Value>, Failure> {
        self.one(Call::post(format!("/devices/{id}/revoke"), json!({}))).await
    }

    pub(crate) async fn device_quarantine(&self, id: Uuid, reason: &str) -> Result<Answer<Device>, Failure> {
        let call = Call::post(format!("/devices/{id}/quarantine"), json!({ "reason": reason }));
        self.one(call.repeatable()).await
    }

    pub(crate) async fn device_release(&self, id: Uuid) -> Result<Answer<Device>, Failure> {
        self.one(Call::post(format!("/devices/{id}/release"), json!({})).repeatable()).await
    }

    pub(crate) async fn device_drops(
        &self,
        id: Uuid,
        from: Option<Date>,
        until: Option<Date>,
    ) -> Result<Answer<DeviceDrops>, Failure> {
        let call = with(Call::get(format!("/devices/{id}/drops")), "from", from.as_ref());
        self.one(with(call, "until", until.as_ref())).await
    }

    pub(crate) async fn transport_report(
        &self,
        by: Option<&str>,
        days: Option<u32>,
    ) -> Result<Answer<TransportReport>, Failure> {
        let call = with(Call::get("/transport-report"), "by", by.as_ref());
        self.one(with(call, "days", days.as_ref())).await
    }

    pub(crate) async fn device_metrics(&self, id: Uuid) -> Result<Answer<Value>, Failure> {
        self.one(Call::get(format!("/devices/{id}/metrics"))).await
    }

    pub(crate) async fn device_boots(&self, id: Uuid) -> Result<Answer<DeviceBoots>, Failure> {
        self.one(Call::get(format!("/devices/{id}/boots"))).await
    }

    pub(crate) async fn device_samples(
        &self,
        id: Uuid,
        metric: Option<&str>,
        from: Timestamp,
        until: Option<Timestamp>,
        step: Option<u64>,
    ) -> Result<Answer<DeviceSamples>, Failure> {
        let call = with(Call::get(format!("/devices/{id}/samples")), "metric", metric.as_ref());
        let call = with(call, "from", Some(&from));
        self.one(with(with(call, "until", until.as_ref()), "step", step.as_ref())).await
    }

    pub(crate) async fn device_link_tests(&self, id: Uuid, limit: usize) -> Result<List<LinkTest>, Failure> {
        self.list(limit, || Call::get(format!("/devices/{id}/link-tests"))).await
    }

    /// The profile of the device's OpenVPN client, which looks for its key at that path.
    pub(crate) async fn openvpn_profile(&self, id: Uuid, key_path: Option<&str>) -> Result<String, Failure> {
        let path = format!("/devices/{id}/openvpn-profile");
        let call = with(Call::get(path), "key_path", key_path.as_ref());
        let mut pieces = self.transport.stream(call, "text/plain").await?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() > PROFILE_BYTES_MAX {
                return Err(anyhow::anyhow!("the server's profile is longer than {PROFILE_BYTES_MAX} bytes").into());
            }
        }
        Ok(String::from_utf8(bytes).context("the server's profile is not text: is the address right?")?)
    }

    pub(crate) async fn grants(&self, limit: usize) -> Result<List<Grant>, Failure> {
        self.list(limit, || Call::get("/grants")).await
    }

    pub(crate) async fn grant(&self, id: Uuid) -> Result<Answer<Grant>, Failure> {
        self.one(Call::get(format!("/grants/{id}"))).await
    }

    pub(crate) async fn grant_create(&self, body: Value) -> Result<Answer<Granted>, Failure> {
        self.one(Call::post("/grants", body)).await
    }

    pub(crate) async fn grant_revoke(&self, id: Uuid) -> Result<Answer<Value>, Failure> {
        self.one(Call::post(format!("/grants/{id}/revoke"), json!({}))).await
    }

    pub(crate) async fn grant_extend(&self, grant: &Answer<Grant>, body: Value) -> Result<Answer<Granted>, Failure> {
        let call = Call::post(format!("/grants/{}/extend", grant.value.id), body);
        self.one(call.if_match(grant.etag.as_ref())).await
    }

    pub(crate) async fn signing_keys(&self, limit: usize) -> Result<List<SigningKey>, Failure> {
        self.list(limit, || Call::get("/signing-keys")).await
    }

    pub(crate) async fn signing_key_create(&self, body: Value) -> Result<Answer<SigningKey>, Failure> {
        self.one(Call::post("/signing-keys", body)).await
    }

    pub(crate) async fn signing_key_require(&self, required: bool) -> Result<Answer<Value>, Failure> {
        self.one(Call::post("/signing-keys/require", json!({ "required": required })).repeatable()).await
    }

    pub(crate) async fn signing_key_revoke(&self, id: Uuid) -> Result<Answer<SigningKey>, Failure> {
        self.one(Call::post(format!("/signing-keys/{id}/revoke"), json!({})).repeatable()).await
    }

    pub(crate) async fn access_requests(
        &self,
        limit: usize,
        filter: &AccessRequestFilter,
    ) -> Result<List<AccessRequest>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/access-requests"), "state", filter.state.as_ref());
            with(with(call, "device_id", filter.device_id.as_ref()), "tenant_id", filter.tenant_id.as_ref())
        })
        .await
    }

    pub(crate) async fn access_request(&self, id: Uuid) -> Result<Answer<AccessRequest>, Failure> {
        self.one(Call::get(format!("/access-requests/{id}"))).await
    }

    pub(crate) async fn access_request_create(&self, body: Value) -> Result<Answer<AccessRequest>, Failure> {
        self.one(Call::post("/access-requests", body)).await
    }

    /// `approve`, `deny` or `withdraw`. The same answer again changes nothing.
    pub(crate) async fn access_request_answer(
        &self,
        id: Uuid,
        verb: &str,
        body: Value,
    ) -> Result<Answer<AccessRequest>, Failure> {
        self.one(Call::post(format!("/access-requests/{id}/{verb}"), body).repeatable()).await
    }

    pub(crate) async fn access_policies(&self, limit: usize) -> Result<List<AccessPolicy>, Failure> {
        self.list(limit, || Call::get("/access-policies")).await
    }

    pub(crate) async fn access_policy(&self, id: Uuid) -> Result<Answer<AccessPolicy>, Failure> {
        self.one(Call::get(format!("/access-policies/{id}"))).await
    }

    pub(crate) async fn access_policy_create(&self, body: Value) -> Result<Answer<AccessPolicy>, Failure> {
        self.one(Call::post("/access-policies", body)).await
    }

    /// Approving again changes nothing.
    pub(crate) async fn access_policy_approve(&self, id: Uuid) -> Result<Answer<AccessPolicy>, Failure> {
        self.one(Call::post(format!("/access-policies/{id}/approve"), json!({})).repeatable()).await
    }

    /// Revoking again changes nothing.
    pub(crate) async fn access_policy_revoke(
        &self,
        id: Uuid,
        revoke_grants: bool,
    ) -> Result<Answer<AccessPolicy>, Failure> {
        let call = Call::post(format!("/access-policies/{id}/revoke"), json!({}));
        let call = if revoke_grants { call.query("revoke_grants", "true") } else { call };
        self.one(call.repeatable()).await
    }

    pub(crate) async fn commands(&self, limit: usize, filter: &CommandFilter) -> Result<List<Command>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/commands"), "device_id", filter.device_id.as_ref());
            with(with(call, "grant_id", filter.grant_id.as_ref()), "state", filter.state.as_ref())
        })
        .await
    }

    pub(crate) async fn command(&self, id: Uuid) -> Result<Answer<Command>, Failure> {
        self.one(Call::get(format!("/commands/{id}"))).await
    }

    /// Asks for a command on a device. Asked again with the same key, the answer is the same command.
    pub(crate) async fn command_create(
        &self,
        device: Uuid,
        body: Value,
        key: &str,
    ) -> Result<Answer<Command>, Failure> {
        self.one(Call::post(format!("/devices/{device}/commands"), body).idempotency_key(key)?).await
    }

    pub(crate) async fn command_cancel(&self, id: Uuid) -> Result<Answer<Value>, Failure> {
        self.one(Call::post(format!("/commands/{id}/cancel"), json!({}))).await
    }

    /// The command's changes as they happen, from its present state on.
    pub(crate) async fn command_events(&self, id: Uuid) -> Result<CommandEvents, Failure> {
        let pieces = self.transport.stream(Call::get(format!("/commands/{id}/events")), "text/event-stream").await?;
        Ok(CommandEvents { pieces, parser: sse::Parser::default() })
    }

    pub(crate) async fn storm_plan(&self, devices: u32, nodes: u32) -> Result<Answer<StormPlan>, Failure> {
        let call = with(Call::get("/storm-plan"), "devices", Some(&devices));
        self.one(with(call, "nodes", Some(&nodes))).await
    }

    pub(crate) async fn status(&self) -> Result<Answer<Status>, Failure> {
        self.one(Call::get("/status")).await
    }

    pub(crate) async fn nodes(&self) -> Result<List<Node>, Failure> {
        let page = self.transport.call(Call::get("/nodes")).await?.json;
        Ok(List { items: items(&page)?, has_more: false })
    }

    pub(crate) async fn node(&self, name: &str) -> Result<Answer<Node>, Failure> {
        self.one(Call::get(node_path(name))).await
    }

    pub(crate) async fn node_drain(&self, name: &str, body: Value) -> Result<Answer<Node>, Failure> {
        self.one(Call::post(format!("{}/drain", node_path(name)), body).repeatable()).await
    }

    pub(crate) async fn node_resume(&self, name: &str) -> Result<Answer<Node>, Failure> {
        self.one(Call::post(format!("{}/resume", node_path(name)), json!({}))).await
    }

    /// A round at once, or where it will be found.
    pub(crate) async fn proof_create(&self, all_ports: bool) -> Result<Answer<Proof>, Failure> {
        self.one(Call::post("/isolation/proofs", json!({ "all_ports": all_ports }))).await
    }

    pub(crate) async fn proof(&self, id: Uuid) -> Result<Answer<Proof>, Failure> {
        self.one(Call::get(format!("/isolation/proofs/{id}"))).await
    }

    pub(crate) async fn proofs(&self, limit: usize, filter: &ProofFilter) -> Result<List<Proof>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/isolation/proofs"), "node", filter.node.as_ref());
            let call = with(call, "outcome", filter.outcome.as_ref());
            with(with(call, "from", filter.from.as_ref()), "to", filter.to.as_ref())
        })
        .await
    }

    pub(crate) async fn openings(&self, limit: usize, filter: &OpeningFilter) -> Result<List<Opening>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/openings"), "device_id", filter.device_id.as_ref());
            with(with(call, "grant_id", filter.grant_id.as_ref()), "open", filter.open.as_ref())
        })
        .await
    }

    pub(crate) async fn opening(&self, id: Uuid) -> Result<Answer<Opening>, Failure> {
        self.one(Call::get(format!("/openings/{id}"))).await
    }

    pub(crate) async fn opening_create(&self, device: Uuid, body: Value) -> Result<Answer<Opening>, Failure> {
        self.one(Call::post(format!("/devices/{device}/openings"), body)).await
    }

    /// Closing again changes nothing.
    pub(crate) async fn opening_close(&self, id: Uuid) -> Result<Answer<Opening>, Failure> {
        self.one(Call::post(format!("/openings/{id}/close"), json!({})).repeatable()).await
    }

    pub(crate) async fn support_sessions(
        &self,
        limit: usize,
        filter: &SupportSessionFilter,
    ) -> Result<List<SupportSession>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/support-sessions"), "device_id", filter.device_id.as_ref());
            let call = with(call, "grant_id", filter.grant_id.as_ref());
            let call = with(call, "person_id", filter.person_id.as_ref());
            let call = with(call, "live", filter.live.as_ref());
            with(with(call, "from", filter.from.as_ref()), "until", filter.until.as_ref())
        })
        .await
    }

    pub(crate) async fn support_session(&self, id: Uuid) -> Result<Answer<SupportSession>, Failure> {
        self.one(Call::get(format!("/support-sessions/{id}"))).await
    }

    pub(crate) async fn support_session_create(
        &self,
        device: Uuid,
        body: Value,
    ) -> Result<Answer<SupportSession>, Failure> {
        self.one(Call::post(format!("/devices/{device}/support-sessions"), body)).await
    }

    /// Closing again changes nothing.
    pub(crate) async fn support_session_close(&self, id: Uuid) -> Result<Answer<SupportSession>, Failure> {
        self.one(Call::post(format!("/support-sessions/{id}/close"), json!({})).repeatable()).await
    }

    /// The connection of a stream of a session.
    pub(crate) async fn support_session_stream(
        &self,
        id: Uuid,
        query: &[(&'static str, String)],
    ) -> Result<Upgraded, Failure> {
        let call = Call::get(format!("/support-sessions/{id}/stream"));
        let call = query.iter().fold(call, |call, (name, value)| call.query(name, value));
        self.transport.upgrade(call, SUBPROTOCOL).await
    }

    pub(crate) async fn recordings(&self, limit: usize, filter: &RecordingFilter) -> Result<List<Recording>, Failure> {
        self.list(limit, || {
            let call = with(Call::get("/recordings"), "tenant_id", filter.tenant_id.as_ref());
            let call = with(call, "device_id", filter.device_id.as_ref());
            let call = with(call, "grant_id", filter.grant_id.as_ref());
            let call = with(call, "person_id", filter.person_id.as_ref());
            let call = with(call, "kind", filter.kind.as_ref());
            with(with(call, "from", filter.from.as_ref()), "until", filter.until.as_ref())
        })
        .await
    }

    pub(crate) async fn recording(&self, session: Uuid) -> Result<Answer<Recording>, Failure> {
        self.one(Call::get(format!("/support-sessions/{session}/recording"))).await
    }

    pub(crate) async fn recording_content(&self, session: Uuid) -> Result<Pieces, Failure> {
        self.transport.stream(Call::get(format!("/support-sessions/{session}/recording/content")), "*/*").await
    }

    pub(crate) async fn audit(&self, limit: usize, tenant: Option<Uuid>) -> Result<List<AuditEntry>, Failure> {
        self.list(limit, || with(Call::get("/audit"), "tenant_id", tenant.as_ref())).await
    }

    pub(crate) async fn audit_export(&self, tenant: Option<Uuid>) -> Result<Pieces, Failure> {
        let call = with(Call::get("/audit/export"), "tenant_id", tenant.as_ref());
        self.transport.stream(call, "application/x-ndjson").await
    }

    async fn one<T: DeserializeOwned>(&self, call: Call) -> Result<Answer<T>, Failure> {
        self.transport.call(call).await.and_then(Answer::of_reply)
    }

    /// At most `limit` items; `call` makes the call without its page.
    async fn list<T: DeserializeOwned>(&self, limit: usize, call: impl Fn() -> Call) -> Result<List<T>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let ask = (limit - items.len()).min(PAGE_ITEMS);
            let call = with(call().query("limit", ask.to_string()), "cursor", cursor.as_ref());
            let page = self.transport.call(call).await?.json;
            let new = self::items(&page)?;
            // A page that brings nothing new would be asked for for ever.
            let is_empty = new.is_empty();
            items.extend(new);
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            let has_more = cursor.is_some() && !is_empty;
            if !has_more || items.len() >= limit {
                return Ok(List { has_more: has_more || items.len() > limit, items });
            }
        }
    }
}

/// The things on a page.
fn items<T: DeserializeOwned>(page: &Value) -> Result<Vec<Answer<T>>, Failure> {
    let Value::Array(values) = page["items"].clone() else {
        return Err(anyhow::anyhow!("the server's answer is no list: is the address right?").into());
    };
    values.into_iter().map(|value| Answer::new(value, None)).collect()
}

/// Names of nodes may have anything in them.
fn node_path(name: &str) -> String {
    let mut path = "/nodes/".to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(byte.into());
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

/// The call with this query parameter, if it has a value.
fn with(call: Call, name: &'static str, value: Option<&impl ToString>) -> Call {
    match value {
        Some(value) => call.query(name, value.to_string()),
        None => call,
    }
}

/// What becomes of one command.
pub(crate) struct CommandEvents {
    pieces: Pieces,
    parser: sse::Parser,
}

impl CommandEvents {
    /// The next state of the command; `None` when the server has nothing more to say.
    pub(crate) async fn next_change(&mut self) -> Result<Option<Answer<Command>>, Failure> {
        loop {
            while let Some(event) = self.parser.next_event() {
                if event.name == "command" {
                    let json =
                        serde_json::from_str(&event.data).context("the server sent an event that is not JSON")?;
                    return Answer::new(json, None).map(Some);
                }
            }
            match self.pieces.next().await {
                None => return Ok(None),
                Some(piece) => self.parser.feed(&piece?).map_err(anyhow::Error::new)?,
            }
        }
    }
}

/// Lines of a stream, each of bounded length.
pub(crate) struct Lines {
    pieces: Pieces,
    line: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
    ended: bool,
}

impl Lines {
    #[must_use]
    pub(crate) fn new(pieces: Pieces) -> Self {
        Self { pieces, line: Vec::new(), ready: VecDeque::new(), ended: false }
    }

    /// The next line without its end. A last line without an end is one, too.
    pub(crate) async fn next_line(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok((!self.line.is_empty()).then(|| std::mem::take(&mut self.line)));
            }
            match self.pieces.next().await {
                None => self.ended = true,
                Some(piece) => {
                    let piece = piece?;
                    let mut parts = piece.split(|byte| *byte == b'\n');
                    self.line.extend_from_slice(parts.next().unwrap_or_default());
                    for part in parts {
                        self.ready.push_back(std::mem::replace(&mut self.line, part.to_vec()));
                    }
                    if self.line.len() > bytes_max {
                        return Err(anyhow::anyhow!("the server sent a line longer than {bytes_max} bytes").into());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    fn lines(pieces: &'static [&'static str]) -> Lines {
        Lines::new(stream::iter(pieces).map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).boxed())
    }

    async fn all(mut lines: Lines, bytes_max: usize) -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        while let Some(line) = lines.next_line(bytes_max).await? {
            all.push(String::from_utf8(line).unwrap());
        }
        Ok(all)
    }

    #[tokio::test]
    async fn lines_do_not_depend_on_where_the_pieces_are_cut() {
        assert_eq!(all(lines(&["a\nb", "c", "\n", "\nd\ne"]), 10).await.unwrap(), ["a", "bc", "", "d", "e"]);
        assert_eq!(all(lines(&["a\n"]), 10).await.unwrap(), ["a"]);
        assert!(all(lines(&[]), 10).await.unwrap().is_empty());
    }

    #[test]
    fn a_name_of_a_node_is_one_part_of_a_path() {
        assert_eq!(node_path("node-1"), "/nodes/node-1");
        assert_eq!(node_path("../a b?"), "/nodes/..%2Fa%20b%3F");
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        assert_eq!(all(lines(&["abcdef", "ghijkl"]), 10).await.unwrap_err().exit_code(), 1);
    }
}
