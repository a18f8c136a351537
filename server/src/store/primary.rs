//! Which of several hosts is the database: the one that takes what is written to it and has the newest history.
//!
//! Postgres numbers histories: each promotion of a standby begins a *timeline* of the next number. A primary that was replaced, and
//! comes back as if nothing had happened, still has a number before. Whoever has seen the newer one does not take it for the
//! database again, whichever host can be reached: what it would be told would be lost, and what it tells may not be so.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions as _, Executor as _, PgConnection, Row as _};
use tokio::time::{Instant, timeout};

use crate::file;

/// How long one attempt to reach the only host may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long one of several hosts has for saying what it is: the others wait for it.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// A connection is counted from a moment after it was found to be good. In between the hosts may have been switched.
const AGE_MARGIN: Duration = Duration::from_millis(500);
/// The most bytes of the file that holds a history.
const HISTORY_BYTES_MAX: u64 = 64;

/// What a host is asked, without a prepared statement: whatever stands in between passes it on.
pub(super) const QUESTION: &str = "select case when not pg_is_in_recovery() then pg_walfile_name(pg_current_wal_lsn()) end as segment, \
     (select system_identifier from pg_control_system()) as system";

/// A host that answered: on which connection, and what it is.
type Answer = (PgConnection, Result<History, Refusal>);

/// Where a database may be.
#[derive(Clone, Debug)]
pub struct Hosts(Vec<PgConnectOptions>);

impl Hosts {
    /// The most that can be named: each is asked every second.
    pub const COUNT_MAX: usize = 8;

    /// The same hosts, with something of the connection changed.
    #[must_use]
    pub fn map(self, change: impl FnMut(PgConnectOptions) -> PgConnectOptions) -> Self {
        Self(self.0.into_iter().map(change).collect())
    }

    /// A connection to the one that is written to, out of all that answer.
    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut asked = self.ask(&mut self.unconnected()).await;
        match decide(&histories(&asked), |_| true, 0) {
            Some(chosen) => asked.swap_remove(chosen).map(|(connection, _)| connection),
            None => Err(failure(asked)),
        }
    }

    fn unconnected(&self) -> Vec<Option<PgConnection>> {
        self.0.iter().map(|_| None).collect()
    }

    /// Asks all hosts at once, on the connections that there are. Those that answered are given back with the answer.
    async fn ask(&self, connections: &mut [Option<PgConnection>]) -> Vec<Result<Answer, sqlx::Error>> {
        let within = if self.0.len() > 1 { ASK_WITHIN } else { CONNECT_WITHIN };
        let asking = self.0.iter().zip(connections).map(|(host, kept)| ask(host, kept.take(), within));
        join_all(asking).await
    }
}

async fn ask(host: &PgConnectOptions, kept: Option<PgConnection>, within: Duration) -> Result<Answer, sqlx::Error> {
    let asking = async {
        let mut connection = match kept {
            Some(connection) => connection,
            None => host.connect().await?,
        };
        let history = History::of(&connection.fetch_one(QUESTION).await?)?;
        Ok((connection, history))
    };
    timeout(within, asking).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

impl From<PgConnectOptions> for Hosts {
    fn from(only: PgConnectOptions) -> Self {
        Self(vec![only])
    }
}

impl FromStr for Hosts {
    type Err = ();

    /// A URL with one host, or several that are separated by commas, as libpq takes it.
    fn from_str(url: &str) -> Result<Self, ()> {
        let (scheme, rest) = url.split_once("://").ok_or(())?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let hosts_begin = authority.rfind('@').map_or(0, |at| at + 1);
        let (login, hosts) = authority.split_at(hosts_begin);
        let each = hosts.split(',').map(|host| format!("{scheme}://{login}{host}{path}").parse().map_err(drop));
        let hosts = each.collect::<Result<Vec<_>, _>>()?;
        (hosts.len() <= Self::COUNT_MAX).then_some(Self(hosts)).ok_or(())
    }
}

/// What the hosts that can be written to say.
fn histories(asked: &[Result<Answer, sqlx::Error>]) -> Vec<Option<History>> {
    asked.iter().map(|answer| answer.as_ref().ok().and_then(|(_, history)| history.as_ref().ok().copied())).collect()
}

/// Why none of them is the one: by the first host.
fn failure(asked: Vec<Result<Answer, sqlx::Error>>) -> sqlx::Error {
    match asked.into_iter().next() {
        Some(Err(error)) => error,
        Some(Ok((_, Err(refusal)))) => refusal.into(),
        Some(Ok((_, Ok(_)))) | None => sqlx::Error::PoolTimedOut,
    }
}

/// What tells one state of the data from another that it was replaced by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct History {
    /// Of the cluster, given when it was made.
    system: i64,
    timeline: u32,
}

