//! Which of several grants something is done under.

use super::*;

/// Two grants in force for the device: one that is signed, and one from before which ends later.
async fn two_grants(scene: &Scene) -> (Uuid, Uuid) {
    let body = |seconds| json!({"scopes": ["device:reboot", "tcp:open", "shell:open"], "duration_seconds": seconds});
    let later = scene.grant(body(900)).await.as_uuid();
    let signed = scene.grant(body(600)).await.as_uuid();
    for statement in [
        "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
         select id, tenant_id, 'safe', 'ed25519', sha256('safe'), created_by from grants where id = $1",
        "update grants set statement = 'signed', signing_key_id = id where id = $1",
    ] {
        scene.sql(statement, signed).await;
    }
    (later, signed)
}

/// The grant that each way of doing something takes, if it is left to choose.
async fn chosen(scene: &Scene) -> Vec<Uuid> {
    let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
    let mut chosen = Vec::new();
    for create in [
        "select grant_id from command_create(gen_random_uuid(), $1, $2, null, 'device:reboot', 'device.reboot', '{}', 'r', '1 min', 60,
                                             true, null, sha256(''))",
        "select grant_id from opening_create(gen_random_uuid(), $1, $2, null, 22, 'r', '1 min', 16)",
        "select grant_id from support_session_create(gen_random_uuid(), $1, $2, null, 'shell:open', 'terminal', '{}', 'r', 'node', 16)",
    ] {
        let grant = sqlx::query_scalar(create).bind(scene.operator.id.as_uuid()).bind(scene.device.as_uuid());
        chosen.push(grant.fetch_one(&mut *transaction).await.unwrap());
    }
    chosen
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_signed_grant_goes_first_where_grants_must_be_signed(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    scene.tunnel(scene.device).await;
    let (later, signed) = two_grants(&scene).await;
    assert_eq!(chosen(&scene).await, [later; 3]);
    scene.sql("update tenants set signed_grants = true where id = $1", scene.tenant.as_uuid()).await;
    assert_eq!(chosen(&scene).await, [signed; 3]);
    // One of a key that no longer counts is no better than none.
    scene
        .sql(
            "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
             select gen_random_uuid(), tenant_id, 'other', 'ed25519', sha256('other'), created_by from grants where id = $1",
            signed,
        )
        .await;
    scene.sql("update signing_keys set revoked_at = now() where id = $1", signed).await;
    assert_eq!(chosen(&scene).await, [later; 3]);
}
