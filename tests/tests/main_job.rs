//! The main job, from a new device to a refused command, over the API: what `make demo` tells, asserted.

use cloudlink_tests::api::text;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::machine::SERVICE;
use serde_json::json;

const METRICS: &str = "metrics.collect";

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_decides_what_is_done_to_its_device() {
    let fleet = Fleet::start().await.unwrap();
    let mut device = fleet.device("gateway").await.unwrap();

    // Without a grant: refused, and told why.
    let body = json!({ "kind": METRICS, "arguments": {}, "reason": "it is slow" });
    let refused = fleet.operator.command(&device.id, &body).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.problem()), (403, "grant_required"), "{:?}", refused.body);
    assert_eq!(refused.body["reason"], "none");

    // With one: done, and proven.
    let grant = fleet.grant(&device.id, &["metrics:read", "service:restart", "device:reboot"]).await.unwrap();
    let command = fleet.command(&device.id, METRICS, &json!({})).await.unwrap();
    let done = fleet.finished(&command).await.unwrap();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["grant_id"], grant.as_str());
    assert!(done["data"]["uptime_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{done}");

    let command = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await.unwrap();
    let done = fleet.finished(&command).await.unwrap();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(device.machine.restarts(), 1);

    let before = device.machine.boot_id().unwrap();
    let command = fleet.command(&device.id, "device.reboot", &json!({})).await.unwrap();
    let done = fleet.finished(&command).await.unwrap();
    assert_eq!(done["state"], "succeeded", "{done}");
    let after = device.machine.boot_id().unwrap();
    assert_ne!(before, after);
    assert!(done["proof"].to_string().contains(&after), "{done}");
    assert_eq!(device.machine.reboots(), 1);

    // Another scope, or no longer a grant: refused.
    let body = json!({ "kind": "device.shutdown", "arguments": {}, "reason": "no longer needed" });
    let refused = fleet.operator.command(&device.id, &body).await.unwrap();
    assert_eq!((refused.problem(), &refused.body["reason"]), ("grant_required", &json!("scope")));
    fleet.tenant.post(&format!("/grants/{grant}/revoke"), &json!({})).await.unwrap();
    let body = json!({ "kind": "device.reboot", "arguments": {}, "reason": "once more" });
    let refused = fleet.operator.command(&device.id, &body).await.unwrap();
    assert_eq!((refused.problem(), &refused.body["reason"]), ("grant_required", &json!("revoked")));
    assert_eq!(device.machine.reboots(), 1);
    assert!(!device.machine.is_off().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_proven_by_the_loss_of_the_link() {
    let fleet = Fleet::start().await.unwrap();
    let mut device = fleet.device("gateway").await.unwrap();
    fleet.grant(&device.id, &["device:shutdown"]).await.unwrap();
    let command = fleet.command(&device.id, "device.shutdown", &json!({})).await.unwrap();
    let done = fleet.finished(&command).await.unwrap();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert!(device.machine.is_off().unwrap());
    fleet.wait_for_link(&device.id, "closed").await.unwrap();

    // Now or never: there is nobody to do it.
    let body = json!({ "kind": "device.shutdown", "arguments": {}, "reason": "again" });
    let refused = fleet.operator.command(&device.id, &body).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.problem()), (409, "not_linked"), "{:?}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_twice_under_one_key_is_done_once() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.device("gateway").await.unwrap();
    fleet.grant(&device.id, &["service:restart"]).await.unwrap();
    let body = json!({ "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "a test" });
    let path = format!("/devices/{}/commands", device.id);
    let key = [("Idempotency-Key", "the-same-key")];
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = fleet.operator.call(reqwest::Method::POST, &path, &key, Some(&body)).await.unwrap();
        ids.push(text(&answer.success().unwrap(), "id").unwrap());
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[2]);
    fleet.finished(&ids[0]).await.unwrap();
    assert_eq!(device.machine.restarts(), 1);

    let other = json!({ "kind": "service.restart", "arguments": { "service": "another" }, "reason": "a test" });
    let answer = fleet.operator.call(reqwest::Method::POST, &path, &key, Some(&other)).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.problem()), (409, "idempotency_conflict"), "{:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_has_the_last_word_on_its_services() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.device("gateway").await.unwrap();
    fleet.grant(&device.id, &["service:restart"]).await.unwrap();
    let command = fleet.command(&device.id, "service.restart", &json!({ "service": "sshd" })).await.unwrap();
    let done = fleet.finished(&command).await.unwrap();
    assert_eq!((&done["state"], &done["code"]), (&json!("refused"), &json!("not_allowed")), "{done}");
    assert_eq!(device.machine.restarts(), 0);
}