impl History {
    /// Out of the answer to [`QUESTION`].
    pub(super) fn of(row: &PgRow) -> Result<Result<Self, Refusal>, sqlx::Error> {
        // As text or not: a host that is asked without a prepared statement answers in text.
        let segment: Option<String> = row.try_get("segment")?;
        let system = row.try_get("system")?;
        // The first eight digits of the name of a file of the write-ahead log.
        let timeline = segment.and_then(|segment| u32::from_str_radix(segment.get(..8)?, 16).ok());
        Ok(timeline.map(|timeline| Self { system, timeline }).ok_or(Refusal::Standby))
    }
}

impl fmt::Display for History {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.system, self.timeline)
    }
}

impl FromStr for History {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (system, timeline) = text.trim().split_once(' ').ok_or(())?;
        Ok(Self { system: system.parse().map_err(drop)?, timeline: timeline.parse().map_err(drop)? })
    }
}

/// Why a host that answers is not the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is a standby")]
    Standby,
    #[error("it was replaced: its history is timeline {timeline}, and this node has seen timeline {newest}")]
    Replaced { timeline: u32, newest: u32 },
    #[error("it is another database than the one that this node has worked with")]
    Other,
}

impl From<Refusal> for sqlx::Error {
    /// As of a host that cannot be reached: another one may be, or the same one later.
    fn from(refusal: Refusal) -> Self {
        Self::Io(io::Error::other(refusal))
    }
}

/// Chooses among what the hosts that can be written to say: the newest history that is fit, that of the host chosen before if
/// there are several.
fn decide(answers: &[Option<History>], is_fit: impl Fn(History) -> bool, before: usize) -> Option<usize> {
    let fit =
        answers.iter().enumerate().filter_map(|(at, answer)| Some((at, answer.filter(|history| is_fit(*history))?)));
    // Of equal ones the last would be chosen.
    fit.rev().max_by_key(|(at, history)| (history.timeline, *at == before)).map(|(at, _)| at)
}

/// The hosts, and which of them this node takes for the database.
#[derive(Debug)]
pub(super) struct Primary {
    hosts: Hosts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chosen: usize,
    newest: Option<History>,
    /// Whether the newest history was met by this process, and not only read of.
    is_met: bool,
    /// When the newest history was first met that was not the first.
    switched_at: Option<Instant>,
    /// Which hosts did not answer in time when they were asked last.
    silent: Vec<bool>,
}

/// What a history is beside the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// The same.
    Known,
    /// The first that this process meets.
    First,
    /// It replaces the one that this process has worked with.
    Newer,
}

impl State {
    fn judge(&self, history: History) -> Result<Judgement, Refusal> {
        match self.newest {
            Some(newest) if newest.system != history.system && self.is_met => Err(Refusal::Other),
            Some(newest) if newest.system == history.system && history.timeline < newest.timeline => {
                Err(Refusal::Replaced { timeline: history.timeline, newest: newest.timeline })
            }
            Some(_) | None if !self.is_met => Ok(Judgement::First),
            Some(newest) if newest == history => Ok(Judgement::Known),
            Some(_) | None => Ok(Judgement::Newer),
        }
    }

    fn is_outdated(&self, age: Duration, now: Instant) -> bool {
        self.switched_at.is_some_and(|switched_at| age + AGE_MARGIN > now.saturating_duration_since(switched_at))
    }
}

impl Primary {
    pub(super) fn new(hosts: Hosts) -> Self {
        Self { hosts, state: Mutex::default() }
    }

    pub(super) fn chosen(&self) -> PgConnectOptions {
        let chosen = self.state().chosen;
        self.hosts.0[chosen].clone()
    }

    /// Whether a connection may be used of a host that says so of itself. A newer history replaces all others from now on.
    pub(super) fn admit(&self, answer: Result<History, Refusal>) -> Result<(), Refusal> {
        let history = answer?;
        let mut state = self.state();
        match state.judge(history)? {
            Judgement::Known => {}
            Judgement::First => {
                if state.newest.is_some_and(|newest| newest.system != history.system) {
                    tracing::warn!("the database is another one than when this node last ran");
                }
            }
            Judgement::Newer => {
                tracing::warn!(timeline = history.timeline, "the database was switched to another host");
                state.switched_at = Some(Instant::now());
            }
        }
        (state.newest, state.is_met) = (Some(history), true);
        Ok(())
    }

