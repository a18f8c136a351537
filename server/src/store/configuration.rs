//! Desired configuration. Whoever changes documents, a schema or what devices are to have holds [`configuration_lock_in_txn`] of the tenant: what
//! was checked is what is written.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use cloudlink_proto::ids::{DeviceId, PersonId, TenantId};
use cloudlink_proto::link::message::Configuration;
use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::StoreError;
use super::dispatch::LinkKey;
use crate::model::configuration::schema::Schema;
use crate::model::configuration::{
    CAPABILITY, ConfigurationDocument, ConfigurationDrift, ConfigurationSchema, ConfigurationSource,
    ConfigurationStanding, ConfigurationTold, DOCUMENTS_MAX, DeviceConfiguration, Unfit, UnfitDevice, effective,
};
use crate::model::selector::Selector;

/// The constraints that refuse a second document of the same name, or for the same device.
pub const TAKEN: [&str; 2] = ["configuration_documents_name", "configuration_documents_device"];
/// Devices that are looked at together.
const DEVICES_PER_LOOK: i64 = 256;
/// What devices are given by one look.
pub const DUE_MAX: i64 = 256;

/// Somebody may change a tenant's documents for as long as a request may take.
const LOCKED_WITHIN: &str = "1s";

type Object = Map<String, Value>;

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    device_id: Option<Uuid>,
    name: Option<String>,
    version: i64,
    selector: Option<String>,
    priority: i32,
    content: Option<String>,
    reason: String,
    created_by: Uuid,
    created_at: OffsetDateTime,
    restores: Option<i64>,
}

impl TryFrom<Row> for ConfigurationDocument {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            device_id: row.device_id,
            name: row.name,
            version: row.version,
            selector: row.selector,
            priority: row.priority,
            content: row.content.as_deref().map(read).transpose()?.map(Value::Object),
            reason: row.reason,
            created_by: row.created_by,
            created_at: row.created_at,
            restores: row.restores,
        })
    }
}

fn read(content: &str) -> Result<Object, StoreError> {
    serde_json::from_str(content)
        .map_err(|_| StoreError::Inconsistent { table: "configuration_versions", column: "content" })
}

/// A query over documents `c` and versions `v`; the first literal says whether the content is wanted.
macro_rules! document_query {
    ($content:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            "select c.id, c.tenant_id, c.device_id, c.name, v.version, v.selector_text as selector, v.priority, " + $content
                + r#" as "content?", v.reason, v.created_by, v.created_at, v.restores
                 from configuration_documents c join configuration_versions v on v.document_id = c.id "#
                + $tail
            $(, $argument)*
        )
    };
}

/// Nobody else changes what this tenant's devices are to have before the end of this transaction. Comes before all other locks.
pub async fn configuration_lock_in_txn(connection: &mut PgConnection, tenant: TenantId) -> Result<(), StoreError> {
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('configuration ' || $1::text, 0))",
        tenant.as_uuid().to_string()
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// The same for whoever has others to see to: fails when it takes longer than a second.
pub async fn configuration_lock_soon_in_txn(connection: &mut PgConnection, tenant: TenantId) -> Result<(), StoreError> {
    sqlx::query!("select set_config('lock_timeout', $1, true)", LOCKED_WITHIN).fetch_one(&mut *connection).await?;
    configuration_lock_in_txn(connection, tenant).await
}

