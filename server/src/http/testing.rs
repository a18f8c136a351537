//! What the tests of the endpoints start from: a database with two tenants, somebody of each role, a device each, and the API
//! in front of it, acting as the same database role as the real server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, TenantId, TokenId};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) use super::problem::Kind;
use super::{Context, Settings, Statements, router};
use crate::bus::Bus;
use crate::metrics::Metrics;
use crate::model::new_id;
use crate::model::openvpn_profile::Remote;
use crate::model::person::{PersonKind, Role};
use crate::notice::Notices;
use crate::pki::statement::tests::SIGNER;
use crate::secret::{Purpose, Token};
use crate::storage_key::StorageKey;
use crate::store::person::person_create;
use crate::store::tenant::tenant_create;
use crate::store::token::{NewToken, token_create};
use crate::store::{Store, Visibility};

/// What a scene encrypts with.
pub(crate) const STORAGE_KEY: [u8; 32] = [7; 32];

pub(crate) struct Scene {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) context: Context,
    pub(crate) stopping: CancellationToken,
    /// The database as its superuser, for what the server may not do.
    pub(crate) root: PgPool,
    pub(crate) tenant: TenantId,
    pub(crate) device: DeviceId,
    pub(crate) admin: Somebody,
    pub(crate) operator: Somebody,
    /// Another operator.
    pub(crate) colleague: Somebody,
    /// A user of `tenant`.
    pub(crate) customer: Somebody,
    pub(crate) other_tenant: TenantId,
    pub(crate) other_device: DeviceId,
    /// A user of `other_tenant`.
    pub(crate) other_customer: Somebody,
    router: Router,
}

#[derive(Clone)]
pub(crate) struct Somebody {
    pub(crate) id: PersonId,
    pub(crate) token_id: TokenId,
    pub(crate) token: String,
}

impl Scene {
    pub(crate) async fn new(pool: PgPoolOptions, database: PgConnectOptions) -> Self {
        // No node is there that would open ports.
        let settings = Settings { opening_within: Duration::from_millis(1), ..Settings::default() };
        Self::with_settings(pool, database, settings).await
    }

    pub(crate) async fn with_settings(pool: PgPoolOptions, database: PgConnectOptions, settings: Settings) -> Self {
        let root = pool.clone().connect_with(database.clone()).await.unwrap();
        let store = Store::new(pool, database);
        let (tenant, other_tenant) = (create_tenant(&store, "Hotel").await, create_tenant(&store, "Clinic").await);
        let (bus, stopping) = (Bus::new(), CancellationToken::new());
        let context = Context::new(store.clone(), bus.clone(), Arc::new(Metrics::new()), settings, stopping.clone())
            .with_statements(statements())
            .with_storage_key(Arc::new(StorageKey::from_bytes(STORAGE_KEY)))
            .with_notices(notices());
        let scene = Self {
            admin: create_somebody(&store, "root", Role::Admin, None).await,
            operator: create_somebody(&store, "olga", Role::Operator, None).await,
            colleague: create_somebody(&store, "oskar", Role::Operator, None).await,
            customer: create_somebody(&store, "tina", Role::Tenant, Some(tenant)).await,
            other_customer: create_somebody(&store, "tom", Role::Tenant, Some(other_tenant)).await,
            device: DeviceId::from_uuid(new_id()),
            other_device: DeviceId::from_uuid(new_id()),
            router: router(context.clone()),
            store,
            bus,
            context,
            stopping,
            root,
            tenant,
            other_tenant,
        };
        scene.insert_device(scene.device, tenant, "lobby", json!({"site": "north"})).await;
        scene.insert_device(scene.other_device, other_tenant, "ward", json!({"site": "north"})).await;
        scene
    }