    /// Asks the other hosts, before a new connection is used: the one that it is to may have been replaced since they were asked
    /// last, and have come back. Those that are silent are not waited for.
    pub(super) async fn ask_others(&self) {
        let (chosen, silent) = {
            let state = self.state();
            (state.chosen, state.silent.clone())
        };
        let is_asked = |at: usize| at != chosen && !silent.get(at).is_some_and(|is_silent| *is_silent);
        let others = self.hosts.0.iter().enumerate().filter(|(at, _)| is_asked(*at));
        for (_, answer) in join_all(others.map(|(_, host)| ask(host, None, ASK_WITHIN))).await.into_iter().flatten() {
            // Where a newer history is, is found by the next look at all of them.
            let _ = self.admit(answer);
        }
    }

    fn is_fit(&self, history: History) -> bool {
        self.state().judge(history).is_ok()
    }

    /// Whether a connection may be one to a host that was replaced since.
    pub(super) fn is_outdated(&self, age: Duration) -> bool {
        self.state().is_outdated(age, Instant::now())
    }

    /// What earlier runs of this node have met, out of a file.
    pub(super) fn recall(&self, path: &Path) -> io::Result<()> {
        let text = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read?,
        };
        let history = text.parse().map_err(|()| io::Error::new(io::ErrorKind::InvalidData, "it holds no history"))?;
        self.state().newest = Some(history);
        Ok(())
    }

    fn newest(&self) -> Option<History> {
        self.state().newest
    }

    /// As when a standby was promoted.
    #[cfg(test)]
    pub(super) fn switch(&self) {
        let newest = self.newest().expect("a connection was made");
        self.admit(Ok(History { timeline: newest.timeline + 1, ..newest })).expect("it is newer");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(std::fs::File::open(path)?, HISTORY_BYTES_MAX), &mut text)?;
    Ok(text)
}

/// Asks the hosts now and then which of them is the database, on connections of its own: a pool that is busy is not a database
/// that is away.
#[derive(Debug)]
pub struct Probe {
    store: super::Store,
    connections: Vec<Option<PgConnection>>,
    /// Where the newest history is kept, and what is there.
    file: Option<(PathBuf, Option<History>)>,
    /// What was said last of hosts that are refused.
    told: Vec<Option<Refusal>>,
}

impl Probe {
    /// Of the store's hosts. `file`: where the newest history is kept for the next run.
    #[must_use]
    pub fn new(store: super::Store, file: Option<PathBuf>) -> Self {
        let connections = store.primary.hosts.unconnected();
        let told = connections.iter().map(|_| None).collect();
        Self { store, connections, file: file.map(|path| (path, None)), told }
    }

    /// Whether the database answers now. The store's new connections are made to where it is.
    pub async fn run(&mut self) -> bool {
        let primary = &self.store.primary;
        let mut asked = primary.hosts.ask(&mut self.connections).await;
        let before = {
            let mut state = primary.state();
            state.silent = asked.iter().map(|answer| matches!(answer, Err(sqlx::Error::PoolTimedOut))).collect();
            state.chosen
        };
        let chosen = decide(&histories(&asked), |history| primary.is_fit(history), before);
        if let Some(chosen) = chosen.filter(|chosen| *chosen != before) {
            primary.state().chosen = chosen;
            self.store.turn();
            tracing::info!(host = %name(&primary.hosts.0[chosen]), "this host is the database now");
        }
        // It first: what it says may make another one an old one.
        if let Some(Ok((_, answer))) = chosen.map(|chosen| &asked[chosen]) {
            let _ = primary.admit(*answer);
        }
        for (at, asked) in asked.drain(..).enumerate() {
            let Ok((connection, answer)) = asked else { continue };
            self.connections[at] = Some(connection);
            let refusal = primary.admit(answer).err();
            if refusal != self.told[at] {
                tell(&primary.hosts.0[at], refusal);
                self.told[at] = refusal;
            }
        }
        self.keep().await;
        chosen.is_some()
    }

