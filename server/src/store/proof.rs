//! Proofs of isolation: the devices that make them, and what came of each round.

use cloudlink_proto::ids::TenantId;
use data_encoding::HEXLOWER;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use super::certificate::{NewCertificate, certificate_insert};
use crate::model::new_id;
use crate::model::proof::{Outcome, Proof, Trigger};

/// The tenant of all nodes' probes, made by whoever asks first.
pub async fn probe_tenant(connection: &mut PgConnection) -> Result<TenantId, StoreError> {
    // Its name is nobody's to see, and nobody else's to have.
    let id = new_id();
    let made = sqlx::query_scalar!(
        r#"with made as (
               insert into tenants (id, name, internal)
               select $1, $2, true where not exists (select from tenants where internal)
                   on conflict do nothing
               returning id
           )
           select id as "id!" from made union all select id from tenants where internal"#,
        id,
        format!("internal {id}"),
    )
    .fetch_optional(&mut *connection)
    .await?;
    let found = match made {
        Some(id) => Some(id),
        // Another node was faster, and a statement does not see what was committed after it began.
        None => sqlx::query_scalar!("select id from tenants where internal").fetch_optional(connection).await?,
    };
    found.map(TenantId::from_uuid).ok_or(StoreError::Inconsistent { table: "tenants", column: "internal" })
}

/// Records a probe, if it is new, and the certificate that it is about to use.
pub async fn probe_enroll_in_txn(
    connection: &mut PgConnection,
    name: &str,
    certificate: NewCertificate<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into devices (id, tenant_id, name) values ($1, $2, $3) on conflict (id) do nothing",
        certificate.device_id.as_uuid(),
        certificate.tenant_id.as_uuid(),
        name
    )
    .execute(&mut *connection)
    .await?;
    certificate_insert(connection, certificate).await
}

/// A round that is over.
#[derive(Clone, Debug)]
pub struct NewProof {
    pub id: Uuid,
    pub node: String,
    pub trigger: Trigger,
    pub started_at: OffsetDateTime,
    pub finished_at: OffsetDateTime,
    pub outcome: Outcome,
    pub policy_hash: [u8; 32],
    pub attempts: i32,
    pub results: Value,
}

impl From<NewProof> for Proof {
    fn from(proof: NewProof) -> Self {
        Self {
            id: proof.id,
            node: proof.node,
            trigger: proof.trigger,
            started_at: proof.started_at,
            finished_at: proof.finished_at,
            outcome: proof.outcome,
            policy_hash: HEXLOWER.encode(&proof.policy_hash),
            attempts: proof.attempts,
            results: proof.results,
        }
    }
}

/// Records a round. Once, however often it is called.
pub async fn proof_insert(connection: &mut PgConnection, proof: &NewProof) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into isolation_proofs (id, node, trigger, started_at, finished_at, outcome, policy_hash, attempts, results)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (id) do nothing",
        proof.id,
        proof.node,
        proof.trigger.name(),
        proof.started_at,
        proof.finished_at,
        proof.outcome.name(),
        &proof.policy_hash,
        proof.attempts,
        proof.results,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether the last round of a node that told anything was a leak.
pub async fn proof_is_leaking(connection: &mut PgConnection, node: &str) -> Result<bool, StoreError> {
    let is_leak = sqlx::query_scalar!(
        r#"select outcome = 'leak' as "is_leak!" from isolation_proofs
            where node = $1 and outcome <> 'failed' order by started_at desc limit 1"#,
        node
    );
    Ok(is_leak.fetch_optional(connection).await?.unwrap_or(false))
}

struct Row {
    id: Uuid,
    node: String,
    trigger: String,
    started_at: OffsetDateTime,
    finished_at: OffsetDateTime,
    outcome: String,
    policy_hash: String,
    attempts: i32,
    results: Value,
}

impl TryFrom<Row> for Proof {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let unreadable = |column| StoreError::Inconsistent { table: "isolation_proofs", column };
        Ok(Self {
            id: row.id,
            node: row.node,
            trigger: Trigger::named(&row.trigger).ok_or(unreadable("trigger"))?,
            started_at: row.started_at,
            finished_at: row.finished_at,
            outcome: Outcome::named(&row.outcome).ok_or(unreadable("outcome"))?,
            policy_hash: row.policy_hash,
            attempts: row.attempts,
            results: row.results,
        })
    }
}

