//! Two hundred support sessions whose access ends in every way there is, while nodes, the database and links are killed, frozen
//! and cut: no byte comes to either end later than a second after access was over.
//!
//! What is done is drawn from a seed. `CHAOS_SEED` plays one again, `CHAOS_SECONDS` makes it longer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::chaos::seed::Seed;
use cloudlink_tests::chaos::stream::{self, Client, FILE_BYTES, Observed};
use cloudlink_tests::chaos::target::{find_file, written_at};
use cloudlink_tests::chaos::world::{Anywhere, Operator, World};
use cloudlink_tests::clock;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::support::{Forwarding, SCOPES};
use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

const SESSIONS: usize = 200;
const NODES: usize = 2;
/// Two that are revoked, with eight sessions each; one for real command lines; the others have nine each.
const DEVICES: usize = 23;
const REVOKED_DEVICES: usize = 2;
const OF_A_REVOKED_DEVICE: usize = 8;
/// The last device: real command lines.
const COMMAND_LINES: usize = 4;
/// What is promised.
const LATE_MS_MAX: i64 = 1_000;
const CUT_OFF_MS_MAX: i64 = 1_000;
/// How many must have come to the end of their access, so that it was tested.
const LIVED_MIN: usize = 100;
/// A session had come so far if something came on it so long before the end. Nodes stand still for up to two seconds.
const SEEN_BEFORE: Duration = Duration::from_secs(4);
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Made at once.
const MADE_AT_ONCE: usize = 12;
/// How long access ends and the fleet is hurt.
const SECONDS: u64 = 14;
/// Of grants that are to be ended by somebody.
const LONG: Duration = Duration::from_secs(900);
/// How long a grant lasts at least.
const LEAST: Duration = Duration::from_secs(6);
/// For everything to be written down when all is well again.
const SETTLED_LIMIT: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    Expiry,
    GrantRevoked,
    DeviceRevoked,
    OperatorShutOut,
    TokenRevoked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Forward,
    Terminal,
    File,
    /// `cloudlink forward` and `cloudlink shell`.
    ForwardCommand,
    ShellCommand,
}

/// One session, as it is meant.
#[derive(Clone, Debug)]
struct Case {
    number: usize,
    device: usize,
    kind: Kind,
    ends: Ends,
    operator: Operator,
}

/// One session, as it is.
struct Stream {
    case: Case,
    grant: String,
    /// The token, where that is to be revoked.
    token: Option<String>,
    observed: Arc<Observed>,
    /// A program of ours that carries it.
    _program: Option<Program>,
}