/// The newest version of a document.
pub async fn configuration_show(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<ConfigurationDocument>, StoreError> {
    let row = document_query!("v.content", "and v.version = c.version where c.id = $1", id)
        .fetch_optional(connection)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// One version of a document.
pub async fn configuration_version_show(
    connection: &mut PgConnection,
    id: Uuid,
    version: i64,
) -> Result<Option<ConfigurationDocument>, StoreError> {
    let row = document_query!("v.content", "where c.id = $1 and v.version = $2", id, version)
        .fetch_optional(connection)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// Versions of a document, newest first, without their content.
pub async fn configuration_version_list(
    connection: &mut PgConnection,
    id: Uuid,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<ConfigurationDocument>, StoreError> {
    let rows = document_query!(
        "null::text",
        "where c.id = $1 and ($2::bigint is null or v.version < $2) order by v.version desc limit $3",
        id,
        before,
        limit
    );
    rows.fetch_all(connection).await?.into_iter().map(TryInto::try_into).collect()
}

/// What [`configuration_list`] looks for.
#[derive(Clone, Debug, Default)]
pub struct DocumentFilter {
    pub tenant: Option<TenantId>,
    pub device: Option<DeviceId>,
    pub name: Option<String>,
}

/// Documents, newest first, each in its newest version without its content.
pub async fn configuration_list(
    connection: &mut PgConnection,
    filter: &DocumentFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<ConfigurationDocument>, StoreError> {
    let (after_time, after_id) = after.unzip();
    // The time of the first version is that of the document.
    let rows = document_query!(
        "null::text",
        "and v.version = c.version
          where ($1::uuid is null or c.tenant_id = $1) and ($2::uuid is null or c.device_id = $2) and ($3::text is null or c.name = $3)
            and ($4::timestamptz is null or (v.created_at, c.id) < ($4, $5::uuid))
          order by v.created_at desc, c.id desc limit $6",
        filter.tenant.map(TenantId::as_uuid),
        filter.device.map(DeviceId::as_uuid),
        filter.name,
        after_time,
        after_id,
        limit
    );
    rows.fetch_all(connection).await?.into_iter().map(TryInto::try_into).collect()
}

/// A version to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewVersion<'a> {
    pub selector: Option<&'a Selector>,
    pub priority: i32,
    /// JSON text, an object.
    pub content: &'a str,
    pub reason: &'a str,
    pub created_by: PersonId,
    pub restores: Option<i64>,
}

/// Whose a document is.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    Device(DeviceId),
    Named(&'a str),
}

/// Makes a document and its first version. `None` when the tenant has [`DOCUMENTS_MAX`] already, or no such device; fails on [`TAKEN`].
pub async fn configuration_create_in_txn(
    connection: &mut PgConnection,
    id: Uuid,
    tenant: TenantId,
    whose: Whose<'_>,
    new: &NewVersion<'_>,
) -> Result<Option<()>, StoreError> {
    let (device, name) = match whose {
        Whose::Device(device) => (Some(device.as_uuid()), None),
        Whose::Named(name) => (None, Some(name)),
    };
    let made = sqlx::query!(
        "insert into configuration_documents (id, tenant_id, device_id, name)
         select $1, $2, $3, $4
          where case when $3::uuid is not null then exists (select from devices d where d.id = $3 and d.tenant_id = $2 and d.state = 'active')
                     else (select count(*) from configuration_documents c
                             join configuration_versions v on v.document_id = c.id and v.version = c.version
                            where c.tenant_id = $2 and c.name is not null and v.content <> '{}') < $5 end",
        id,
        tenant.as_uuid(),
        device,
        name,
        DOCUMENTS_MAX
    );
    if made.execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(None);
    }
    version_insert(connection, id, 1, new).await?;
    Ok(Some(()))
}

/// Makes the next version of a document. `None` when it is not `before` that is the newest.
pub async fn configuration_change_in_txn(
    connection: &mut PgConnection,
    id: Uuid,
    before: i64,
    new: &NewVersion<'_>,
) -> Result<Option<()>, StoreError> {
    let moved = sqlx::query!(
        "update configuration_documents set version = version + 1 where id = $1 and version = $2",
        id,
        before
    );
    if moved.execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(None);
    }
    version_insert(connection, id, before + 1, new).await?;
    Ok(Some(()))
}

async fn version_insert(
    connection: &mut PgConnection,
    id: Uuid,
    version: i64,
    new: &NewVersion<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into configuration_versions (document_id, tenant_id, version, content, selector_text, selector, priority, reason,
                                             created_by, restores)
         select c.id, c.tenant_id, $2, $3, $4, $5, $6, $7, $8, $9 from configuration_documents c where c.id = $1",
        id,
        version,
        new.content,
        new.selector.map(ToString::to_string),
        new.selector.map(Json) as _,
        new.priority,
        new.reason,
        new.created_by.as_uuid(),
        new.restores
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What the selector of a version means.
pub async fn configuration_selector(
    connection: &mut PgConnection,
    id: Uuid,
    version: i64,
) -> Result<Option<Selector>, StoreError> {
    let selector = sqlx::query_scalar!(
        r#"select selector as "selector: Json<Selector>" from configuration_versions where document_id = $1 and version = $2"#,
        id,
        version
    );
    Ok(selector.fetch_optional(connection).await?.flatten().map(|selector| selector.0))
}

/// The schema of a tenant. `None`: there is no such tenant.
pub async fn configuration_schema_show(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<ConfigurationSchema>, StoreError> {
    let row = sqlx::query!(
        r#"select t.id, s.version as "version?", s.content as "content?", s.set_by as "set_by?", s.set_at as "set_at?"
             from tenants t left join configuration_schemas s on s.tenant_id = t.id
            where t.id = $1 and not t.internal"#,
        tenant.as_uuid()
    );
    let Some(row) = row.fetch_optional(connection).await? else { return Ok(None) };
    let schema = row.content.map_or(Ok(Value::Object(Object::new())), |content| serde_json::from_str(&content));
    Ok(Some(ConfigurationSchema {
        tenant_id: row.id,
        version: row.version.unwrap_or(0),
        schema: schema.map_err(|_| StoreError::Inconsistent { table: "configuration_schemas", column: "content" })?,
        set_by: row.set_by,
        set_at: row.set_at,
    }))
}

pub async fn configuration_schema_set_in_txn(
    connection: &mut PgConnection,
    tenant: TenantId,
    schema: &Value,
    by: PersonId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into configuration_schemas as s (tenant_id, content, set_by) values ($1, $2, $3)
             on conflict (tenant_id) do update
            set version = s.version + 1, content = excluded.content, set_by = excluded.set_by, set_at = clock_timestamp()",
        tenant.as_uuid(),
        schema.to_string(),
        by.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whose configuration may be another one.
#[derive(Clone, Debug)]
pub enum Affected {
    Device(DeviceId),
    /// All that one of these means.
    Selected(Vec<Selector>),
    All,
    /// Some of those whose labels have changed. What they cannot have is written down, and they keep what they have.
    Stale,
}

/// Makes what the tenant's documents come to now what these devices are to have, under [`configuration_lock_in_txn`]. Fails on the first
/// device that cannot have it, and then the transaction must not be committed; but see [`Affected::Stale`].
pub async fn configuration_settle_in_txn(
    connection: &mut PgConnection,
    tenant: TenantId,
    affected: &Affected,
) -> Result<Result<(), UnfitDevice>, StoreError> {
    let documents = Arc::new(documents(connection, tenant).await?);
    let schema = match configuration_schema_show(connection, tenant).await? {
        // It was judged when it was set.
        Some(shown) if shown.version > 0 => Some(
            Schema::compile(&shown.schema)
                .map_err(|_| StoreError::Inconsistent { table: "configuration_schemas", column: "content" })?,
        ),
        Some(_) | None => None,
    };
    let schema = Arc::new(schema);
    let mut after = Uuid::nil();
    loop {
        let devices = devices(connection, tenant, affected, after).await?;
        let Some(last) = devices.last() else { return Ok(Ok(())) };
        after = last.id;
        let (documents, schema) = (Arc::clone(&documents), Arc::clone(&schema));
        // It may take some time, and others use this thread.
        let fitted = spawn_blocking(move || fit(devices, &documents, schema.as_ref().as_ref())).await;
        let Fitted { mut changes, unfit } =
            fitted.map_err(|_| StoreError::Inconsistent { table: "configuration_versions", column: "content" })??;
        for (device, name, why) in unfit {
            if !matches!(affected, Affected::Stale) {
                let device = DeviceId::from_uuid(device);
                return Ok(Err(UnfitDevice { tenant, device, name, why }));
            }
            changes.push(Change { device, content: None, invalid: Some(why.to_string()) });
        }
        write(connection, tenant, &changes).await?;
        if matches!(affected, Affected::Stale) {
            // The others are another transaction's: one of all of them could take too long to ever come to its end.
            return Ok(Ok(()));
        }
    }
}

/// Documents for devices by labels.
async fn documents(connection: &mut PgConnection, tenant: TenantId) -> Result<HashMap<Uuid, Object>, StoreError> {
    let rows = sqlx::query!(
        "select c.id, v.content from configuration_documents c
           join configuration_versions v on v.document_id = c.id and v.version = c.version
          where c.tenant_id = $1 and c.name is not null and v.content <> '{}'",
        tenant.as_uuid()
    );
    rows.fetch_all(connection).await?.into_iter().map(|row| Ok((row.id, read(&row.content)?))).collect()
}

/// A device, and what its configuration is merged from.
struct Target {
    id: Uuid,
    name: String,
    sha256: Option<Vec<u8>>,
    is_marked: bool,
    documents: Vec<Uuid>,
    own: Option<String>,
}

async fn devices(
    connection: &mut PgConnection,
    tenant: TenantId,
    affected: &Affected,
    after: Uuid,
) -> Result<Vec<Target>, StoreError> {
    let device = if let Affected::Device(device) = affected { Some(device.as_uuid()) } else { None };
    let selectors = if let Affected::Selected(selectors) = affected { Some(Json(selectors)) } else { None };
    let targets = sqlx::query_as!(
        Target,
        r#"select d.id, d.name, f.sha256 as "sha256?", coalesce(f.is_stale or f.invalid is not null, false) as "is_marked!",
                  array(select c.id from configuration_documents c
                          join configuration_versions v on v.document_id = c.id and v.version = c.version
                         where c.tenant_id = d.tenant_id and c.name is not null and v.content <> '{}' and labels_match(d.labels, v.selector)
                         order by v.priority, c.name collate "C") as "documents!",
                  (select v.content from configuration_documents c
                     join configuration_versions v on v.document_id = c.id and v.version = c.version
                    where c.device_id = d.id) as "own?"
             from devices d left join device_configurations f on f.device_id = d.id
            where d.tenant_id = $1 and d.state = 'active' and d.id > $2
              and ($3::uuid is null or d.id = $3)
              and ($4::jsonb is null or exists (select from jsonb_array_elements($4) s where labels_match(d.labels, s.value)))
              and (not $5 or f.is_stale)
            order by d.id limit $6"#,
        tenant.as_uuid(),
        after,
        device,
        selectors as _,
        matches!(affected, Affected::Stale),
        DEVICES_PER_LOOK
    );
    Ok(targets.fetch_all(connection).await?)
}

struct Change {
    device: Uuid,
    /// With its hash. `None`: what it was.
    content: Option<(Arc<str>, Vec<u8>)>,
    invalid: Option<String>,
}

#[derive(Default)]
struct Fitted {
    changes: Vec<Change>,
    unfit: Vec<(Uuid, String, Unfit)>,
}

/// What documents come to, with its hash.
type Merged = Result<(Arc<str>, Vec<u8>), Unfit>;

fn fit(targets: Vec<Target>, documents: &HashMap<Uuid, Object>, schema: Option<&Schema>) -> Result<Fitted, StoreError> {
    let mut fitted = Fitted::default();
    // Most devices have the same documents, and none of their own.
    let mut known: HashMap<Vec<Uuid>, Merged> = HashMap::new();
    for target in targets {
        let own = target.own.as_deref().map(read).transpose()?;
        let merged = || {
            let parts = target.documents.iter().filter_map(|id| documents.get(id)).chain(own.as_ref());
            effective(parts, schema).map(|text| {
                let hash = digest(&SHA256, text.as_bytes()).as_ref().to_vec();
                (Arc::from(text), hash)
            })
        };
        let content = match own {
            Some(_) => merged(),
            None => known.entry(target.documents.clone()).or_insert_with(merged).clone(),
        };
        match content {
            Err(why) => fitted.unfit.push((target.id, target.name, why)),
            // A device that was never to have anything goes on so.
            Ok((text, _)) if target.sha256.is_none() && &*text == "{}" => {
                if target.is_marked {
                    fitted.changes.push(Change { device: target.id, content: None, invalid: None });
                }
            }
            Ok((_, hash)) if target.sha256.as_ref() == Some(&hash) => {
                if target.is_marked {
                    fitted.changes.push(Change { device: target.id, content: None, invalid: None });
                }
            }
            Ok(content) => fitted.changes.push(Change { device: target.id, content: Some(content), invalid: None }),
        }
    }
    Ok(fitted)
}

async fn write(connection: &mut PgConnection, tenant: TenantId, changes: &[Change]) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    let contents: HashMap<&[u8], &str> =
        changes.iter().filter_map(|change| change.content.as_ref()).map(|(text, hash)| (&hash[..], &**text)).collect();
    let (hashes, texts): (Vec<Vec<u8>>, Vec<String>) =
        contents.into_iter().map(|(hash, text)| (hash.to_vec(), text.to_owned())).unzip();
    sqlx::query!(
        "insert into configuration_contents (tenant_id, sha256, content)
         select $1, c.sha256, c.content from unnest($2::bytea[], $3::text[]) as c(sha256, content)
             on conflict do nothing",
        tenant.as_uuid(),
        &hashes,
        &texts
    )
    .execute(&mut *connection)
    .await?;
    let devices: Vec<Uuid> = changes.iter().map(|change| change.device).collect();
    let wanted: Vec<Option<Vec<u8>>> =
        changes.iter().map(|change| change.content.as_ref().map(|(_, hash)| hash.clone())).collect();
    let invalid: Vec<Option<String>> = changes.iter().map(|change| change.invalid.clone()).collect();
    sqlx::query!(
        "insert into device_configurations as f (device_id, tenant_id, version, sha256, invalid, invalid_at)
         select w.device_id, $1, case when w.sha256 is null then 0 else 1 end, w.sha256, w.invalid,
                case when w.invalid is not null then clock_timestamp() end
           from unnest($2::uuid[], $3::bytea[], $4::text[]) as w(device_id, sha256, invalid)
          order by w.device_id
             on conflict (device_id) do update
            set is_stale = false, sha256 = coalesce(excluded.sha256, f.sha256),
                -- Never one that the device has had before, whatever became of this row since.
                version = case when excluded.sha256 is null then f.version
                               else least(greatest(f.version, f.held_version, f.reported_version) + 1, 9007199254740991) end,
                desired_at = case when excluded.sha256 is null then f.desired_at else clock_timestamp() end,
                invalid = excluded.invalid, invalid_at = excluded.invalid_at",
        tenant.as_uuid(),
        &devices,
        &wanted as _,
        &invalid as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What is written down of a device, when it comes.
#[derive(Clone, Debug, Deserialize)]
pub struct ConfigurationKnown {
    version: i64,
    sha256: Option<String>,
    is_stale: bool,
    held_version: i64,
    held_sha256: Option<String>,
    applied_version: i64,
    reported_version: i64,
    error: Option<String>,
}

impl ConfigurationKnown {
    /// Whether nobody has looked yet what its labels bring.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// Whether there is something to write down of what the device says, or to give it.
    #[must_use]
    pub fn needs_look(&self, told: &ConfigurationTold) -> bool {
        let held = HEXLOWER.encode(&told.held_sha256);
        let is_known = self.held_version == told.held_version
            && self.held_sha256.as_deref().unwrap_or_default() == held
            && self.applied_version == told.applied_version
            && self.reported_version == told.reported_version
            && self.error.as_deref().unwrap_or_default() == told.error;
        let has_it = self.version == told.held_version && self.sha256.as_deref().unwrap_or_default() == held;
        self.is_stale || !is_known || self.version > 0 && !has_it
    }
}

/// Writes down what a device says of its configuration; that it cannot apply it comes with an entry in the audit log. Nothing happens if
/// the device has a newer link than the one that it said so over, or after.
///
/// A device that has a version of which this database does not know, as after it was restored, gets a newer one.
pub async fn configuration_tell(
    connection: &mut PgConnection,
    reporter: LinkKey,
    told: &ConfigurationTold,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"with before as (
               select f.* from device_configurations f
                where f.device_id = $1 and coalesce((select l.epoch from links l where l.device_id = f.device_id), 0) = $2
                  for no key update
           ),
           told as (
               update device_configurations f
                  set held_version = $3, held_sha256 = nullif($4::bytea, ''), applied_version = $5, reported_version = $6, error = nullif($7, ''),
                      reported_at = case when (b.applied_version, b.reported_version, b.error) is distinct from ($5, $6, nullif($7, ''))
                                         then clock_timestamp() else b.reported_at end,
                      version = case when b.version > 0 and ($3 > b.version or $3 = b.version and b.sha256 <> $4::bytea)
                                     then least(greatest(b.version, $3, $6) + 1, 9007199254740991) else b.version end
                 from before b
                where f.device_id = b.device_id
               returning f.*
           )
           select audit_append(t.tenant_id, jsonb_build_object('kind', 'device', 'id', d.id, 'name', d.name),
                               'device.configuration_failed', jsonb_build_object('kind', 'device', 'id', d.id),
                               jsonb_build_object('version', t.reported_version, 'error', t.error)) as audited
             from told t join before b on true join devices d on d.id = t.device_id
            where t.error is not null and (t.reported_version, t.error) is distinct from (b.reported_version, b.error)"#,
        reporter.device_id.as_uuid(),
        reporter.epoch.cast_signed(),
        told.held_version,
        told.held_sha256,
        told.applied_version,
        told.reported_version,
        told.error
    )
    .fetch_optional(connection)
    .await?;
    Ok(())
}

/// Tenants that have devices whose labels have changed.
pub async fn configuration_stale(
    connection: &mut PgConnection,
    tenants: Option<&[Uuid]>,
) -> Result<Vec<TenantId>, StoreError> {
    let tenants = sqlx::query_scalar!(
        "select distinct f.tenant_id from device_configurations f join devices d on d.id = f.device_id and d.state = 'active'
          where f.is_stale and ($1::uuid[] is null or f.tenant_id = any ($1))",
        tenants
    );
    Ok(tenants.fetch_all(connection).await?.into_iter().map(TenantId::from_uuid).collect())
}

/// A configuration for a linked device.
#[derive(Clone, Debug)]
pub struct DueConfiguration {
    pub link: LinkKey,
    pub configuration: Configuration,
}

/// What linked devices of this node are to be given, by device after the one named. `tenants`: only theirs.
pub async fn configuration_due(
    connection: &mut PgConnection,
    node: &str,
    tenants: Option<&[Uuid]>,
    after: Uuid,
) -> Result<Vec<DueConfiguration>, StoreError> {
    let rows = sqlx::query!(
        r#"select f.device_id, l.epoch, f.version, c.sha256, c.content
             from device_configurations f
             join links l on l.device_id = f.device_id and l.node = $1 and l.closed_at is null and l.has_agent
                         and $2 = any (l.capabilities)
             join configuration_contents c on c.tenant_id = f.tenant_id and c.sha256 = f.sha256
            where f.version > greatest(f.held_version, f.reported_version)
              and ($3::uuid[] is null or f.tenant_id = any ($3)) and f.device_id > $4
            order by f.device_id limit $5"#,
        node,
        CAPABILITY,
        tenants,
        after,
        DUE_MAX
    );
    let due = rows.fetch_all(connection).await?.into_iter().map(|row| DueConfiguration {
        link: LinkKey { device_id: DeviceId::from_uuid(row.device_id), epoch: row.epoch.unsigned_abs() },
        configuration: to_wire(row.version, row.sha256, row.content),
    });
    Ok(due.collect())
}

/// What a device that polls is to be given.
pub async fn configuration_due_polled(
    connection: &mut PgConnection,
    device: DeviceId,
) -> Result<Option<Configuration>, StoreError> {
    let row = sqlx::query!(
        "select f.version, c.sha256, c.content
           from device_configurations f
           join configuration_contents c on c.tenant_id = f.tenant_id and c.sha256 = f.sha256
          where f.device_id = $1 and f.version > greatest(f.held_version, f.reported_version)",
        device.as_uuid()
    );
    Ok(row.fetch_optional(connection).await?.map(|row| to_wire(row.version, row.sha256, row.content)))
}

fn to_wire(version: i64, sha256: Vec<u8>, content: String) -> Configuration {
    Configuration { version: version.unsigned_abs(), document_json: Bytes::from(content), sha256: sha256.into() }
}

/// What a device is to have, and how it stands. `None`: there is no such device.
pub async fn device_configuration_show(
    connection: &mut PgConnection,
    device: DeviceId,
) -> Result<Option<DeviceConfiguration>, StoreError> {
    let row = sqlx::query!(
        r#"select d.id, d.enrolled_at, f.version as "version?", f.applied_version as "applied_version?",
                  case when f.device_id is not null then configuration_state(f) end as "state?",
                  coalesce(f.invalid, case when f.reported_version >= f.version then f.error end) as "error?",
                  case when f.device_id is not null then configuration_since(f) end as "since?",
                  encode(f.sha256, 'hex') as "sha256?", c.content as "content?"
             from devices d
             join tenants t on t.id = d.tenant_id and not t.internal
             left join device_configurations f on f.device_id = d.id
             left join configuration_contents c on c.tenant_id = f.tenant_id and c.sha256 = f.sha256
            where d.id = $1"#,
        device.as_uuid()
    );
    let Some(row) = row.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let documents = sqlx::query_as!(
        ConfigurationSource,
        r#"select c.id, c.name, c.version
             from devices d
             join configuration_documents c on c.tenant_id = d.tenant_id and (c.device_id = d.id or c.name is not null)
             join configuration_versions v on v.document_id = c.id and v.version = c.version
            where d.id = $1 and v.content <> '{}' and (c.device_id is not null or labels_match(d.labels, v.selector))
            order by c.device_id is not null, v.priority, c.name collate "C""#,
        device.as_uuid()
    );
    Ok(Some(DeviceConfiguration {
        device_id: row.id,
        standing: ConfigurationStanding {
            desired_version: row.version.unwrap_or(0),
            applied_version: row.applied_version.unwrap_or(0),
            state: row.state.unwrap_or_else(|| "none".to_owned()),
            error: row.error,
            since: row.since.unwrap_or(row.enrolled_at),
        },
        sha256: row.sha256,
        content: Value::Object(row.content.as_deref().map(read).transpose()?.unwrap_or_default()),
        documents: documents.fetch_all(connection).await?,
    }))
}

/// Devices that do not have what they are to have, or whose applications have not said so: that changed last come first.
pub async fn configuration_drift(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    state: Option<&str>,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<ConfigurationDrift>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let rows = sqlx::query!(
        r#"select d.id, d.name, d.tenant_id, f.version, f.applied_version, configuration_state(f) as "state!",
                  coalesce(f.invalid, case when f.reported_version >= f.version then f.error end) as "error?",
                  configuration_since(f) as "since!"
             from device_configurations f join devices d on d.id = f.device_id and d.state = 'active'
            where configuration_state(f) in ('pending', 'failed', 'invalid')
              and ($1::uuid is null or f.tenant_id = $1) and ($2::text is null or configuration_state(f) = $2)
              and ($3::timestamptz is null or (configuration_since(f), d.id) < ($3, $4::uuid))
            order by configuration_since(f) desc, d.id desc limit $5"#,
        tenant.map(TenantId::as_uuid),
        state,
        after_time,
        after_id,
        limit
    );
    let drift = rows.fetch_all(connection).await?.into_iter().map(|row| ConfigurationDrift {
        device_id: row.id,
        device_name: row.name,
        tenant_id: row.tenant_id,
        standing: ConfigurationStanding {
            desired_version: row.version,
            applied_version: row.applied_version,
            state: row.state,
            error: row.error,
            since: row.since,
        },
    });
    Ok(drift.collect())
}