    /// A device as enrollment leaves it.
    pub(crate) async fn insert_device(&self, id: DeviceId, tenant: TenantId, name: &str, labels: Value) {
        sqlx::query("insert into devices (id, tenant_id, name, labels) values ($1, $2, $3, $4)")
            .bind(id.as_uuid())
            .bind(tenant.as_uuid())
            .bind(name)
            .bind(labels)
            .execute(&self.root)
            .await
            .unwrap();
        sqlx::query(
            "insert into certificates (serial, device_id, tenant_id, state, key_hash, der, not_after)
             values ($1, $2, $3, 'active', sha256('key'), 'der', clock_timestamp() + interval '90 days')",
        )
        .bind(&id.as_uuid().as_bytes()[..])
        .bind(id.as_uuid())
        .bind(tenant.as_uuid())
        .execute(&self.root)
        .await
        .unwrap();
    }

    /// Gives the device a live link.
    pub(crate) async fn link(&self, device: DeviceId) {
        sqlx::query(
            "insert into links (device_id, tenant_id, epoch, node, transport, certificate_serial, remote_address, boot_id,
                                agent, os, hostname, clock_offset_ms, capabilities)
             select id, tenant_id, 1, 'node-1', 'websocket', uuid_send(id), '192.0.2.7', 'boot-1', 'agent/1', 'Debian', 'gw', 12,
                    '{metrics.collect,device.reboot}'
               from devices where id = $1
             on conflict (device_id) do update
                set epoch = links.epoch + 1, closed_at = null, close_reason = null, transport = excluded.transport,
                    connected_at = clock_timestamp(),
                    tunnel_id = null, has_agent = true, capabilities = excluded.capabilities",
        )
        .bind(device.as_uuid())
        .execute(&self.root)
        .await
        .unwrap();
    }

    /// Gives the device a live tunnel without an agent.
    pub(crate) async fn tunnel(&self, device: DeviceId) {
        let id = new_id();
        self.link(device).await;
        sqlx::query(
            "update links set transport = 'openvpn', tunnel_id = $2, has_agent = false, boot_id = '', agent = '', os = '',
                              hostname = '', clock_offset_ms = 0, capabilities = '{}'
              where device_id = $1",
        )
        .bind(device.as_uuid())
        .bind(id)
        .execute(&self.root)
        .await
        .unwrap();
        sqlx::query(
            "insert into tunnels (device_id, tenant_id, id, ipv4, ipv6, client, platform, cipher,
                                  packets_in, packets_out, bytes_in, bytes_out, dropped)
             select id, tenant_id, $2, '100.64.0.2', 'fd00:1:2::2', '2.6.14', 'linux', 'AES-256-GCM', 3, 4, 252, 336, 1
               from devices where id = $1
             on conflict (device_id) do update set id = excluded.id",
        )
        .bind(device.as_uuid())
        .bind(id)
        .execute(&self.root)
        .await
        .unwrap();
    }

    /// Lets the device poll now.
    pub(crate) async fn poll(&self, device: DeviceId) {
        sqlx::query(
            r#"insert into polls (device_id, tenant_id, polled_at, interval_seconds, next_by, silent_at, certificate_serial, node,
                                  remote_address, boot_id, agent, os, hostname, clock_offset_ms, capabilities, running)
               select id, tenant_id, clock_timestamp(), 900, clock_timestamp() + interval '1020 s',
                      clock_timestamp() + interval '2040 s', uuid_send(id), 'node-1', '192.0.2.7', 'boot-1', 'agent/1', 'Debian', 'gw',
                      12, '{metrics.collect}', '[{"name": "nginx", "state": "active", "kind": "service"}]'
                 from devices where id = $1
               on conflict (device_id) do update
                  set polled_at = excluded.polled_at, next_by = excluded.next_by, silent_at = excluded.silent_at"#,
        )
        .bind(device.as_uuid())
        .execute(&self.root)
        .await
        .unwrap();
    }

    /// Ends the link of the device.
    pub(crate) async fn unlink(&self, device: DeviceId) {
        sqlx::query("update links set closed_at = clock_timestamp(), close_reason = 'gone' where device_id = $1")
            .bind(device.as_uuid())
            .execute(&self.root)
            .await
            .unwrap();
    }

    /// Has others take a node to be gone.
    pub(crate) async fn node_is_gone(&self, name: &str) {
        sqlx::query(
            "insert into nodes (name, instance, life, version, lease, leased_until, gone_at)
             values ($1, gen_random_uuid(), gen_random_uuid(), '1', '15 s', now(), now())
             on conflict (name) do update set gone_at = excluded.gone_at",
        )
        .bind(name)
        .execute(&self.root)
        .await
        .unwrap();
    }

    /// How many wait for a row, a transaction or a lock that somebody else has.
    pub(crate) async fn waiting(&self) -> i64 {
        let waiting = "select count(*) from pg_locks l join pg_stat_activity a on a.pid = l.pid
                        where not l.granted and a.datname = current_database()";
        sqlx::query_scalar(waiting).fetch_one(&self.root).await.unwrap()
    }

    /// Runs a statement as the superuser, with one id.
    pub(crate) async fn sql(&self, statement: &'static str, id: Uuid) {
        sqlx::query(statement).bind(id).execute(&self.root).await.unwrap();
    }

    /// A grant by the customer for its device, through the API, with what `changes` says otherwise.
    pub(crate) async fn grant(&self, changes: Value) -> GrantId {
        let mut body = json!({
            "reason": "the lobby is offline", "scopes": ["metrics:read", "service:restart", "device:reboot", "device:shutdown"],
            "device_ids": [self.device.to_string()], "duration_seconds": 900,
        });
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let grant = self.post("/grants").by(&self.customer).json(body).send().await.expect(StatusCode::CREATED);
        grant["id"].as_str().unwrap().parse().unwrap()
    }

    /// The operator's request for access to the device, through the API.
    pub(crate) async fn access_request(&self, changes: Value) -> Uuid {
        let mut body = json!({
            "reason": "the lobby is offline", "scopes": ["device:reboot", "metrics:read"],
            "device_ids": [self.device.to_string()], "access_seconds": 900,
        });
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let request = self.post("/access-requests").by(&self.operator).json(body).send().await;
        request.expect(StatusCode::CREATED)["id"].as_str().unwrap().parse().unwrap()
    }

    /// A policy of the customer for all of its devices at all hours, through the API.
    pub(crate) async fn access_policy(&self, changes: Value) -> Uuid {
        let mut body = json!({"name": "night watch", "scopes": ["device:reboot"], "max_seconds": 600});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let policy = self.post("/access-policies").by(&self.customer).json(body).send().await;
        policy.expect(StatusCode::CREATED)["id"].as_str().unwrap().parse().unwrap()
    }

    /// One more of the tenant's people.
    pub(crate) async fn second_customer(&self) -> Somebody {
        create_somebody(&self.store, "theo", Role::Tenant, Some(self.tenant)).await
    }

    /// Lets two of the tenant's people be needed from now on.
    pub(crate) async fn need_two(&self) {
        self.sql("update tenants set approvals_needed = 2 where id = $1", self.tenant.as_uuid()).await;
    }

    /// A command by the operator to the device, through the API; a grant must be there.
    pub(crate) async fn command(&self, changes: Value) -> Uuid {
        let mut body = json!({"kind": "device.reboot", "reason": "as agreed", "queue_for_seconds": 600});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let path = format!("/devices/{}/commands", self.device);
        let command = self.post(&path).by(&self.operator).json(body).send().await.expect(StatusCode::CREATED);
        command["id"].as_str().unwrap().parse().unwrap()
    }

    /// An opening by the operator of a port of the device, through the API; a grant and a tunnel must be there.
    pub(crate) async fn opening(&self, changes: Value) -> Uuid {
        let mut body = json!({"port": 22, "reason": "as agreed"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let path = format!("/devices/{}/openings", self.device);
        let opening = self.post(&path).by(&self.operator).json(body).send().await.expect(StatusCode::CREATED);
        opening["id"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Call {
        self.call(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> Call {
        self.call(Method::POST, path)
    }

    pub(crate) fn patch(&self, path: &str) -> Call {
        self.call(Method::PATCH, path)
    }

    /// `path` is below `/api/v1`.
    pub(crate) fn call(&self, method: Method, path: &str) -> Call {
        self.call_raw(method, &format!("/api/v1{path}"))
    }

    pub(crate) fn call_raw(&self, method: Method, uri: &str) -> Call {
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        Call { router: self.router.clone(), request }
    }

    /// The same scene with OpenVPN clients.
    pub(crate) fn with_openvpn(self, remote: Remote) -> Self {
        let context = self.context.clone().with_openvpn(remote);
        Self { router: router(context.clone()), context, ..self }
    }

    /// The same scene behind other routes.
    pub(crate) fn behind(self, router: Router) -> Self {
        Self { router, ..self }
    }

    /// The actions in a tenant's audit log, oldest first.
    pub(crate) async fn audited(&self, tenant: TenantId) -> Vec<String> {
        let actions = sqlx::query_scalar("select action from audit where tenant_id = $1 order by seq");
        actions.bind(tenant.as_uuid()).fetch_all(&self.root).await.unwrap()
    }
}

/// Makes somebody with a token that is valid for a day.
pub(crate) async fn create_somebody(store: &Store, name: &str, role: Role, tenant: Option<TenantId>) -> Somebody {
    let (id, token_id) = (PersonId::from_uuid(new_id()), TokenId::from_uuid(new_id()));
    let token = Token::generate(Purpose::Api);
    let mut transaction = store.begin(Visibility::All).await.unwrap();
    person_create(&mut transaction, id, name, role, tenant, PersonKind::Human).await.unwrap();
    let expires_in = Duration::from_secs(24 * 3600);
    let secret = token.hash();
    let new = NewToken { id: token_id, person: id, name: "test", secret, expires_in, not_after: None, scopes: None };
    token_create(&mut transaction, new).await.unwrap();
    store.commit(transaction).await.unwrap();
    Somebody { id, token_id, token: token.expose().to_owned() }
}

fn statements() -> Statements {
    Statements { signer: Arc::clone(&SIGNER.0), keep_days: 90 }
}

/// As without any configuration.
fn notices() -> Arc<Notices> {
    let key = Arc::new(StorageKey::from_bytes(STORAGE_KEY));
    // The only error is that another test did it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Arc::new(Notices::new(&crate::config::Notice::default(), key, Vec::new(), vec![8443]).unwrap())
}

async fn create_tenant(store: &Store, name: &str) -> TenantId {
    let id = TenantId::from_uuid(new_id());
    tenant_create(&mut store.connection().await.unwrap(), id, name, None).await.unwrap();
    id
}

/// A request that is being put together.
#[must_use]
pub(crate) struct Call {
    router: Router,
    request: Request<Body>,
}

impl Call {
    pub(crate) fn by(self, somebody: &Somebody) -> Self {
        self.header("authorization", &format!("Bearer {}", somebody.token))
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().append(name, value.parse().unwrap());
        self
    }

    pub(crate) fn json(self, body: Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Body>) -> Self {
        *self.request.body_mut() = body.into();
        self.header("content-type", content_type)
    }

    pub(crate) fn extension(mut self, extension: impl Clone + Send + Sync + 'static) -> Self {
        self.request.extensions_mut().insert(extension);
        self
    }

    /// The answer with its body unread.
    pub(crate) async fn open(self) -> Response {
        self.router.oneshot(self.request).await.unwrap()
    }

    pub(crate) async fn send(self) -> Answer {
        let (parts, body) = self.open().await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name} in {self:?}")).to_str().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The body, of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// The body, of an answer that must be this problem in its full shape.
    #[track_caller]
    pub(crate) fn expect_problem(&self, kind: Kind) -> Value {
        assert_eq!(self.status, kind.status(), "{}", self.text);
        assert_eq!(self.header(header::CONTENT_TYPE.as_str()), "application/problem+json");
        let body = self.json();
        assert_eq!(body["type"], format!("urn:cloudlink:problem:{}", kind.name()), "{}", self.text);
        assert_eq!(body["status"], kind.status().as_u16());
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(body["title"].is_string() && body["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        body
    }
}

/// A way to the database that can be cut.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    server: (String, u16),
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn open(server: (String, u16), port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = server.clone();
        let task = tokio::spawn(async move {
            // Dropped with the task: every connection is cut.
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let target = target.clone();
                connections.spawn(async move {
                    let mut server = TcpStream::connect(target).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, server, task }
    }

    pub(crate) async fn cut(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub(crate) async fn mend(self) -> Self {
        Self::open(self.server, self.address.port()).await
    }
}
