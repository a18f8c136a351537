//! Whether [`Tables`] do what the SQL does: the same statements to both, in any order, at times that jump, and the same answers and rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, GrantId};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres};
use tokio::time::Instant;
use uuid::Uuid;

use super::executor::Random;
use super::tables::{Clock, CommandRow, LinkRow, NodeRow, Tables, millis};
use super::{number, time_of};
use crate::http::testing::Scene;
use crate::model::command::{Instruction, State};
use crate::property::clock;
use crate::store::Visibility;
use crate::store::deadline::{Watch, deadline_sweep_in_txn};
use crate::store::dispatch::{LinkKey, dispatch_claim, dispatch_list};
use crate::store::link::{
    ClosedLink, Ended, NewLink, ProvenLink, link_close, link_close_gone, link_close_node, link_list_silent,
    link_list_superseded, link_open, link_prove,
};
use crate::store::node::{
    NewNode, Suspect, node_expire, node_join, node_leave, node_list_others, node_list_unsettled, node_renew,
};
use crate::store::transition::{Durability, Source, Transition, transition_apply};

const STATEMENTS: u64 = 1500;
const LEASE: Duration = Duration::from_secs(15);
const ROWS_MAX: i64 = 1_000;

struct Both {
    scene: Scene,
    tables: Tables,
    random: Random,
    devices: [DeviceId; 2],
    grant: GrantId,
    /// As nodes know themselves: some of them lives that are over, and some of another data directory.
    nodes: Vec<NewNode>,
    told: Vec<String>,
}

#[sqlx::test(migrations = false)]
async fn the_tables_do_what_the_sql_does(pool: PgPoolOptions, database: PgConnectOptions) {
    let seed = number("SIMULATION_SEED").unwrap_or(1);
    let mut both = Both::new(seed, pool, database).await;
    for _ in 0..STATEMENTS {
        both.pass_time().await;
        both.step().await;
        both.compare().await;
    }
}

impl Both {
    async fn new(seed: u64, pool: PgPoolOptions, database: PgConnectOptions) -> Self {
        clock::install(&database).await;
        let scene = Scene::new(pool, database).await;
        let cellar = DeviceId::from_uuid(Uuid::from_u128(7));
        scene.insert_device(cellar, scene.tenant, "cellar", json!({})).await;
        let devices = [scene.device, cellar];
        let grant = scene.grant(json!({"device_ids": devices.map(|device| device.to_string())})).await;
        let ms = "create function virtual.ms(at timestamptz) returns bigint language sql immutable
                      as $$ select (extract(epoch from at) * 1000)::bigint $$";
        sqlx::raw_sql(ms).execute(&scene.root).await.unwrap();
        let random = Random::new(seed);
        let nodes = (0..3).map(|number| life(&random, number, number as u128)).collect();
        let tables = Tables { now: clock::START / 1_000, ..Tables::default() };
        Self { scene, tables, random, devices, grant, nodes, told: Vec::new() }
    }

    async fn pass_time(&mut self) {
        let by_ms = match self.random.within(0, 40) {
            0 => self.random.within(0, 60_000).cast_signed() - 30_000,
            1 => 3_600_000,
            2 => -3_600_000,
            3..10 => 0,
            _ => self.random.within(0, 4_000).cast_signed(),
        };
        self.tables.now += by_ms;
        clock::set(&self.scene.root, self.tables.now * 1_000).await;
        // Grants are in force all the time here.
        let forth = "set session_replication_role = replica;
                     update grants set starts_at = clock_timestamp() - interval '1 minute',
                                       ends_at = clock_timestamp() + interval '10 minutes';
                     set session_replication_role = origin";
        sqlx::raw_sql(forth).execute(&self.scene.root).await.unwrap();
    }

    async fn connection(&self) -> PoolConnection<Postgres> {
        self.scene.store.connection().await.unwrap()
    }

    fn node(&self) -> NewNode {
        self.nodes[self.random.index(self.nodes.len())].clone()
    }

    fn device(&self) -> DeviceId {
        self.devices[self.random.index(self.devices.len())]
    }

    /// Of a link that there is, was, or may come to be.
    fn key(&self) -> LinkKey {
        let device_id = self.device();
        let newest = self.tables.links.get(&device_id).map_or(1, |link| link.epoch);
        LinkKey { device_id, epoch: (newest + 1).saturating_sub(self.random.within(0, 4)).max(1) }
    }