pub async fn proof_show(connection: &mut PgConnection, id: Uuid) -> Result<Option<Proof>, StoreError> {
    sqlx::query_as!(
        Row,
        r#"select id, node, trigger, started_at, finished_at, outcome, encode(policy_hash, 'hex') as "policy_hash!",
                  attempts, results
             from isolation_proofs where id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?
    .map(Proof::try_from)
    .transpose()
}

/// What [`proof_list`] looks for.
#[derive(Clone, Debug, Default)]
pub struct ProofFilter {
    pub node: Option<String>,
    pub outcome: Option<Outcome>,
    /// Begun at or after this.
    pub from: Option<OffsetDateTime>,
    /// Begun before this.
    pub to: Option<OffsetDateTime>,
}

/// Rounds, newest first, after the position given.
pub async fn proof_list(
    connection: &mut PgConnection,
    filter: &ProofFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Proof>, StoreError> {
    let (after_time, after_id) = after.unzip();
    sqlx::query_as!(
        Row,
        r#"select id, node, trigger, started_at, finished_at, outcome, encode(policy_hash, 'hex') as "policy_hash!",
                  attempts, results
             from isolation_proofs
            where ($1::text is null or node = $1) and ($2::text is null or outcome = $2)
              and ($3::timestamptz is null or started_at >= $3) and ($4::timestamptz is null or started_at < $4)
              and ($5::timestamptz is null or (started_at, id) < ($5, $6::uuid))
            order by started_at desc, id desc limit $7"#,
        filter.node,
        filter.outcome.map(Outcome::name),
        filter.from,
        filter.to,
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Proof::try_from)
    .collect()
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::DeviceId;
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::{Kind, Scene};
    use crate::model::device::{is_probe, probe_id};
    use crate::store::Visibility;

    async fn enroll(scene: &Scene, number: u8) -> (TenantId, DeviceId) {
        let device_id = probe_id("node-1", number);
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        let tenant_id = probe_tenant(&mut transaction).await.unwrap();
        let serial = new_id();
        let certificate = NewCertificate {
            serial: serial.as_bytes(),
            device_id,
            tenant_id,
            key_hash: &[7; 32],
            der: b"der",
            not_after: OffsetDateTime::UNIX_EPOCH + time::Duration::days(40_000),
        };
        probe_enroll_in_txn(&mut transaction, &format!("node-1 {number}"), certificate).await.unwrap();
        transaction.commit().await.unwrap();
        (tenant_id, device_id)
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn nodes_that_start_at_once_have_one_internal_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let made = (0..8).map(|_| async {
            let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
            let tenant = probe_tenant(&mut transaction).await.unwrap();
            transaction.commit().await.unwrap();
            tenant
        });
        let mut made = futures_util::future::join_all(made).await;
        made.dedup();
        assert_eq!(made.len(), 1);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn nobody_is_shown_a_probe(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (tenant, probe) = enroll(&scene, 0).await;
        assert_eq!(enroll(&scene, 0).await, (tenant, probe), "the same one again");
        assert!(is_probe(probe) && !is_probe(scene.device) && probe != enroll(&scene, 1).await.1);
        let named = "update certificates set serial = uuid_send(device_id) where serial = (select serial from certificates where device_id = $1 limit 1)";
        scene.sql(named, probe.as_uuid()).await;
        scene.tunnel(probe).await;

        for somebody in [&scene.admin, &scene.operator, &scene.customer] {
            let devices = scene.get("/devices").by(somebody).send().await.expect(StatusCode::OK).to_string();
            assert!(!devices.contains(&probe.to_string()), "{devices}");
            let path = format!("/devices/{probe}");
            scene.get(&path).by(somebody).send().await.expect_problem(Kind::NotFound);
        }
        let tenants = scene.get("/tenants").by(&scene.admin).send().await.expect(StatusCode::OK).to_string();
        assert!(!tenants.contains(&tenant.to_string()), "{tenants}");
        let path = format!("/tenants/{tenant}");
        scene.get(&path).by(&scene.admin).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn nobody_gets_into_the_internal_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (tenant, probe) = enroll(&scene, 0).await;
        let person = json!({"name": "eve", "role": "tenant", "tenant_id": tenant.to_string()});
        scene.post("/people").by(&scene.admin).json(person).send().await.expect_problem(Kind::Unprocessable);
        let token = json!({"device_name": "roof", "tenant_id": tenant.to_string()});
        scene.post("/enrollment-tokens").by(&scene.admin).json(token).send().await.expect_problem(Kind::Unprocessable);
        let path = format!("/devices/{probe}/commands");
        let command = json!({"kind": "device.reboot", "reason": "r"});
        scene.post(&path).by(&scene.operator).json(command).send().await.expect_problem(Kind::NotFound);
        let path = format!("/devices/{probe}/revoke");
        scene.post(&path).by(&scene.admin).json(json!({})).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn rounds_are_kept_once_and_listed(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let mut connection = scene.store.connection().await.unwrap();
        let now = crate::clock::now();
        let round = |outcome, days| NewProof {
            id: new_id(),
            node: "node-1".to_owned(),
            trigger: Trigger::Timer,
            started_at: now - time::Duration::days(days),
            finished_at: now - time::Duration::days(days) + time::Duration::seconds(2),
            outcome,
            policy_hash: [9; 32],
            attempts: 7,
            results: json!([]),
        };
        let (old, new) = (round(Outcome::Leak, 91), round(Outcome::Proven, 1));
        assert!(!proof_is_leaking(&mut connection, "node-1").await.unwrap());
        proof_insert(&mut connection, &old).await.unwrap();
        assert!(proof_is_leaking(&mut connection, "node-1").await.unwrap());
        let failed = round(Outcome::Failed, 50);
        proof_insert(&mut connection, &failed).await.unwrap();
        assert!(proof_is_leaking(&mut connection, "node-1").await.unwrap(), "a failed round tells nothing");
        assert!(!proof_is_leaking(&mut connection, "node-2").await.unwrap(), "another node's");
        for round in [&new, &new] {
            proof_insert(&mut connection, round).await.unwrap();
        }
        assert!(!proof_is_leaking(&mut connection, "node-1").await.unwrap());
        let all = proof_list(&mut connection, &ProofFilter::default(), None, 10).await.unwrap();
        assert_eq!(all.iter().map(|proof| proof.id).collect::<Vec<_>>(), [new.id, failed.id, old.id]);
        let leaks = ProofFilter { outcome: Some(Outcome::Leak), ..ProofFilter::default() };
        assert_eq!(proof_list(&mut connection, &leaks, None, 10).await.unwrap()[0].id, old.id);
        assert_eq!(proof_show(&mut connection, new.id).await.unwrap().unwrap().policy_hash, "09".repeat(32));
    }
}
