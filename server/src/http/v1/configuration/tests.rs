//! Documents, schema and drift, through the API.

use cloudlink_proto::ids::DeviceId;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::http::problem::Kind;
use crate::http::testing::{Answer, Scene, Somebody};
use crate::model::configuration::ConfigurationTold;
use crate::model::new_id;
use crate::store::configuration::{
    Affected, configuration_due, configuration_lock_in_txn, configuration_settle_in_txn, configuration_stale,
    configuration_tell,
};
use crate::store::dispatch::LinkKey;
use crate::store::{Visibility, single};

const DOCUMENTS: &str = "/configuration-documents";

async fn create(scene: &Scene, somebody: &Somebody, body: Value) -> Answer {
    scene.post(DOCUMENTS).by(somebody).json(body).send().await
}

async fn named(scene: &Scene, name: &str, priority: i32, content: Value) -> Value {
    let body = json!({"name": name, "selector": "site=north", "priority": priority, "content": content, "reason": "r"});
    create(scene, &scene.customer, body).await.expect(StatusCode::CREATED)
}

async fn put(scene: &Scene, document: &Value, body: Value) -> Answer {
    let call =
        scene.call(Method::PUT, &format!("{DOCUMENTS}/{}", document["id"].as_str().unwrap())).by(&scene.customer);
    call.header("if-match", "*").json(body).send().await
}

async fn set_schema(scene: &Scene, somebody: &Somebody, schema: Value) -> Answer {
    let call = scene.call(Method::PUT, &format!("/tenants/{}/configuration-schema", scene.tenant)).by(somebody);
    call.header("if-match", "*").json(json!({"schema": schema})).send().await
}

async fn effective(scene: &Scene, device: DeviceId) -> Value {
    scene.get(&format!("/devices/{device}/configuration")).by(&scene.admin).send().await.expect(StatusCode::OK)
}

/// What the task of each node does with devices whose labels have changed.
async fn settle_stale(scene: &Scene) {
    let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
    for tenant in configuration_stale(&mut transaction, None).await.unwrap() {
        configuration_lock_in_txn(&mut transaction, tenant).await.unwrap();
        let _ = configuration_settle_in_txn(&mut transaction, tenant, &Affected::Stale).await.unwrap();
    }
    scene.store.commit(transaction).await.unwrap();
}