    fn command(&self) -> Option<CommandId> {
        // The last ones: the others have ended.
        let ids: Vec<CommandId> = self.tables.commands.keys().rev().take(6).copied().collect();
        (!ids.is_empty()).then(|| ids[self.random.index(ids.len())])
    }

    /// One statement, to both.
    async fn step(&mut self) {
        match self.random.within(0, 20) {
            0 => {
                let node = self.another_life();
                let sql = node_join(&mut *self.connection().await, &node).await.unwrap();
                let model = self.tables.join(&node);
                self.same("join", &node.name, sql, model);
            }
            1..4 => {
                let node = self.node();
                let gone_at = self.tables.nodes.get(&node.name).and_then(|row| row.gone_at);
                let acknowledged = gone_at.filter(|_| self.random.percent(50)).map(time_of);
                let sql = node_renew(&mut *self.connection().await, &node, None, acknowledged).await.unwrap();
                let model = self.tables.renew(&node, acknowledged);
                self.same("renew", &(node, acknowledged), sql, model);
            }
            4 | 5 => self.expire().await,
            6 if self.random.percent(30) => {
                let node = self.node();
                node_leave(&mut *self.connection().await, &node).await.unwrap();
                self.tables.leave(&node);
            }
            6 | 7 => {
                let sql = node_list_unsettled(&mut *self.connection().await).await.unwrap();
                let model = self.tables.unsettled();
                self.same("unsettled", &(), sql, model);
            }
            8 => {
                let name = self.node().name;
                let rows_max = self.random.within(1, 3);
                let sql = link_close_gone(&mut *self.connection().await, &name, rows_max.cast_signed()).await.unwrap();
                let model = self.tables.close_gone(&name, rows_max);
                self.same("close_gone", &name, sql, model);
                if self.random.percent(30) {
                    let sql = link_close_node(&mut *self.connection().await, &name, "lost", ROWS_MAX).await.unwrap();
                    let model = self.tables.close_node(&name, u64::MAX);
                    self.same("close_node", &name, sql, model);
                }
            }
            9 | 10 => self.open().await,
            11 => {
                let (key, is_loss) = (self.key(), self.random.percent(50));
                let ended = Ended::Link(key.epoch);
                let closed = [ClosedLink { device_id: key.device_id, ended, reason: "lost", is_loss }];
                let sql = link_close(&mut *self.connection().await, &closed).await.unwrap();
                let model = self.tables.close(&closed);
                self.same("close", &key, sql, model);
            }
            12 => self.prove().await,
            13 => {
                let (name, keys) = (self.node().name, [self.key()]);
                let sql = link_list_superseded(&mut *self.connection().await, &name, &keys).await.unwrap();
                let model = self.tables.superseded(&name, &keys);
                self.same("superseded", &(name, keys), sql, model);
            }
            14 => self.create().await,
            15 | 16 => self.claim().await,
            17 | 18 => self.apply().await,
            _ => self.sweep().await,
        }
    }

    /// Of a node that starts, which is now and then another data directory.
    fn another_life(&mut self) -> NewNode {
        let number = self.random.index(3);
        let instance = if self.random.percent(20) { 99 } else { number as u128 };
        let node = life(&self.random, number, instance);
        let place = self.random.index(self.nodes.len());
        self.nodes[place] = node.clone();
        node
    }

    async fn expire(&mut self) {
        let node = self.node();
        let sql = node_list_others(&mut *self.connection().await, &node.name).await.unwrap();
        let model = self.tables.others(&node.name);
        self.same("others", &node.name, sql.clone(), model);
        let is_late = self.random.percent(20);
        let suspects: Vec<Suspect> = sql
            .into_iter()
            .map(|other| Suspect {
                name: other.name,
                renewed_at: other.renewed_at - Duration::from_millis(is_late.into()),
            })
            .collect();
        let sql = node_expire(&mut *self.connection().await, &node, &suspects).await.unwrap();
        let model = self.tables.expire(&node, &suspects);
        self.same("expire", &(node, suspects), sql.into_iter().collect::<BTreeSet<_>>(), model.into_iter().collect());
    }