enum Program {
    Forward(#[expect(dead_code, reason = "dropped, it ends")] Forwarding),
    Shell(#[expect(dead_code, reason = "dropped, it ends")] Child),
}

/// The wall clock and the monotonic one at one moment: the database tells times by the former.
#[derive(Clone, Copy)]
struct Zero {
    wall: OffsetDateTime,
    here: Instant,
}

impl Zero {
    fn now() -> Self {
        Self { wall: clock::now(), here: Instant::now() }
    }

    fn at(self, wall: OffsetDateTime) -> Instant {
        let since = wall - self.wall;
        let far = since.unsigned_abs();
        if since.is_negative() { self.here - far } else { self.here + far }
    }
}

fn cases(operators: &[Operator]) -> Vec<Case> {
    let revoked = REVOKED_DEVICES * OF_A_REVOKED_DEVICE;
    let others = DEVICES - REVOKED_DEVICES - 1;
    let case = |number: usize| {
        let kind = [Kind::Forward, Kind::Terminal, Kind::Forward, Kind::File, Kind::Forward];
        let kind =
            [kind, [Kind::Terminal, Kind::Forward, Kind::Terminal, Kind::Forward, Kind::File]].concat()[number % 10];
        let operator = operators[0].clone();
        if number < revoked {
            let device = number % REVOKED_DEVICES;
            return Case { number, device, kind, ends: Ends::DeviceRevoked, operator };
        }
        if number >= SESSIONS - COMMAND_LINES {
            let kind = if number.is_multiple_of(2) { Kind::ForwardCommand } else { Kind::ShellCommand };
            return Case { number, device: DEVICES - 1, kind, ends: Ends::Expiry, operator };
        }
        let device = REVOKED_DEVICES + number % others;
        let (ends, operator) = match number % 18 {
            0..=10 => (Ends::Expiry, operator),
            11..=13 => (Ends::GrantRevoked, operator),
            14 | 15 => (Ends::OperatorShutOut, operators[1 + number % 2].clone()),
            _ => (Ends::TokenRevoked, operator),
        };
        Case { number, device, kind, ends, operator }
    };
    // Those whose time runs out come last, so that it does while the others are cut.
    let mut cases: Vec<_> = (0..SESSIONS).map(case).collect();
    cases.sort_by_key(|case| (case.ends == Ends::Expiry, case.number));
    cases
}

async fn open(world: &World, case: Case, ends_at: OffsetDateTime) -> anyhow::Result<Stream> {
    let what = format!("{}, {:?} to device {}", case.number, case.kind, case.device);
    make(world, case, ends_at).await.context(what)
}

/// Makes a session, and waits until it flows. `ends_at` is its grant's.
async fn make(world: &World, case: Case, ends_at: OffsetDateTime) -> anyhow::Result<Stream> {
    let device = &world.devices[case.device];
    // However slow this machine is: it begins.
    let ends_at = ends_at.max(clock::now() + LEAST);
    let body = json!({
        "reason": "chaos", "scopes": SCOPES, "device_ids": [device.id], "operator_ids": [case.operator.id],
        "ends_at": ends_at.format(&Rfc3339)?,
    });
    let grant = text(&world.tenant.post("/grants", &body).await?, "id")?;
    let mut api = world.at(device.node, &case.operator.api)?;
    let mut token = None;
    if case.ends == Ends::TokenRevoked {
        let body = json!({ "person_id": case.operator.id, "name": format!("chaos {}", case.number) });
        let made = world.admin.post("/tokens", &body).await?;
        api = api.with_token(&text(&made, "token")?);
        token = Some(text(&made, "id")?);
    }
    let observed = Arc::new(Observed::default());
    world.target.expect(case.number, &observed);
    let port = world.target.address.port();
    let reason = format!("chaos {}", case.number);
    let (number, node) = (case.number, device.node);
    let target = match case.kind {
        Kind::Forward => json!({ "kind": "forward", "target": { "host": "127.0.0.1", "port": port } }),
        Kind::Terminal => json!({ "kind": "terminal" }),
        Kind::File => {
            let path = device.machine.files_dir().join(format!("chaos-{number}"));
            json!({ "kind": "file", "target": { "path": path, "direction": "to_device", "size": FILE_BYTES } })
        }
        Kind::ForwardCommand => {
            let cli = world.cli(node, api.token());
            let route = format!("0:127.0.0.1:{port}");
            let forwarding = Forwarding::start_for(&cli, &device.name, &[&route], &reason).await?;
            let (reader, writer) = TcpStream::connect(forwarding.local(0)?).await?.into_split();
            tokio::spawn(stream::converse(reader, writer, number, Arc::clone(&observed)));
            flows(&observed).await?;
            let program = Some(Program::Forward(forwarding));
            return Ok(Stream { case, grant, token, observed, _program: program });
        }
        Kind::ShellCommand => {
            let cli = world.cli(node, api.token());
            let mut command = cli.command(&["shell", &device.name, "--reason", &reason])?;
            let stdio = std::process::Stdio::piped;
            let mut child = command.stdin(stdio()).stdout(stdio()).kill_on_drop(true).spawn()?;
            let (writer, reader) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
            tokio::spawn(stream::converse(reader, writer, number, Arc::clone(&observed)));
            flows(&observed).await?;
            return Ok(Stream { case, grant, token, observed, _program: Some(Program::Shell(child)) });
        }
    };
    let mut body = target;
    body["reason"] = json!(reason);
    body["grant_id"] = json!(grant);
    let session = api.post(&format!("/devices/{}/support-sessions", device.id), &body).await?;
    let server = &world.nodes[node];
    let mut client = Client::open(server.people, &server.ca_file(), api.token(), &text(&session, "id")?).await?;
    client.greet(number, case.kind == Kind::File).await?;
    tokio::spawn(client.converse(Arc::clone(&observed)));
    if case.kind == Kind::File {
        let file = find_file(device.agent_pid()?, &device.machine.files_dir(), number).await?;
        *observed.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    } else {
        flows(&observed).await?;
    }
    Ok(Stream { case, grant, token, observed, _program: None })
}

async fn flows(observed: &Observed) -> anyhow::Result<()> {
    wait_for("bytes both ways", Duration::from_secs(20), async || {
        ensure!(observed.operator.bytes() > 0 && observed.device.bytes() > 0, "{observed:?}");
        Ok(())
    })
    .await
}

/// Somebody takes access away.
struct Act {
    at: Instant,
    caller: Anywhere,
    method: Method,
    path: String,
    body: Value,
}

/// When and how access is to be taken away, where its time does not run out.
fn acts(
    world: &World,
    streams: &[Stream],
    seed: &mut Seed,
    zero: Instant,
    window: Duration,
) -> anyhow::Result<Vec<Act>> {
    let (admin, tenant) = (world.anywhere(&world.admin)?, world.anywhere(&world.tenant)?);
    let mut acts = Vec::new();
    let mut act = |caller: &Anywhere, method, path, body| {
        let at = zero + Duration::from_millis(seed.within(500, millis(window)));
        acts.push(Act { at, caller: caller.clone(), method, path, body });
    };
    let mut people = BTreeSet::new();
    for stream in streams {
        match (stream.case.ends, &stream.token) {
            (Ends::GrantRevoked, _) => {
                act(&tenant, Method::POST, format!("/grants/{}/revoke", stream.grant), json!({}));
            }
            (Ends::TokenRevoked, Some(token)) => {
                act(&admin, Method::POST, format!("/tokens/{token}/revoke"), json!({}));
            }
            (Ends::OperatorShutOut, _) if people.insert(&stream.case.operator.id) => {
                let path = format!("/people/{}", stream.case.operator.id);
                act(&admin, Method::PATCH, path, json!({ "active": false }));
            }
            _ => {}
        }
    }
    for device in &world.devices[..REVOKED_DEVICES] {
        act(&tenant, Method::POST, format!("/devices/{}/revoke", device.id), json!({}));
    }
    Ok(acts)
}

impl Act {
    async fn run(self) {
        sleep_until(self.at).await;
        self.caller.insist(self.method, &self.path, Some(&self.body)).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What was done to the fleet.
struct Done {
    from: Instant,
    to: Instant,
    what: String,
    /// The node that stood still.
    still: Option<usize>,
}

/// What is done to the fleet, in an order that is drawn: nodes stand still and links are cut more than once.
const HARMS: [Harm; 7] = [
    Harm::NodeStandsStill,
    Harm::NodeStandsStill,
    Harm::DatabaseStops,
    Harm::DatabaseStandsStill,
    Harm::LinksAreCut,
    Harm::LinksAreCut,
    Harm::AgentIsKilled,
];
/// A node that is killed takes half of all sessions with it: the last of all.
const NODE_IS_KILLED_AT: f64 = 0.75;

#[derive(Clone, Copy, Debug)]
enum Harm {
    NodeStandsStill,
    DatabaseStops,
    DatabaseStandsStill,
    LinksAreCut,
    AgentIsKilled,
    NodeIsKilled,
}

/// Hurts the fleet, one thing after another, and mends it.
async fn hurt(world: &mut World, seed: &mut Seed, zero: Instant, window: Duration) -> anyhow::Result<Vec<Done>> {
    let mut log = Vec::new();
    let mut harms = Vec::new();
    let killed_at = zero + window.mul_f64(NODE_IS_KILLED_AT);
    loop {
        sleep_until(Instant::now() + Duration::from_millis(seed.within(100, 600))).await;
        if harms.is_empty() {
            harms = HARMS.to_vec();
        }
        let is_last = Instant::now() >= killed_at;
        let harm = if is_last { Harm::NodeIsKilled } else { harms.swap_remove(seed.one_of(harms.len())) };
        let from = Instant::now();
        let (what, still) = harm.run(world, seed).await?;
        log.push(Done { from, to: Instant::now(), what, still });
        if is_last {
            return Ok(log);
        }
    }
}

impl Harm {
    /// Does it. Says what was done, and which node stood still.
    async fn run(self, world: &mut World, seed: &mut Seed) -> anyhow::Result<(String, Option<usize>)> {
        let until = Instant::now() + Duration::from_millis(seed.within(600, 2_000));
        let node = seed.one_of(NODES);
        let device = REVOKED_DEVICES + seed.one_of(DEVICES - REVOKED_DEVICES - 1);
        let what = match self {
            Self::NodeStandsStill => {
                world.nodes[node].program().signal(Signal::SIGSTOP)?;
                sleep_until(until).await;
                world.nodes[node].program().signal(Signal::SIGCONT)?;
                format!("node {node} stood still")
            }
            Self::DatabaseStops => {
                world.database.stop_at_once()?;
                sleep_until(until).await;
                world.database.start_again().await?;
                "the database was gone".to_owned()
            }
            Self::DatabaseStandsStill => {
                let frozen = world.database.freeze()?;
                sleep_until(until).await;
                drop(frozen);
                "the database stood still".to_owned()
            }
            Self::LinksAreCut => {
                world.devices[device].relay.cut();
                format!("device {device} lost its connections")
            }
            Self::AgentIsKilled => {
                let machine = &mut world.devices[device].machine;
                let killed = machine.agent_pid()?;
                machine.kill_agent()?;
                machine.power_on()?;
                wait_for("the next agent", AGENT_LIMIT, async || {
                    ensure!(machine.agent_pid()? != killed, "it is the one that was killed");
                    Ok(())
                })
                .await?;
                format!("the agent of device {device} was killed")
            }
            Self::NodeIsKilled => {
                world.nodes[node].kill()?;
                sleep_until(until).await;
                world.nodes[node].start_again().await?;
                format!("node {node} was killed")
            }
        };
        Ok((what, matches!(self, Self::NodeStandsStill).then_some(node)))
    }
}

/// A session as the database has it.
struct Row {
    id: String,
    number: usize,
    end_reason: String,
    cut_off_ms: Option<i64>,
    /// When access was over: by the grant's time, or by the commit of what took it away.
    over_at: Instant,
    /// When whoever took it away said so, by which the server measures: before it was committed.
    said_at: Instant,
    node: String,
}

/// Waits until every session has ended, and nothing is left to be written of those whose node was there to the end.
async fn settled(world: &World) -> anyhow::Result<()> {
    wait_for("the end of every session", SETTLED_LIMIT, async || {
        let mut database = world.database.look().await?;
        let left = "select json_agg(s)::text from support_sessions s where ended_at is null
                     or (result = '{}' and end_reason <> 'node_lost' and node not in
                         (select node from support_sessions where end_reason = 'node_lost'))";
        let left: Option<String> = sqlx::query_scalar(left).fetch_one(&mut database).await?;
        ensure!(left.is_none(), "{}", left.unwrap_or_default());
        Ok(())
    })
    .await
}

/// When it was committed that access of this grant, device, person or token is over.
async fn commits(world: &World) -> anyhow::Result<HashMap<String, OffsetDateTime>> {
    let mut database = world.database.look().await?;
    let ends = "select entry, pg_xact_commit_timestamp(xmin) from audit
                 where action in ('grant.revoked', 'device.revoked', 'person.updated', 'token.revoked')
                 order by at desc";
    let mut commits = HashMap::new();
    for row in sqlx::query(ends).fetch_all(&mut database).await? {
        let entry: Value = serde_json::from_str(row.get(0))?;
        // The first of several comes last.
        commits.insert(text(&entry["subject"], "id")?, row.get(1));
    }
    Ok(commits)
}

async fn rows(world: &World, streams: &BTreeMap<usize, Stream>, zero: Zero) -> anyhow::Result<Vec<Row>> {
    let commits = commits(world).await?;
    let mut database = world.database.look().await?;
    let all = "select s.id::text, s.reason, s.end_reason, s.cut_off_ms, s.node, s.grant_id::text, s.device_id::text,
                      s.opened_by::text, g.ends_at, least(g.revoked_at, d.revoked_at, t.revoked_at)
                 from support_sessions s join grants g on g.id = s.grant_id join devices d on d.id = s.device_id
                 left join api_tokens t on t.name = s.reason";
    let mut rows = Vec::new();
    for row in sqlx::query(all).fetch_all(&mut database).await? {
        let number: usize = row.get::<&str, _>(1).strip_prefix("chaos ").context("somebody else's")?.parse()?;
        let stream = streams.get(&number).context("nobody has made it")?;
        let token = stream.token.clone().unwrap_or_default();
        let taken = [row.get::<String, _>(5), row.get(6), row.get(7), token];
        let ends_at: OffsetDateTime = row.get(8);
        let taken_at = taken.iter().filter_map(|id| commits.get(id)).min().copied();
        let over_at = taken_at.map_or(ends_at, |taken_at| taken_at.min(ends_at));
        rows.push(Row {
            id: row.get(0),
            number,
            end_reason: row.get::<Option<String>, _>(2).context("it goes on")?,
            cut_off_ms: row.get::<Option<i32>, _>(3).map(i64::from),
            over_at: zero.at(over_at),
            said_at: zero.at(row.get::<Option<OffsetDateTime>, _>(9).unwrap_or(over_at).min(over_at)),
            node: row.get(4),
        });
    }
    ensure!(rows.len() == SESSIONS, "{} sessions", rows.len());
    Ok(rows)
}

/// When something came last, at each end.
fn last_of(stream: &Stream, zero: Zero) -> anyhow::Result<[Option<Instant>; 2]> {
    let file = stream.observed.file.lock().unwrap_or_else(PoisonError::into_inner);
    let device = match &*file {
        Some(file) => Some(zero.at(written_at(file)?)),
        None => stream.observed.device.last(),
    };
    Ok([stream.observed.operator.last(), device])
}

/// Milliseconds from `from` to `to`, less than zero if it is the other way round.
fn ms(from: Instant, to: Instant) -> i64 {
    let signed = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    if to >= from { signed(to - from) } else { -signed(from - to) }
}

/// What is said of the run, and what was wrong with it.
#[derive(Default)]
struct Verdict {
    /// Milliseconds from the end of access to the last byte, by how it ended and to which end.
    late: BTreeMap<(Ends, &'static str), Vec<i64>>,
    /// As the server measures it.
    cut_off: Vec<i64>,
    reasons: BTreeMap<(Ends, String), usize>,
    lived: usize,
    faults: Vec<String>,
}

impl Verdict {
    fn of(
        rows: &[Row],
        streams: &BTreeMap<usize, Stream>,
        log: &[Done],
        pulse: &Pulse,
        zero: Zero,
    ) -> anyhow::Result<Self> {
        let mut verdict = Self::default();
        for row in rows {
            verdict.take(row, streams.get(&row.number).context("it was made")?, log, pulse, zero)?;
        }
        Ok(verdict)
    }

    fn take(&mut self, row: &Row, stream: &Stream, log: &[Done], pulse: &Pulse, zero: Zero) -> anyhow::Result<()> {
        let ends = stream.case.ends;
        *self.reasons.entry((ends, row.end_reason.clone())).or_default() += 1;
        let is_cut = CUT.contains(&row.end_reason.as_str());
        let [operator, device] = last_of(stream, zero)?;
        for (end, last) in [("operator", operator), ("device", device)] {
            let Some(late) = last.map(|last| ms(row.over_at, last)) else { continue };
            if is_cut {
                self.late.entry((ends, end)).or_default().push(late);
            }
            if late > LATE_MS_MAX {
                self.faults.push(format!("{}: something came to the {end} {late} ms late", row.shown(stream, zero)));
            }
        }
        let last = operator.max(device);
        self.lived += usize::from(is_cut && last.is_some_and(|last| last + SEEN_BEFORE > row.over_at));
        let Some(cut_off) = row.cut_off_ms else { return Ok(()) };
        self.cut_off.push(cut_off);
        // To let nothing pass is no work. To close is: a node that stands still does not come to it, or a busy machine.
        let until = row.said_at + Duration::from_millis(cut_off.unsigned_abs());
        if cut_off
            > CUT_OFF_MS_MAX + ms(row.said_at, row.over_at) + row.still(log, until) + pulse.late(row.over_at, until)
        {
            self.faults.push(format!("{}: cut off in {cut_off} ms", row.shown(stream, zero)));
        }
        Ok(())
    }

    fn report(mut self) -> String {
        let mut report = String::new();
        for ((ends, end), late) in &mut self.late {
            let _ = writeln!(report, "figure: {ends:?}, last byte to the {end}: {}", spread(late));
        }
        let _ = writeln!(report, "figure: cut_off_ms: {}", spread(&mut self.cut_off));
        let _ = writeln!(report, "figure: {} lived to the end of their access; {:?}", self.lived, self.reasons);
        report
    }
}

impl Row {
    fn shown(&self, stream: &Stream, zero: Zero) -> String {
        let Case { number, kind, ends, .. } = &stream.case;
        let over = ms(zero.here, self.over_at);
        format!("{number}, {} {kind:?} on {}, {ends:?} at {over} ms, ended as {}", self.id, self.node, self.end_reason)
    }
}

impl Row {
    /// For how many milliseconds its node stood still from the end of access until then.
    fn still(&self, log: &[Done], until: Instant) -> i64 {
        let its_node = |done: &&Done| done.still.is_some_and(|node| self.node == format!("node-{node}"));
        let within = |done: &Done| ms(done.from.max(self.over_at), done.to.min(until)).max(0);
        log.iter().filter(its_node).map(within).sum()
    }
}

/// How late this machine is: it has two processors, and may have much else to do.
struct Pulse(Arc<Mutex<Vec<(Instant, Duration)>>>);

impl Pulse {
    const EVERY: Duration = Duration::from_millis(20);

    fn start() -> Self {
        let beats = Arc::<Mutex<Vec<_>>>::default();
        let noted = Arc::clone(&beats);
        tokio::spawn(async move {
            loop {
                let due = Instant::now() + Self::EVERY;
                sleep_until(due).await;
                noted.lock().unwrap_or_else(PoisonError::into_inner).push((due, due.elapsed()));
            }
        });
        Self(beats)
    }

    /// At most, in milliseconds, between these times.
    fn late(&self, from: Instant, to: Instant) -> i64 {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within = beats.iter().filter(|(due, late)| *due + *late >= from && *due <= to);
        within.map(|(due, late)| ms(*due, *due + *late)).max().unwrap_or_default()
    }
}

/// How sessions end whose access is over.
const CUT: [&str; 5] = ["grant_ended", "grant_revoked", "device_revoked", "operator_shut_out", "token_ended"];

fn spread(values: &mut [i64]) -> String {
    values.sort_unstable();
    let at = |share: usize| {
        values.get((values.len() * share / 100).min(values.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    format!("{} of them, p50 {} ms, p95 {} ms, most {} ms", values.len(), at(50), at(95), at(100))
}

/// What is recorded of each session can be read, and is whole, or said to be cut short.
async fn recordings_are_there(world: &World, rows: &[Row]) -> anyhow::Result<()> {
    let checked = rows.iter().map(async |row| {
        let known = world.tenant.get(&format!("/support-sessions/{}/recording", row.id)).await?;
        let content = world.tenant.get_text(&format!("/support-sessions/{}/recording/content", row.id)).await?;
        for line in content.lines() {
            serde_json::from_str::<Value>(line).with_context(|| format!("{}: {line:?}", row.number))?;
        }
        let last = content.lines().last().unwrap_or_default();
        // What could not be recorded in time is not, and the end of that neither.
        let says_its_end = last.contains("closed") || row.end_reason == "recording_failed";
        let is_whole = known["state"] == "finished" && says_its_end && content.ends_with('\n');
        // Its node was killed: another, or its next life, has written its end. Nobody finishes it; that is said a while later.
        let is_cut = known["state"] == "cut_short" || (row.cut_off_ms.is_none() && known["state"] == "recording");
        ensure!(is_whole || is_cut, "{} ({}): {known} {last}", row.number, row.end_reason);
        Ok(())
    });
    futures_util::stream::iter(checked).buffer_unordered(MADE_AT_ONCE).try_collect::<()>().await
}

/// One end each, no session left of a grant that is over, and an audit log that holds.
async fn the_books_are_right(world: &World) -> anyhow::Result<()> {
    let mut database = world.database.look().await?;
    let ends = "select count(*), count(distinct (entry::jsonb)->'subject'->>'id') from audit where action = 'support_session.ended'";
    let row = sqlx::query(ends).fetch_one(&mut database).await?;
    let (ends, sessions): (i64, i64) = (row.get(0), row.get(1));
    ensure!(ends == SESSIONS as i64 && sessions == ends, "{ends} ends of {sessions} sessions");
    let left = "select count(*) from support_sessions s join grants g on g.id = s.grant_id
                 where s.ended_at is null and (g.revoked_at is not null or g.ends_at < clock_timestamp())";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut database).await?;
    ensure!(left == 0, "{left} live sessions of grants that are over");
    let cli = world.cli(0, world.tenant.token());
    let log = world.path("audit.ndjson");
    let log = log.to_str().context("a path")?;
    ensure!(cli.run(&["audit", "export", "--output", log]).await?.code == Some(0));
    let verified = cli.run(&["audit", "verify", log]).await?;
    ensure!(verified.code == Some(0), "{verified:#?}");
    Ok(())
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_survives_its_grant_by_more_than_a_second() -> anyhow::Result<()> {
    let drawn = u64::from(std::process::id()) ^ clock::now().unix_timestamp().unsigned_abs();
    let number = from_environment("CHAOS_SEED").unwrap_or(drawn);
    let window = Duration::from_secs(from_environment("CHAOS_SECONDS").unwrap_or(SECONDS));
    eprintln!("figure: CHAOS_SEED={number} CHAOS_SECONDS={}", window.as_secs());
    let mut seed = Seed::new(number);
    let zero = Zero::now();
    let pulse = Pulse::start();
    let mut world = World::start(NODES, DEVICES, &["shutdown.soft_seconds=1"]).await?;
    let mut operators = Vec::new();
    for name in ["support", "on leave", "dismissed"] {
        operators.push(world.operator(name).await?);
    }
    eprintln!("figure: the fleet is there after {:?}", zero.here.elapsed());

    let streams = open_all(&world, cases(&operators), &mut seed, window).await?;
    let (begun, streams) = (Instant::now(), streams);
    eprintln!("figure: {} sessions flow after {:?}", streams.len(), zero.here.elapsed());
    let mut taking: JoinSet<()> = JoinSet::new();
    for act in acts(&world, &streams, &mut seed, begun, window)? {
        taking.spawn(act.run());
    }
    let log = hurt(&mut world, &mut seed, begun, window).await?;
    while let Some(taken) = taking.join_next().await {
        taken?;
    }
    for done in &log {
        eprintln!("figure: {} to {} ms: {}", ms(begun, done.from), ms(begun, done.to), done.what);
    }
    // A forward without a connection has no token that could end.
    let tenant = world.anywhere(&world.tenant)?;
    for stream in streams.iter().filter(|stream| stream.token.is_some()) {
        tenant.insist(Method::POST, &format!("/grants/{}/revoke", stream.grant), Some(&json!({}))).await;
    }
    settled(&world).await?;

    let streams: BTreeMap<_, _> = streams.into_iter().map(|stream| (stream.case.number, stream)).collect();
    let rows = rows(&world, &streams, zero).await?;
    let verdict = Verdict::of(&rows, &streams, &log, &pulse, zero)?;
    let (faults, lived) = (verdict.faults.join("\n"), verdict.lived);
    eprint!("{}", verdict.report());
    eprintln!("figure: this machine was {} ms late at most", pulse.late(begun, Instant::now()));
    ensure!(faults.is_empty(), "CHAOS_SEED={number}:\n{faults}");
    ensure!(lived >= LIVED_MIN, "only {lived} lived to the end of their access");
    recordings_are_there(&world, &rows).await?;
    the_books_are_right(&world).await?;
    eprintln!("figure: done after {:?}", zero.here.elapsed());
    Ok(())
}

/// Makes all sessions. Those whose time runs out come last, and it does when all are there, within the window.
async fn open_all(world: &World, cases: Vec<Case>, seed: &mut Seed, window: Duration) -> anyhow::Result<Vec<Stream>> {
    let (others, expiring): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.ends != Ends::Expiry);
    let far = clock::now() + LONG;
    let began = Instant::now();
    let made = others.iter().map(|case| open(world, case.clone(), far));
    let mut streams: Vec<Stream> =
        futures_util::stream::iter(made).buffer_unordered(MADE_AT_ONCE).try_collect().await?;
    // As long as they take by what was just seen, and half as long again.
    let takes = began.elapsed().mul_f64(1.5 * ratio(expiring.len(), others.len()));
    let ready_at = clock::now() + takes;
    let made = expiring.iter().map(|case| {
        let ends_at = ready_at + Duration::from_millis(seed.within(500, millis(window)));
        open(world, case.clone(), ends_at)
    });
    let made: Vec<Stream> =
        futures_util::stream::iter(made.collect::<Vec<_>>()).buffer_unordered(MADE_AT_ONCE).try_collect().await?;
    streams.extend(made);
    Ok(streams)
}

#[expect(clippy::cast_precision_loss, reason = "hundreds")]
fn ratio(one: usize, other: usize) -> f64 {
    one as f64 / other.max(1) as f64
}