async fn tell(scene: &Scene, epoch: u64, held: i64, applied: i64, reported: i64, error: &str) {
    let told = ConfigurationTold {
        held_version: held,
        held_sha256: if held == 0 { Vec::new() } else { vec![7; 32] },
        applied_version: applied,
        reported_version: reported,
        error: error.to_owned(),
    };
    let link = LinkKey { device_id: scene.device, epoch };
    async { single!(scene.store, |connection| configuration_tell(connection, link, &told)) }.await.unwrap();
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn documents_are_merged_by_priority_and_name_and_the_devices_own_comes_last(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = Scene::new(pool, database).await;
    assert_eq!(effective(&scene, scene.device).await["state"], "none");
    named(&scene, "b", 0, json!({"who": "b", "b": 1, "gone": 1})).await;
    named(&scene, "a", 0, json!({"who": "a", "a": 1})).await;
    named(&scene, "early", -1, json!({"who": "early", "b": 0, "deep": {"x": 1, "y": 1}})).await;
    let own = json!({"device_id": scene.device.as_uuid(), "content": {"gone": null, "deep": {"y": null, "z": 1.0}}, "reason": "r"});
    create(&scene, &scene.customer, own.clone()).await.expect(StatusCode::CREATED);
    let shown = effective(&scene, scene.device).await;
    assert_eq!(shown["content"], json!({"who": "b", "a": 1, "b": 1, "deep": {"x": 1, "z": 1.0}}));
    let sources: Vec<_> = shown["documents"].as_array().unwrap().iter().map(|source| source["name"].clone()).collect();
    assert_eq!(sources, [json!("early"), json!("a"), json!("b"), Value::Null]);
    assert_eq!((&shown["desired_version"], &shown["applied_version"]), (&json!(4), &json!(0)));
    assert_eq!(shown["sha256"].as_str().unwrap().len(), 64);
    // Another tenant's device with the same labels has nothing of it.
    assert_eq!(effective(&scene, scene.other_device).await["state"], "none");
    create(&scene, &scene.customer, own).await.expect_problem(Kind::Conflict);
    let listed = scene.get(DOCUMENTS).by(&scene.operator).send().await.expect(StatusCode::OK);
    assert_eq!(listed["items"].as_array().unwrap().len(), 4);
    assert_eq!(listed["items"][0]["content"], Value::Null);
    // One content for one device, and none that nobody has.
    let kept: i64 =
        sqlx::query_scalar("select count(*) from configuration_contents").fetch_one(&scene.root).await.unwrap();
    assert_eq!(kept, 1);
    assert_eq!(scene.audited(scene.tenant).await, ["configuration.created"; 4]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn each_change_is_a_version_and_any_of_them_comes_back(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let document = named(&scene, "interval", 0, json!({"interval": 60})).await;
    let path = format!("{DOCUMENTS}/{}", document["id"].as_str().unwrap());
    let change = json!({"content": {"interval": 10}, "reason": "faster"});
    let call = |tag: &'static str| scene.call(Method::PUT, &path).by(&scene.customer).header("if-match", tag);
    call("\"2\"").json(change.clone()).send().await.expect_problem(Kind::VersionMismatch);
    let changed = call("\"1\"").json(change).send().await;
    assert_eq!(changed.header("etag"), "\"2\"");
    assert_eq!(effective(&scene, scene.device).await["content"], json!({"interval": 10}));
    // It is for others from now on; who had it, has it no more.
    let elsewhere = json!({"content": {"interval": 5}, "selector": "site=south", "priority": 3, "reason": "r"});
    assert_eq!(put(&scene, &document, elsewhere).await.expect(StatusCode::OK)["version"], 3);
    let shown = effective(&scene, scene.device).await;
    assert_eq!((&shown["content"], &shown["desired_version"]), (&json!({}), &json!(3)));

    let back = |version: i64| {
        let call = scene.post(&format!("{path}/rollback")).by(&scene.customer).header("if-match", "*");
        call.json(json!({"version": version, "reason": "it was better"})).send()
    };
    let restored = back(1).await.expect(StatusCode::OK);
    assert_eq!((&restored["version"], &restored["restores"]), (&json!(4), &json!(1)));
    assert_eq!((&restored["selector"], &restored["priority"]), (&json!("site=north"), &json!(0)));
    let shown = effective(&scene, scene.device).await;
    assert_eq!((&shown["content"], &shown["desired_version"]), (&json!({"interval": 60}), &json!(4)));
    back(9).await.expect_problem(Kind::Unprocessable);

    let versions =
        scene.get(&format!("{path}/versions?limit=3")).by(&scene.operator).send().await.expect(StatusCode::OK);
    let numbers: Vec<_> = versions["items"].as_array().unwrap().iter().map(|item| item["version"].clone()).collect();
    assert_eq!(numbers, [4, 3, 2]);
    assert_eq!(versions["items"][2]["reason"], "faster");
    let second = scene.get(&format!("{path}/versions/2")).by(&scene.customer).send().await.expect(StatusCode::OK);
    assert_eq!(second["content"], json!({"interval": 10}));
    assert_eq!(second["created_by"], json!(scene.customer.id.to_string()));
    // A change of it that comes to the same is no change for the device.
    put(&scene, &document, json!({"content": {"interval": 60}, "reason": "r"})).await.expect(StatusCode::OK);
    assert_eq!(effective(&scene, scene.device).await["desired_version"], 4);
    // The oldest are let go of.
    let many = "update configuration_documents set version = 256 where id = $1";
    scene.sql(many, document["id"].as_str().unwrap().parse().unwrap()).await;
    scene
        .sql(
            "update configuration_versions set version = 256 where document_id = $1 and version = 5",
            document["id"].as_str().unwrap().parse().unwrap(),
        )
        .await;
    put(&scene, &document, json!({"content": {}, "reason": "r"})).await.expect(StatusCode::OK);
    back(1).await.expect_problem(Kind::Unprocessable);
    back(2).await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_some_device_does_not_understand_is_refused_as_a_whole(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let schema = json!({"properties": {"interval": {"type": "integer", "minimum": 1}}, "additionalProperties": false});
    set_schema(&scene, &scene.customer, schema.clone()).await.expect_problem(Kind::Forbidden);
    set_schema(&scene, &scene.admin, json!({"$ref": "https://example.com/"})).await.expect_problem(Kind::Unprocessable);
    let set = set_schema(&scene, &scene.admin, schema.clone()).await;
    assert_eq!((set.header("etag"), &set.expect(StatusCode::OK)["schema"]), ("\"1\"", &schema));

    let document = named(&scene, "interval", 0, json!({"interval": 60})).await;
    let bad = put(&scene, &document, json!({"content": {"interval": 0}, "reason": "r"})).await;
    let problem = bad.expect_problem(Kind::ConfigurationInvalid);
    assert_eq!((&problem["pointer"], &problem["rule"]), (&json!("/interval"), &json!("/properties/interval/minimum")));
    assert!(problem["detail"].as_str().unwrap().contains("lobby"), "{problem}");
    let own = json!({"device_id": scene.device.as_uuid(), "content": {"other": 1}, "reason": "r"});
    let problem = create(&scene, &scene.customer, own).await.expect_problem(Kind::ConfigurationInvalid);
    assert_eq!(problem["pointer"], "");
    let shown = effective(&scene, scene.device).await;
    assert_eq!((&shown["content"], &shown["desired_version"]), (&json!({"interval": 60}), &json!(1)));
    let stricter = json!({"properties": {"interval": {"maximum": 10}}});
    set_schema(&scene, &scene.admin, stricter.clone()).await.expect_problem(Kind::ConfigurationInvalid);
    let kept = scene.get(&format!("/tenants/{}/configuration-schema", scene.tenant)).by(&scene.customer).send().await;
    assert_eq!(kept.expect(StatusCode::OK)["version"], 1);
    // The schema is that tenant's alone.
    let other = json!({"name": "x", "selector": "site", "content": {"anything": true}, "reason": "r"});
    create(&scene, &scene.other_customer, other).await.expect(StatusCode::CREATED);

    // Other labels bring another document: what that comes to is not given, and it is said why.
    scene.insert_device(DeviceId::from_uuid(new_id()), scene.tenant, "roof", json!({"site": "south"})).await;
    let south =
        json!({"name": "south", "selector": "site=south", "priority": 1, "content": {"interval": 5}, "reason": "r"});
    create(&scene, &scene.customer, south).await.expect(StatusCode::CREATED);
    let old = "update configuration_versions set content = '{\"interval\":\"often\"}' where content = '{\"interval\":5}' and tenant_id = $1";
    scene.sql(old, scene.tenant.as_uuid()).await;
    scene.sql("update devices set labels = '{\"site\": \"south\"}' where id = $1", scene.device.as_uuid()).await;
    settle_stale(&scene).await;
    let shown = effective(&scene, scene.device).await;
    assert_eq!((&shown["state"], &shown["content"]), (&json!("invalid"), &json!({"interval": 60})));
    assert!(shown["error"].as_str().unwrap().contains("/interval"), "{shown}");
    let drift = scene.get("/configuration-drift?state=invalid").by(&scene.customer).send().await.expect(StatusCode::OK);
    assert_eq!(drift["items"][0]["device_name"], "lobby");
    // Back to where it was understood, all is well again.
    scene.sql("update devices set labels = '{\"site\": \"north\"}' where id = $1", scene.device.as_uuid()).await;
    settle_stale(&scene).await;
    assert_eq!(effective(&scene, scene.device).await["state"], "pending");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn labels_decide_what_a_device_gets_however_they_change(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    named(&scene, "north", 0, json!({"at": "north"})).await;
    let new = DeviceId::from_uuid(new_id());
    scene.insert_device(new, scene.tenant, "roof", json!({"site": "north"})).await;
    assert_eq!(effective(&scene, new).await["desired_version"], 0, "nobody has looked yet");
    settle_stale(&scene).await;
    let shown = effective(&scene, new).await;
    assert_eq!((&shown["content"], &shown["desired_version"]), (&json!({"at": "north"}), &json!(1)));
    let call = scene.patch(&format!("/devices/{new}")).by(&scene.customer).header("if-match", "*");
    call.json(json!({"labels": {}})).send().await.expect(StatusCode::OK);
    settle_stale(&scene).await;
    let shown = effective(&scene, new).await;
    assert_eq!((&shown["content"], &shown["desired_version"]), (&json!({}), &json!(2)));
    let stale = async { single!(scene.store, |connection| configuration_stale(connection, None)) }.await.unwrap();
    assert!(stale.is_empty(), "{stale:?}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nobody_reaches_anothers_and_operators_only_look(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let document = named(&scene, "north", 0, json!({"a": 1})).await;
    let path = format!("{DOCUMENTS}/{}", document["id"].as_str().unwrap());
    for path in [
        path.clone(),
        format!("{path}/versions"),
        format!("{path}/versions/1"),
        format!("/devices/{}/configuration", scene.device),
        format!("/tenants/{}/configuration-schema", scene.tenant),
    ] {
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
    }
    let change = json!({"content": {}, "reason": "r"});
    let put =
        |somebody| scene.call(Method::PUT, &path).by(somebody).header("if-match", "*").json(change.clone()).send();
    put(&scene.other_customer).await.expect_problem(Kind::NotFound);
    put(&scene.operator).await.expect_problem(Kind::Forbidden);
    let roll = scene.post(&format!("{path}/rollback")).by(&scene.other_customer).header("if-match", "*");
    roll.json(json!({"version": 1, "reason": "r"})).send().await.expect_problem(Kind::NotFound);
    let theirs = json!({"device_id": scene.device.as_uuid(), "content": {}, "reason": "r"});
    create(&scene, &scene.other_customer, theirs.clone()).await.expect_problem(Kind::Unprocessable);
    let for_them =
        json!({"tenant_id": scene.tenant.as_uuid(), "name": "x", "selector": "site", "content": {}, "reason": "r"});
    create(&scene, &scene.other_customer, for_them.clone()).await.expect_problem(Kind::Unprocessable);
    create(&scene, &scene.operator, for_them.clone()).await.expect_problem(Kind::Forbidden);
    create(&scene, &scene.admin, theirs).await.expect_problem(Kind::Unprocessable);
    create(&scene, &scene.admin, for_them).await.expect(StatusCode::CREATED);
    for page in [DOCUMENTS, "/configuration-drift"] {
        let page = scene.get(page).by(&scene.other_customer).send().await.expect(StatusCode::OK);
        assert_eq!(page["items"], json!([]));
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_is_too_much_is_refused(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let body = |changes: Value| {
        let mut body = json!({"name": "n", "selector": "site=north", "content": {}, "reason": "r"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body
    };
    for (changes, word) in [
        (json!({"content": {"a": "x".repeat(61_440)}}), "61440"),
        (json!({"priority": 1001}), "priority"),
        (json!({"reason": ""}), "reason"),
        (json!({"name": ""}), "name"),
        (json!({"selector": ""}), "selector"),
        (json!({"device_id": scene.device.as_uuid()}), "either"),
        (json!({"selector": null}), "either"),
    ] {
        let problem = create(&scene, &scene.customer, body(changes)).await.expect_problem(Kind::Unprocessable);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    create(&scene, &scene.customer, body(json!({"content": [1]}))).await.expect_problem(Kind::BadRequest);
    // Each fits, and both together do not.
    named(&scene, "half", 0, json!({"a": "x".repeat(40_000)})).await;
    let more = body(json!({"content": {"b": "x".repeat(40_000)}}));
    let problem = create(&scene, &scene.customer, more).await.expect_problem(Kind::Unprocessable);
    assert!(problem["detail"].as_str().unwrap().contains("lobby"), "{problem}");
    for statement in [
        "insert into configuration_documents (id, tenant_id, name) select gen_random_uuid(), $1, 'n' || n from generate_series(1, 255) n",
        "insert into configuration_versions (document_id, tenant_id, version, content, selector_text, selector, reason, created_by)
         select c.id, c.tenant_id, 1, '{\"a\":1}', 'x=y', '{\"x\": \"y\"}', 'r', v.created_by
           from configuration_documents c cross join configuration_versions v where c.tenant_id = $1 and c.name <> 'half'",
    ] {
        scene.sql(statement, scene.tenant.as_uuid()).await;
    }
    create(&scene, &scene.customer, body(json!({}))).await.expect_problem(Kind::Conflict);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_devices_tell_shows_where_they_stand(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let document = named(&scene, "north", 0, json!({"a": 1})).await;
    scene.link(scene.device).await;
    scene.sql("update links set capabilities = '{configuration}' where device_id = $1", scene.device.as_uuid()).await;
    let due = async || {
        let none = uuid::Uuid::nil();
        async { single!(scene.store, |connection| configuration_due(connection, "node-1", None, none)) }.await.unwrap()
    };
    let standing = async || {
        let device = scene.get(&format!("/devices/{}", scene.device)).by(&scene.customer).send().await;
        device.expect(StatusCode::OK)["configuration"].clone()
    };
    assert_eq!((standing().await["state"].clone(), due().await.len()), (json!("pending"), 1));
    assert_eq!(&due().await[0].configuration.document_json[..], br#"{"a":1}"#);
    // Of an older link, nothing counts.
    tell(&scene, 0, 1, 1, 1, "").await;
    assert_eq!(due().await.len(), 1);
    tell(&scene, 1, 0, 0, 1, "the disk is full").await;
    assert!(due().await.is_empty(), "it has said why not");
    let shown = standing().await;
    assert_eq!((&shown["state"], &shown["error"]), (&json!("failed"), &json!("the disk is full")));
    let drift = scene.get("/configuration-drift").by(&scene.operator).send().await.expect(StatusCode::OK);
    assert_eq!((&drift["items"][0]["device_name"], &drift["items"][0]["state"]), (&json!("lobby"), &json!("failed")));
    put(&scene, &document, json!({"content": {"a": 2}, "reason": "r"})).await.expect(StatusCode::OK);
    assert_eq!(standing().await["state"], "pending");
    // The hash is another one than ours: it was a version of a database that is no more.
    tell(&scene, 1, 2, 2, 2, "").await;
    let again = due().await;
    assert_eq!((again.len(), again[0].configuration.version), (1, 3));
    tell(&scene, 1, 7, 7, 7, "").await;
    assert_eq!(due().await[0].configuration.version, 8, "a device that is ahead is not left behind");
    let audited = scene.audited(scene.tenant).await;
    assert_eq!(audited, ["configuration.created", "device.configuration_failed", "configuration.changed"]);
}