    async fn open(&mut self) {
        let (device_id, node) = (self.device(), self.node().name);
        let link = NewLink {
            device_id,
            tunnel_id: None,
            has_agent: true,
            tunnel: None,
            certificate_serial: device_id.as_uuid().simple().to_string(),
            node: node.clone(),
            transport: "websocket",
            remote_address: [192, 0, 2, 7].into(),
            boot_id: "boot".to_owned(),
            agent: String::new(),
            os: String::new(),
            hostname: String::new(),
            clock_offset_ms: 0,
            capabilities: Vec::new(),
            transport_failures: Vec::new(),
            boot_hint: None,
        };
        let mut opened = link_open(&mut *self.connection().await, &[link]).await.unwrap();
        let opened = opened.pop().expect("the device may link");
        let live_before = opened.previous.filter(|previous| previous.machine.was_live).map(|previous| previous.node);
        let model = self.tables.open(&node, device_id);
        let sql = (opened.epoch, opened.has_open_commands, live_before);
        self.same("open", &(node, device_id), sql, (model.epoch, model.has_open_commands, model.live_before));
    }

    async fn prove(&mut self) {
        let (key, heard_ms_ago) = (self.key(), self.random.within(0, 40_000));
        let proven = [ProvenLink { device_id: key.device_id, epoch: key.epoch, tunnel_id: None, heard_ms_ago }];
        link_prove(&mut *self.connection().await, &proven).await.unwrap();
        self.tables.prove(&proven);
        let (name, silent_for) = (self.node().name, Duration::from_secs(self.random.within(0, 40)));
        let mut sql = link_list_silent(&mut *self.connection().await, &name, silent_for).await.unwrap();
        sql.sort_unstable_by_key(|link| link.key.device_id);
        let model = self.tables.silent(&name, silent_for);
        self.same("silent", &(name, silent_for), sql, model);
    }

    async fn create(&mut self) {
        let (device, start_within) = (self.device(), self.random.within(1, 120_000).cast_signed());
        // In the order of their making.
        let id = CommandId::from_uuid(Uuid::from_u128(self.tables.commands.len() as u128 + 1));
        let kind = Instruction::CollectMetrics {}.kind();
        self.tables.create(id, device, start_within, millis(kind.run_within));
        sqlx::query(
            "insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason, expires_at,
                                   deadline_at, run_seconds, request_hash)
             select $1, $2, $3, $4, $5, $6, '{}', 'r', at, at, $7, sha256('')
               from (select clock_timestamp() + $8 * interval '1 millisecond' as at) later",
        )
        .bind(id.as_uuid())
        .bind(self.scene.tenant.as_uuid())
        .bind(device.as_uuid())
        .bind(self.grant.as_uuid())
        .bind(self.scene.operator.id.as_uuid())
        .bind(kind.name)
        .bind(i32::try_from(kind.run_within.as_secs()).unwrap())
        .bind(start_within)
        .execute(&self.scene.root)
        .await
        .unwrap();
    }

    async fn claim(&mut self) {
        let name = self.node().name;
        let sql = dispatch_list(&mut *self.connection().await, &name).await.unwrap();
        let sql: BTreeSet<_> = sql.into_iter().map(|key| (key.device_id, key.epoch)).collect();
        let model = self.tables.dispatchable(&name);
        self.same("dispatchable", &name, sql, model);

        let keys = [self.key()];
        let asked_at = Instant::now();
        let dispatch = dispatch_claim(&mut *self.connection().await, &keys).await.unwrap();
        assert!(dispatch.callbacks.is_empty() && dispatch.unreadable.is_empty());
        let model = self.tables.claim(&keys);
        for (sql, model) in dispatch.commands.iter().zip(&model) {
            let least = asked_at + Duration::from_millis(model.start_within_ms);
            assert!(sql.start_by >= least && sql.start_by <= least + Duration::from_secs(5), "{sql:?} {model:?}");
        }
        let sql = dispatch.commands.iter().map(|sql| (sql.link, sql.command_id, sql.is_resent)).collect::<Vec<_>>();
        let model = model.iter().map(|model| (model.link, model.command_id, model.is_resent)).collect();
        self.same("claim", &keys, sql, model);
    }

    async fn apply(&mut self) {
        let states = [State::Accepted, State::Running, State::Succeeded, State::Failed, State::Refused, State::Expired];
        let Some(command_id) = self.command() else { return };
        let (target, key) = (states[self.random.index(states.len())], self.key());
        let source = Source::Report { device_id: key.device_id, epoch: key.epoch, boot_id: "boot".to_owned() };
        let transition =
            Transition { command_id, target, source, code: None, message: None, percent: None, data: None };
        let applied = transition_apply(&mut *self.connection().await, &[transition], Durability::Stored).await.unwrap();
        let model = self.tables.apply(command_id, target, Some(key));
        self.same("apply", &(command_id, target, key), applied[0].outcome, model);
    }

    async fn sweep(&mut self) {
        let mut transaction = self.scene.store.begin(Visibility::All).await.unwrap();
        let watch = Watch { grace: Duration::from_secs(45), watched_for: Duration::ZERO };
        let ended = deadline_sweep_in_txn(&mut transaction, watch).await.unwrap();
        transaction.commit().await.unwrap();
        let model = self.tables.sweep();
        self.same("sweep", &(), ended.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>(), model);
    }

    fn same<T: Debug + PartialEq>(&mut self, statement: &str, asked: &dyn Debug, sql: T, model: T) {
        self.told.push(format!("at {}: {statement} {asked:?}: {sql:?}", self.tables.now));
        assert!(sql == model, "{}\nbut the tables say {model:?}", self.lately());
    }

    fn lately(&self) -> String {
        self.told[self.told.len().saturating_sub(40)..].join("\n")
    }

    async fn compare(&mut self) {
        let (nodes, links, commands) = rows(&self.scene.root).await;
        let lately = || self.lately();
        assert!(nodes == self.tables.nodes, "{}\n{nodes:?}\nis not\n{:?}", lately(), self.tables.nodes);
        assert!(links == self.tables.links, "{}\n{links:?}\nis not\n{:?}", lately(), self.tables.links);
        assert!(commands == self.tables.commands, "{}\n{commands:?}\nis not\n{:?}", lately(), self.tables.commands);
    }
}