    /// Writes the newest history down, if it is not yet.
    async fn keep(&mut self) {
        let Some((path, kept)) = &mut self.file else { return };
        let Some(newest) = self.store.primary.newest().filter(|newest| Some(*newest) != *kept) else { return };
        let to = path.clone();
        let written =
            tokio::task::spawn_blocking(move || file::replace(&to, format!("{newest}\n").as_bytes(), file::PUBLIC));
        match written.await {
            Ok(Ok(())) => *kept = Some(newest),
            Ok(Err(error)) => {
                tracing::warn!(%error, path = %path.display(), "cannot write down the database's history");
            }
            Err(error) => tracing::error!(?error, "writing down the database's history failed"),
        }
    }
}

fn tell(host: &PgConnectOptions, refusal: Option<Refusal>) {
    match refusal {
        Some(refusal @ (Refusal::Replaced { .. } | Refusal::Other)) => {
            tracing::error!(host = %name(host), error = %refusal, "a host of the database is refused");
        }
        // As it should be.
        Some(Refusal::Standby) | None => {}
    }
}

fn name(host: &PgConnectOptions) -> String {
    format!("{}:{}", host.get_host(), host.get_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32) -> History {
        History { system: 7, timeline }
    }

    fn primary() -> Primary {
        Primary::new(PgConnectOptions::new_without_pgpass().into())
    }

    #[test]
    fn a_url_names_one_host_or_several() {
        let names = |url: &str| Some(url.parse::<Hosts>().ok()?.0.iter().map(name).collect::<Vec<_>>());
        assert_eq!(names("postgres://node:a%40b@one/cloudlink").unwrap(), ["one:5432"]);
        assert_eq!(
            names("postgres://node@one:1,[::1]:2,three/cloudlink?sslmode=require").unwrap(),
            ["one:1", "[::1]:2", "three:5432"]
        );
        let hosts: Hosts = "postgres://node@one,two/cloudlink?sslmode=require".parse().unwrap();
        for host in hosts.0 {
            assert_eq!((host.get_username(), host.get_database()), ("node", Some("cloudlink")));
        }
        assert_eq!(names("one,two"), None);
        assert_eq!(names(&format!("postgres://{}", ["host"; Hosts::COUNT_MAX + 1].join(","))), None);
    }

    #[test]
    fn the_newest_history_is_chosen_and_among_equals_the_host_of_before() {
        let choose = |timelines: &[Option<u32>], before| {
            let answers: Vec<_> = timelines.iter().map(|timeline| timeline.map(history)).collect();
            decide(&answers, |history| history.timeline >= 2, before)
        };
        assert_eq!(choose(&[Some(2), Some(3)], 0), Some(1));
        assert_eq!(choose(&[Some(3), Some(3), None], 1), Some(1));
        assert_eq!(choose(&[None, Some(3), Some(3)], 0), Some(1));
        assert_eq!(choose(&[Some(1), None], 0), None);
    }

    #[test]
    fn a_primary_that_was_replaced_is_not_the_database_any_more() {
        let primary = primary();
        primary.admit(Ok(history(1))).unwrap();
        assert!(!primary.is_outdated(Duration::ZERO), "nothing was switched");
        primary.admit(Ok(history(2))).unwrap();
        assert_eq!(primary.admit(Ok(history(1))), Err(Refusal::Replaced { timeline: 1, newest: 2 }));
        assert_eq!(primary.admit(Err(Refusal::Standby)), Err(Refusal::Standby));
        assert_eq!(primary.admit(Ok(History { system: 8, timeline: 9 })), Err(Refusal::Other));
        primary.admit(Ok(history(2))).unwrap();

        let (state, now) = (primary.state(), Instant::now() + Duration::from_secs(10));
        assert!(state.is_outdated(Duration::from_secs(11), now), "it is of before");
        assert!(!state.is_outdated(Duration::from_secs(9), now), "it was made after");
    }

    #[test]
    fn what_an_earlier_run_has_met_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("database.history");
        let after_restart = || {
            let primary = primary();
            primary.recall(&path).unwrap();
            primary
        };
        after_restart().admit(Ok(history(1))).unwrap();
        std::fs::write(&path, "7 2\n").unwrap();
        assert!(after_restart().admit(Ok(history(1))).is_err());
        after_restart().admit(Ok(history(3))).unwrap();
        // Its data were brought into a cluster that was made anew.
        after_restart().admit(Ok(History { system: 8, timeline: 1 })).unwrap();
        std::fs::write(&path, "seven").unwrap();
        assert!(primary().recall(&path).is_err());
    }
}