fn life(random: &Random, number: usize, instance: u128) -> NewNode {
    NewNode {
        name: format!("node-{number}"),
        instance: Uuid::from_u128(instance),
        life: Uuid::from_u64_pair(random.next(), random.next()),
        version: "1",
        address: None,
        lease: LEASE,
    }
}

type Rows = (BTreeMap<String, NodeRow>, BTreeMap<DeviceId, LinkRow>, BTreeMap<CommandId, CommandRow>);

type ReadNode = (String, Uuid, Uuid, Clock, Clock, Clock, Option<Clock>);
type ReadCommand = (Uuid, Uuid, State, Clock, Clock, Option<Clock>, Clock, Option<u64>, Option<Clock>);

async fn rows(root: &PgPool) -> Rows {
    #[derive(Deserialize)]
    struct Read {
        nodes: Vec<ReadNode>,
        links: Vec<(Uuid, u64, String, Clock, Clock, Option<Clock>)>,
        commands: Vec<ReadCommand>,
    }
    let read = "
        select jsonb_build_object(
            'nodes', (select coalesce(jsonb_agg(jsonb_build_array(name, instance, life, (extract(epoch from lease) * 1000)::bigint, virtual.ms(renewed_at),
                          virtual.ms(leased_until), virtual.ms(gone_at))), '[]') from nodes),
            'links', (select coalesce(jsonb_agg(jsonb_build_array(device_id, epoch, node, virtual.ms(connected_at),
                          virtual.ms(proven_at), virtual.ms(closed_at))), '[]') from links),
            'commands', (select coalesce(jsonb_agg(jsonb_build_array(id, device_id, state, virtual.ms(created_at),
                          virtual.ms(expires_at), virtual.ms(deadline_at), run_seconds * 1000, sent_epoch,
                          virtual.ms(accepted_at))), '[]') from commands))";
    let value: Value = sqlx::query_scalar(read).fetch_one(root).await.unwrap();
    let read: Read = serde_json::from_value(value).unwrap();
    let nodes = read.nodes.into_iter().map(|(name, instance, life, lease, renewed_at, leased_until, gone_at)| {
        (name, NodeRow { instance, life, lease, renewed_at, leased_until, gone_at })
    });
    let links = read.links.into_iter().map(|(device, epoch, node, connected_at, proven_at, closed_at)| {
        (DeviceId::from_uuid(device), LinkRow { epoch, node, connected_at, proven_at, closed_at })
    });
    let commands = read.commands.into_iter().map(
        |(id, device, state, created_at, expires_at, deadline_at, run_within, sent_epoch, accepted_at)| {
            let device = DeviceId::from_uuid(device);
            let row =
                CommandRow { device, state, created_at, expires_at, deadline_at, run_within, sent_epoch, accepted_at };
            (CommandId::from_uuid(id), row)
        },
    );
    (nodes.collect(), links.collect(), commands.collect())
}
