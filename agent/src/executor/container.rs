//! Updates of containers: pull an image by its digest, put a container of it in place of the old one, see it run, or put the old one
//! back.
//!
//! The old container is kept, stopped and under another name, until the new one has shown that it runs. The journal says from where on
//! it may be out of its place: whoever finds that, after whatever crash, goes on to one of the two ends.

mod engine;
mod journal;
mod login;
mod recipe;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerState, CreateImageInfo, HealthStatusEnum, ImageInspect};
use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::image_repository;
use cloudlink_proto::poll::message::{Running, running};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};
use uuid::Uuid;

use self::engine::{Engine, FreeSpace, Trouble};
use self::journal::{Before, Journal, Phase};
use self::recipe::Recipe;
use super::Failure;
use super::lines::Lines;
use crate::command::ContainerUpdate as Order;
use crate::config::{Config, Containers};
use crate::{chain, machine};

/// How often it is looked whether a container runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest pause before the old container is tried to be put back again.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long the engine is given to be done with what an agent asked for that is gone.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// How many agents may go on watching the new container: one that restarts the agent again and again would otherwise be watched
/// without end.
const AGENTS_MAX: u32 = 3;
/// What no update goes on with is tried to be put back again after this, then after twice as long, and so on.
const PUT_BACK_PAUSE: Duration = Duration::from_secs(15);
const PUT_BACK_PAUSE_MAX: Duration = Duration::from_secs(900);
/// How often it is tried to remove the old container, which is not needed any more.
const REMOVALS_MAX: u32 = 5;
/// How long a container that does not say may take to end, as with Docker.
const STOP_SECONDS_DEFAULT: i64 = 10;
/// The longest that is waited for it, whatever it says.
const STOP_SECONDS_MAX: i64 = 600;
/// The layers of an image that are counted: more than one can have.
const LAYERS_MAX: usize = 256;
/// Told when an image is there, out of 100.
const PULLED_PERCENT: u64 = 80;
const REPLACED_PERCENT: u32 = 90;
/// The server hears of steps of so much.
const PERCENT_STEP: u32 = 5;

/// Carries updates of containers out.
#[derive(Debug)]
pub(super) struct ContainerUpdater {
    config: Option<Containers>,
    directory: PathBuf,
    boot_id_path: PathBuf,
    lines: Arc<Lines>,
    /// Held by whoever touches containers: there is one journal.
    at_work: Mutex<()>,
    /// There may be something half done that no update goes on with.
    left: Notify,
}

/// One update that is under way.
struct Job<'a> {
    id: CommandId,
    config: &'a Containers,
    journal: Journal,
    /// Another agent began it, and the engine may still be at what that one asked for last.
    resumed: bool,
}

/// What is found before anything is touched.
struct Plan {
    before: Before,
    image_id: String,
    recipe: Recipe,
}

/// A reason to go back, and what it comes from.
type Wrong = (&'static str, String);

impl ContainerUpdater {
    pub(super) fn new(config: &Config, lines: Arc<Lines>) -> Self {
        Self {
            config: config.update.container.clone(),
            directory: config.state_dir.join("update"),
            boot_id_path: config.boot_id_path.clone(),
            lines,
            at_work: Mutex::default(),
            left: Notify::new(),
        }
    }

    /// Why the configuration does not let this be done.
    pub(super) fn refusal(&self, order: &Order) -> Option<Failure> {
        let Some(config) = &self.config else {
            let message = "set [update.container] in the device's configuration";
            return Some(Failure::new("not_configured", message.to_owned()));
        };
        if !config.allow.contains(&order.container) {
            let message = "the container is not among update.container.allow of the device's configuration";
            return Some(Failure::new("not_allowed", message.to_owned()));
        }
        if !image_repository(&order.image).is_some_and(|repository| config.allows_repository(repository)) {
            let message =
                "the image's repository is not among update.container.repositories of the device's configuration";
            return Some(Failure::new("source_not_allowed", message.to_owned()));
        }
        None
    }

    /// What an earlier agent was told, if it left this update so that there is something to go on with.
    pub(super) fn unfinished(&self, id: CommandId) -> Option<Order> {
        self.config.as_ref()?;
        Some(Journal::load(&self.journal_path()).filter(|journal| journal.id == id.as_uuid())?.update)
    }

    /// The containers that may be updated, as far as the engine has them.
    pub(super) async fn running(&self, limit: Duration) -> Vec<Running> {
        let Some(config) = &self.config else { return Vec::new() };
        match states(config, limit).await {
            Ok(states) => states,
            Err(why) => {
                tracing::debug!(reason = ?why, "the container engine does not say what runs");
                Vec::new()
            }
        }
    }

    /// From wherever it stands to its end.
    pub(super) async fn run(&self, id: CommandId, order: &Order, override_busy: bool) -> Result<Value, Failure> {
        let Some(config) = &self.config else {
            return Err(Failure::new("not_configured", "[update.container] is gone".to_owned()));
        };
        let _at_work = self.at_work.lock().await;
        let (journal, resumed) = match Journal::load(&self.journal_path()) {
            Some(journal) if journal.id == id.as_uuid() => (journal, true),
            found => {
                if let Some(journal) = found.filter(Journal::is_half_done) {
                    self.clear_up(config, journal, override_busy).await?;
                }
                (self.begin(id, order, override_busy)?, false)
            }
        };
        let mut job = Job { id, config, journal, resumed };
        match job.journal.phase.clone() {
            Phase::Pulling => Box::pin(self.update(&mut job)).await,
            Phase::Replacing => {
                let detail = "the agent stopped while the containers changed places".to_owned();
                Err(self.roll_back(&mut job, ("interrupted", detail)).await)
            }
            Phase::Confirming { .. } if self.has_rebooted(&job) => {
                let detail = "the device was started anew before the new container had shown that it runs".to_owned();
                Err(self.roll_back(&mut job, ("device_restarted", detail)).await)
            }
            Phase::Confirming { agents, .. } if agents >= AGENTS_MAX => {
                let detail = format!("the agent was started {} times, and the update was not confirmed", agents + 1);
                Err(self.roll_back(&mut job, ("restarted_too_often", detail)).await)
            }
            Phase::Confirming { container_id, agents } => self.confirm(&mut job, container_id, agents + 1).await,
            Phase::Committing { .. } if is_back(&job).await => {
                let detail = "it could not be written down that the new container was to stay".to_owned();
                Err(self.undo(&mut job, "interrupted", detail).await)
            }
            Phase::Committing { container_id } => Ok(self.commit(&job, &container_id).await),
            Phase::RollingBack { reason, detail } => Err(self.undo(&mut job, &reason, detail).await),
            Phase::RolledBack { reason, detail } => Err(job.rolled_back(&reason, &detail)),
        }
    }

    /// No update goes on with what the journal says: that is put back, if there is anything.
    pub(super) fn put_back_soon(&self) {
        self.left.notify_one();
    }

    /// Puts back what no update goes on with, for as long as the agent runs: whatever became of its command, the application is to run.
    pub(super) async fn keep_whole(&self) {
        loop {
            self.left.notified().await;
            let mut pause = PUT_BACK_PAUSE;
            while let Err(failure) = self.put_back().await {
                tracing::error!(code = failure.code, reason = ?failure.message, "an update is still half done");
                sleep(pause).await;
                pause = (2 * pause).min(PUT_BACK_PAUSE_MAX);
            }
        }
    }

    async fn put_back(&self) -> Result<(), Failure> {
        let Some(config) = &self.config else { return Ok(()) };
        let _at_work = self.at_work.lock().await;
        match Journal::load(&self.journal_path()).filter(Journal::is_half_done) {
            Some(journal) => {
                let override_busy = journal.override_busy;
                self.clear_up(config, journal, override_busy).await
            }
            None => Ok(()),
        }
    }

    /// An earlier update could not be brought to its end: first of all the container of before is put back.
    async fn clear_up(&self, config: &Containers, journal: Journal, override_busy: bool) -> Result<(), Failure> {
        tracing::warn!(command.id = %journal.id, "putting back what an earlier update has left half done");
        let mut job = Job { id: CommandId::from_uuid(journal.id), config, journal, resumed: true };
        // Whoever is busy is so with what runs: without that there is nothing to disturb.
        if !override_busy && is_in_use(&job).await {
            self.lines.wait_for_quiet(Instant::now() + config.pull_within).await?;
        }
        match restore(&job).await {
            Ok(()) | Err(NotBack::Gone) => {
                let phase = Phase::RolledBack { reason: "interrupted".to_owned(), detail: String::new() };
                self.enter(&mut job, phase)
            }
            Err(NotBack::Yet(trouble)) => {
                let message = format!(
                    "an earlier update of {} could not be undone yet: {trouble}; look at the containers, and remove {} when they are in order",
                    job.journal.update.container,
                    self.journal_path().display()
                );
                Err(Failure::new("half_done", message))
            }
        }
    }

    fn begin(&self, id: CommandId, order: &Order, override_busy: bool) -> Result<Journal, Failure> {
        let boot_id = machine::boot_id(&self.boot_id_path).map_err(|error| internal(chain(&error)))?;
        let mut journal = Journal {
            id: id.as_uuid(),
            update: order.clone(),
            override_busy,
            boot_id,
            pulls: false,
            before: None,
            phase: Phase::Pulling,
        };
        std::fs::create_dir_all(&self.directory).map_err(|error| internal(chain(&error)))?;
        journal.enter(Phase::Pulling, &self.journal_path()).map_err(|error| internal(chain(&error)))?;
        Ok(journal)
    }

    async fn update(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        let prepared = match self.prepare(job).await {
            Ok(prepared) => prepared,
            Err(failure) => {
                forget_image(job).await;
                let container = &job.journal.update.container;
                let data = json!({ "reason": failure.code, "installed": false, "container": container });
                return Err(failure.with_data(data));
            }
        };
        let Some(Plan { before, image_id, recipe }) = prepared else {
            return Ok(json!({
                "unchanged": true, "container": job.journal.update.container,
                "image_wanted": job.journal.update.image, "image_after": job.journal.update.image,
            }));
        };
        job.journal.before = Some(before);
        // Restarts while it was pulled do not count.
        job.journal.boot_id = machine::boot_id(&self.boot_id_path).map_err(|error| internal(chain(&error)))?;
        self.enter(job, Phase::Replacing)?;
        self.lines.tell(job.id, u32::try_from(PULLED_PERCENT).unwrap_or_default());
        let container_id = match replace(job, &image_id, recipe).await {
            Ok(container_id) => container_id,
            Err(wrong) => return Err(self.roll_back(job, wrong).await),
        };
        self.lines.tell(job.id, REPLACED_PERCENT);
        self.confirm(job, container_id, 0).await
    }

    /// Has the image pulled, and finds out what to make of it. `None`: the container is of that image, and runs.
    async fn prepare(&self, job: &mut Job<'_>) -> Result<Option<Plan>, Failure> {
        let order = job.journal.update.clone();
        let engine = Engine::open(&job.config.socket).await.map_err(engine_failed)?;
        // What cannot be replaced is not worth a pull, and pulling may take hours, in which much may happen to a container.
        replaceable(&engine, &order.container).await?;
        let quiet_by = Instant::now() + job.config.pull_within;
        let image = self.fetch(job, &engine).await?;
        if !job.journal.override_busy {
            self.lines.wait_for_quiet(quiet_by).await?;
        }
        let old = replaceable(&engine, &order.container).await?;
        let old_id = old.id.clone().unwrap_or_default();
        remove_left_over(&engine, &order.container).await.map_err(engine_failed)?;
        let image_id = image.id.unwrap_or_default();
        let old_image_id = old.image.clone().unwrap_or_default();
        let old_image = engine.image(&old_image_id).await.map_err(|trouble| match trouble {
            trouble if trouble.is_missing() => not_replaceable("its image is gone: what is its own cannot be told"),
            trouble => engine_failed(trouble),
        })?;
        let is_running = old.state.as_ref().is_some_and(runs);
        if old_image_id == image_id && is_running {
            return Ok(None);
        }
        let stop = old.config.as_ref().and_then(|config| config.stop_timeout).unwrap_or(STOP_SECONDS_DEFAULT);
        let before = Before {
            container_id: old_id,
            image: old_image.repo_digests.iter().flatten().next().unwrap_or(&old_image_id).clone(),
            image_id: old_image_id,
            is_running,
            restart_policy: old.host_config.as_ref().and_then(|host| host.restart_policy.clone()),
            // Below zero is without end.
            stop_seconds: i32::try_from(if stop < 0 { STOP_SECONDS_MAX } else { stop.min(STOP_SECONDS_MAX) })
                .unwrap_or_default(),
            pulled: job.journal.pulls.then(|| image_id.clone()),
        };
        let of_old_image = old_image.config.unwrap_or_default();
        let recipe = recipe::recipe(old, of_old_image, &order.image, &job.journal.id.to_string());
        Ok(Some(Plan { before, image_id, recipe }))
    }

    /// The image. That the device did not have it before is noted first: it is not to stay for nothing.
    async fn fetch(&self, job: &mut Job<'_>, engine: &Engine) -> Result<ImageInspect, Failure> {
        let wanted = job.journal.update.image.clone();
        match engine.image(&wanted).await {
            Ok(image) => return Ok(image),
            Err(trouble) if trouble.is_missing() => {}
            Err(trouble) => return Err(engine_failed(trouble)),
        }
        let free_space = engine.free_space().await.map_err(engine_failed)?;
        check_space(&free_space, job.config)?;
        job.journal.pulls = true;
        self.enter(job, Phase::Pulling)?;
        let pulled = timeout(job.config.pull_within, self.pull(job, engine, &free_space)).await;
        pulled.unwrap_or_else(|_| {
            let seconds = job.config.pull_within.as_secs();
            Err(Failure::new("download_timeout", format!("the image was not there within {seconds} s")))
        })?;
        engine.image(&wanted).await.map_err(engine_failed)
    }

    async fn pull(&self, job: &Job<'_>, engine: &Engine, free_space: &FreeSpace) -> Result<(), Failure> {
        let (repository, digest) = job.journal.update.image.split_once('@').unwrap_or_default();
        let login = job.config.login_file.as_ref().map(|file| login::find(file, repository)).transpose();
        let login = login.map_err(|error| Failure::new("login_file", chain(&error)))?.flatten();
        let mut said = std::pin::pin!(engine.pull(repository, digest, login));
        let (mut layers, mut told) = (Layers::default(), 0);
        // Also while the engine is silent, as some are that unpack a large layer.
        let mut look = interval(LOOK_EVERY);
        loop {
            let step = tokio::select! {
                step = said.next() => step,
                _ = look.tick() => {
                    check_space(free_space, job.config)?;
                    continue;
                }
            };
            let Some(step) = step else { return Ok(()) };
            layers.take_in(&step.map_err(pull_failed)?);
            if layers.bytes() > job.config.bytes_max {
                let message = format!("the image is larger than update.container.bytes_max, {}", job.config.bytes_max);
                return Err(Failure::new("too_large", message));
            }
            let percent = layers.percent();
            if percent >= told + PERCENT_STEP {
                told = percent;
                self.lines.tell(job.id, percent);
            }
        }
    }

    /// Waits until the new container has run for long enough, and the device is in contact with the server.
    async fn confirm(&self, job: &mut Job<'_>, container_id: String, agents: u32) -> Result<Value, Failure> {
        if let Err(failure) = self.enter(job, Phase::Confirming { container_id: container_id.clone(), agents }) {
            return Err(self.roll_back(job, (failure.code, failure.message)).await);
        }
        match self.watch(job, &container_id).await {
            Ok(()) => {}
            Err(wrong) => return Err(self.roll_back(job, wrong).await),
        }
        if let Err(failure) = self.enter(job, Phase::Committing { container_id: container_id.clone() }) {
            return Err(self.roll_back(job, (failure.code, failure.message)).await);
        }
        Ok(self.commit(job, &container_id).await)
    }

    async fn watch(&self, job: &Job<'_>, container_id: &str) -> Result<(), Wrong> {
        let deadline = Instant::now() + job.config.confirm_within;
        let mut well_since: Option<(Instant, Option<String>, bool)> = None;
        let mut lacking = ("not_healthy", "the engine did not answer".to_owned());
        loop {
            match timeout_at(deadline, look(job, container_id)).await.ok().transpose()? {
                Some(Seen::Well { started_at }) => {
                    // Another start is another container, as far as this goes.
                    let since = well_since.take().filter(|(_, started, _)| *started == started_at);
                    let (since, _, is_contact_wanted) =
                        well_since.insert(since.unwrap_or((Instant::now(), started_at, false)));
                    let has_lasted = since.elapsed() >= job.config.stable_for;
                    if has_lasted && *is_contact_wanted && self.lines.has_contact() {
                        return Ok(());
                    }
                    if has_lasted && !*is_contact_wanted {
                        // What was heard until now proves nothing: the new container may have cut the device off since.
                        self.lines.want_contact();
                        *is_contact_wanted = true;
                    }
                    lacking = if has_lasted {
                        ("no_contact", "the new container runs, and there is no contact with the server".to_owned())
                    } else {
                        ("not_stable", "the new container did not run without a break".to_owned())
                    };
                }
                Some(Seen::NotYet(why)) => {
                    well_since = None;
                    lacking = ("not_healthy", why);
                }
                // Time is up, and what was lacking before still is.
                None => {}
            }
            if Instant::now() >= deadline {
                let (reason, why) = lacking;
                return Err((reason, format!("{why}, within {} s", job.config.confirm_within.as_secs())));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Removes what is not needed any more. The update has succeeded: what cannot be removed is told.
    async fn commit(&self, job: &Job<'_>, container_id: &str) -> Value {
        let before = job.before();
        let mut removed = remove_old(job, before).await;
        for _ in 1..REMOVALS_MAX {
            if removed.is_ok() {
                break;
            }
            sleep(LOOK_EVERY).await;
            removed = remove_old(job, before).await;
        }
        if let Err(trouble) = &removed {
            tracing::warn!(command.id = %job.id, reason = ?trouble.to_string(), "the container of before cannot be removed");
        }
        let data = json!({ "container_id": container_id, "old_removed": removed.is_ok() });
        job.data(&job.journal.update.image, data)
    }

    async fn roll_back(&self, job: &mut Job<'_>, (reason, detail): Wrong) -> Failure {
        tracing::warn!(command.id = %job.id, reason, detail = ?detail, "going back to the container of before");
        let phase = Phase::RollingBack { reason: reason.to_owned(), detail: detail.clone() };
        if let Err(failure) = self.enter(job, phase) {
            // What was begun is undone all the same, and after a restart for another reason.
            tracing::error!(command.id = %job.id, reason = failure.message, "cannot note that an update is undone");
        }
        self.undo(job, reason, detail).await
    }

    /// Puts the container of before back, and tries again while the engine is away.
    async fn undo(&self, job: &mut Job<'_>, reason: &str, detail: String) -> Failure {
        let deadline = Instant::now() + job.config.confirm_within;
        let mut pause = LOOK_EVERY;
        let undone = loop {
            match restore(job).await {
                Err(NotBack::Yet(trouble)) if Instant::now() < deadline => {
                    tracing::warn!(command.id = %job.id, reason = ?trouble.to_string(), "the container of before is not back yet");
                }
                undone => break undone,
            }
            sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        };
        if let Err(not_back) = undone {
            if matches!(not_back, NotBack::Yet(_)) {
                self.put_back_soon();
            }
            let data = json!({ "reason": reason, "detail": detail, "installed": true, "rolled_back": false });
            let message = format!("the container of before is not back: {not_back}, after {reason}: {detail}");
            return Failure::new("rollback_failed", message).with_data(job.data("", data));
        }
        let phase = Phase::RolledBack { reason: reason.to_owned(), detail: detail.clone() };
        if let Err(failure) = self.enter(job, phase) {
            tracing::error!(command.id = %job.id, reason = failure.message, "cannot note that an update was undone");
        }
        job.rolled_back(reason, &detail)
    }

    fn has_rebooted(&self, job: &Job<'_>) -> bool {
        machine::boot_id(&self.boot_id_path).is_ok_and(|boot_id| boot_id != job.journal.boot_id)
    }

    fn enter(&self, job: &mut Job<'_>, phase: Phase) -> Result<(), Failure> {
        let entered = job.journal.enter(phase, &self.journal_path());
        entered.map_err(|error| Failure::new("disk", format!("the journal cannot be kept: {}", chain(&error))))
    }

    fn journal_path(&self) -> PathBuf {
        self.directory.join("container.json")
    }
}

/// The containers that may be updated, as far as the engine has them.
///
/// # Errors
/// Why the engine does not say.
pub async fn states(config: &Containers, within: Duration) -> Result<Vec<Running>, String> {
    let listed = async { Engine::open(&config.socket).await?.containers(None).await };
    let listed = timeout(within, listed).await.unwrap_or_else(|_| Err(Trouble::new("it took too long")));
    let listed = listed.map_err(|trouble| trouble.to_string())?;
    let state_of = |name: &String| {
        let own = format!("/{name}");
        let found = listed.iter().find(|container| container.names.iter().flatten().any(|name| *name == own))?;
        Some(Running { name: name.clone(), state: found.state?.to_string(), kind: running::Kind::Container.into() })
    };
    Ok(config.allow.iter().filter_map(state_of).collect())
}

impl Job<'_> {
    fn before(&self) -> &Before {
        self.journal.before.as_ref().expect("it is noted before anything is touched")
    }

    /// What the old container is called while it is out of its place, and the new one before it is in it.
    fn aside(&self, which: &str) -> String {
        format!("{}.{which}-{}", self.journal.update.container, self.journal.id.simple())
    }

    /// Whether nothing is to be done about the container of before.
    fn is_as_before(&self, old: &ContainerInspectResponse) -> bool {
        let before = self.before();
        let policy = old.host_config.as_ref().and_then(|host| host.restart_policy.as_ref());
        has_name(old, &self.journal.update.container)
            && (!before.is_running || old.state.as_ref().is_some_and(runs))
            && before.restart_policy.as_ref().is_none_or(|own| Some(own) == policy)
    }

    fn rolled_back(&self, reason: &str, detail: &str) -> Failure {
        let data = json!({ "reason": reason, "detail": detail, "installed": true, "rolled_back": true });
        let message = format!("the container of before is back ({reason}: {detail})");
        Failure::new("rolled_back", message).with_data(self.data(&self.before().image, data))
    }

    fn data(&self, image_after: &str, more: Value) -> Value {
        let mut data = more;
        data["container"] = self.journal.update.container.clone().into();
        data["image_before"] = self.before().image.clone().into();
        data["image_wanted"] = self.journal.update.image.clone().into();
        data["image_after"] = image_after.into();
        data
    }
}

/// The container of this name, if there is one and nothing is against it.
async fn replaceable(engine: &Engine, name: &str) -> Result<ContainerInspectResponse, Failure> {
    let found = engine.container(name).await.map_err(|trouble| match trouble {
        trouble if trouble.is_missing() => {
            Failure::new("no_container", "the device has no container of that name".to_owned())
        }
        trouble => engine_failed(trouble),
    })?;
    if let Some(obstacle) = recipe::obstacle(&found) {
        return Err(not_replaceable(obstacle));
    }
    let shared = format!("container:{}", found.id.as_deref().unwrap_or_default());
    let others = engine.containers(None).await.map_err(engine_failed)?;
    let mut modes = others.iter().filter_map(|other| other.host_config.as_ref()?.network_mode.as_ref());
    if modes.any(|mode| *mode == shared) {
        return Err(not_replaceable("another container uses its network"));
    }
    Ok(found)
}

/// The container of before is in its place: an agent that could not write it down has put it back.
async fn is_back(job: &Job<'_>) -> bool {
    let old = async { Engine::open(&job.config.socket).await?.container(&job.before().container_id).await };
    old.await.is_ok_and(|old| has_name(&old, &job.journal.update.container))
}

/// Whether a container runs under the name of the one that is updated.
async fn is_in_use(job: &Job<'_>) -> bool {
    let found = async { Engine::open(&job.config.socket).await?.container(&job.journal.update.container).await };
    found.await.is_ok_and(|found| found.state.as_ref().is_some_and(runs))
}

/// What was asked for by an agent that did not live to see it. Only that: others may have a name that begins so.
async fn remove_left_over(engine: &Engine, name: &str) -> Result<(), Trouble> {
    for made in engine.containers(Some(recipe::LABEL.to_owned())).await? {
        let label = made.labels.as_ref().and_then(|labels| labels.get(recipe::LABEL)?.parse::<Uuid>().ok());
        let own = label.map(|id| format!("/{name}.new-{}", id.simple()));
        if made.names.iter().flatten().any(|name| Some(name) == own.as_ref()) {
            engine.remove(&made.id.unwrap_or_default(), true).await?;
        }
    }
    Ok(())
}

/// Makes the new container, and puts it in the place of the old one. Its id.
async fn replace(job: &Job<'_>, image_id: &str, recipe: Recipe) -> Result<String, Wrong> {
    let wrong = |reason| move |trouble: Trouble| (reason, trouble.to_string());
    let before = job.before();
    let engine = Engine::open(&job.config.socket).await.map_err(wrong("engine"))?;
    let id = engine.create(&job.aside("new"), recipe.body).await.map_err(wrong("not_created"))?;
    for (network, endpoint) in recipe.networks {
        engine.connect(&id, &network, endpoint).await.map_err(wrong("not_created"))?;
    }
    if engine.container(&id).await.map_err(wrong("engine"))?.image.as_deref() != Some(image_id) {
        return Err(("not_created", "the engine took another image than was pulled".to_owned()));
    }
    engine.set_restart_policy(&before.container_id, recipe::never()).await.map_err(wrong("engine"))?;
    engine.stop(&before.container_id, before.stop_seconds).await.map_err(wrong("not_stopped"))?;
    engine.rename(&before.container_id, &job.aside("before")).await.map_err(wrong("engine"))?;
    engine.rename(&id, &job.journal.update.container).await.map_err(wrong("engine"))?;
    engine.start(&id).await.map_err(wrong("not_started"))?;
    if let Some(policy) = before.restart_policy.clone()
        && let Err(trouble) = engine.set_restart_policy(&id, policy).await
    {
        // The engine refuses it for one that has ended already: what that ended with says more.
        look(job, &id).await?;
        return Err(wrong("engine")(trouble));
    }
    Ok(id)
}

/// How the new container is.
enum Seen {
    Well { started_at: Option<String> },
    NotYet(String),
}

/// What cannot become well any more is wrong.
async fn look(job: &Job<'_>, container_id: &str) -> Result<Seen, Wrong> {
    let seen = async { Engine::open(&job.config.socket).await?.container(container_id).await };
    let seen = match seen.await {
        Ok(seen) => seen,
        Err(trouble) if trouble.is_missing() => return Err(("exited", "the new container is gone".to_owned())),
        // It may come back.
        Err(trouble) => return Ok(Seen::NotYet(trouble.to_string())),
    };
    let state = seen.state.unwrap_or_default();
    if state.running != Some(true) || state.restarting == Some(true) || seen.restart_count.unwrap_or_default() > 0 {
        let code = state.exit_code.unwrap_or_default();
        let killed = if state.oom_killed == Some(true) { ", out of memory" } else { "" };
        return Err(("exited", format!("the new container ended with status {code}{killed}")));
    }
    match state.health.and_then(|health| health.status) {
        Some(HealthStatusEnum::UNHEALTHY) => {
            Err(("unhealthy", "the new container's own check says that it is not well".to_owned()))
        }
        Some(HealthStatusEnum::STARTING) => Ok(Seen::NotYet("the new container was not healthy yet".to_owned())),
        Some(HealthStatusEnum::HEALTHY | HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => {
            Ok(Seen::Well { started_at: state.started_at })
        }
    }
}

async fn remove_old(job: &Job<'_>, before: &Before) -> Result<(), Trouble> {
    let engine = Engine::open(&job.config.socket).await?;
    // Its volumes are the new one's now.
    engine.remove(&before.container_id, false).await?;
    remove_image(&engine, &before.image_id).await;
    Ok(())
}

/// Why the container of before is not in its place.
#[derive(Debug, thiserror::Error)]
enum NotBack {
    #[error("it was removed")]
    Gone,
    #[error("{0}")]
    Yet(Trouble),
}

impl From<Trouble> for NotBack {
    fn from(trouble: Trouble) -> Self {
        Self::Yet(trouble)
    }
}

/// Sees to it that the old container is as it was and where it was, and that there is no new one. Does nothing where that is so.
async fn restore(job: &Job<'_>) -> Result<(), NotBack> {
    let before = job.before();
    if job.resumed {
        sleep(SETTLED_AFTER).await;
    }
    let engine = Engine::open(&job.config.socket).await?;
    let old = engine.container(&before.container_id).await;
    let old = old.map_err(|trouble| if trouble.is_missing() { NotBack::Gone } else { trouble.into() })?;
    let made = engine.containers(Some(recipe::label(&job.journal.id.to_string()))).await?;
    if !made.is_empty() || !job.is_as_before(&old) {
        let made = made.into_iter().map(|made| made.id.unwrap_or_default()).collect();
        put_in_place(job, &engine, &old, made).await?;
    }
    if let Some(image) = &before.pulled {
        remove_image(&engine, image).await;
    }
    Ok(())
}

/// Puts the old container in the place of those that were made.
async fn put_in_place(
    job: &Job<'_>,
    engine: &Engine,
    old: &ContainerInspectResponse,
    made: Vec<String>,
) -> Result<(), Trouble> {
    let before = job.before();
    for id in made {
        engine.stop(&id, before.stop_seconds).await?;
        engine.remove(&id, true).await?;
    }
    if !has_name(old, &job.journal.update.container) {
        engine.rename(&before.container_id, &job.journal.update.container).await?;
    }
    if before.is_running {
        if job.resumed {
            // It may run only because it has not been stopped yet.
            engine.stop(&before.container_id, before.stop_seconds).await?;
        }
        engine.start(&before.container_id).await?;
        let started = engine.container(&before.container_id).await?;
        if !started.state.as_ref().is_some_and(runs) {
            return Err(Trouble::new("the container of before does not run"));
        }
    }
    // Last of all: whoever finds it so need not start it anew.
    if let Some(policy) = before.restart_policy.clone() {
        engine.set_restart_policy(&before.container_id, policy).await?;
    }
    Ok(())
}

/// Of an update that came to nothing.
async fn forget_image(job: &Job<'_>) {
    if job.journal.pulls
        && let Ok(engine) = Engine::open(&job.config.socket).await
    {
        remove_image(&engine, &job.journal.update.image).await;
    }
}

/// Room is all that there is to gain.
async fn remove_image(engine: &Engine, id: &str) {
    if let Err(trouble) = engine.remove_image(id).await {
        tracing::info!(reason = ?trouble.to_string(), "an image is kept");
    }
}

fn has_name(container: &ContainerInspectResponse, name: &str) -> bool {
    container.name.as_deref().is_some_and(|found| found.trim_start_matches('/') == name)
}

/// One that is started again each time that it ends does, as far as anybody can see.
fn runs(state: &ContainerState) -> bool {
    state.running == Some(true) || state.restarting == Some(true)
}

fn check_space(free_space: &FreeSpace, config: &Containers) -> Result<(), Failure> {
    let path = free_space.directory.display();
    let free = free_space.bytes().map_err(|error| {
        Failure::new("no_space", format!("what is free in {path} cannot be seen: {}", chain(&error)))
    })?;
    if free >= config.free_bytes_min {
        return Ok(());
    }
    let message =
        format!("{path} has {free} bytes free, and update.container.free_bytes_min is {}", config.free_bytes_min);
    Err(Failure::new("no_space", message))
}

/// The layers of an image that is pulled, as far as the engine has said how large they are.
#[derive(Debug, Default)]
struct Layers(HashMap<String, Layer>);

#[derive(Clone, Copy, Debug, Default)]
struct Layer {
    have: u64,
    bytes: u64,
}

impl Layers {
    fn take_in(&mut self, said: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&said.id, &said.status) else { return };
        if self.0.len() >= LAYERS_MAX && !self.0.contains_key(id) {
            return;
        }
        let progress = said.progress_detail.clone().unwrap_or_default();
        let number = |said: Option<i64>| u64::try_from(said.unwrap_or_default()).unwrap_or_default();
        match status.as_str() {
            "Downloading" => {
                let (have, bytes) = (number(progress.current), number(progress.total));
                self.0.insert(id.clone(), Layer { have, bytes: bytes.max(have) });
            }
            "Download complete" => {
                self.0.entry(id.clone()).and_modify(|layer| layer.have = layer.bytes);
            }
            _ => {}
        }
    }

    fn bytes(&self) -> u64 {
        self.0.values().map(|layer| layer.bytes).fold(0, u64::saturating_add)
    }

    fn percent(&self) -> u32 {
        let have = self.0.values().map(|layer| layer.have).fold(0, u64::saturating_add);
        let percent = u128::from(have) * u128::from(PULLED_PERCENT) / u128::from(self.bytes().max(1));
        u32::try_from(percent).unwrap_or_default()
    }
}

fn pull_failed(trouble: Trouble) -> Failure {
    let code = match &trouble {
        trouble if trouble.is_missing() => "no_image",
        trouble if trouble.is_denied() => "registry_denied",
        _ => "pull_failed",
    };
    Failure::new(code, format!("the image was not pulled: {trouble}"))
}

fn engine_failed(trouble: Trouble) -> Failure {
    Failure::new("engine", format!("the container engine: {trouble}"))
}

fn not_replaceable(why: &str) -> Failure {
    Failure::new("not_replaceable", format!("the container cannot be replaced: {why}"))
}

fn internal(message: String) -> Failure {
    Failure::new("internal", message)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::busy::Busy;

    fn said(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        let said = json!({ "id": id, "status": status, "progressDetail": { "current": current, "total": total } });
        serde_json::from_value(said).unwrap()
    }

    fn updater(section: &str) -> ContainerUpdater {
        let text = format!("state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n{section}");
        ContainerUpdater::new(
            &Config::parse(&text).unwrap(),
            Lines::new(Arc::new(Busy::load(Path::new("/nowhere"), LOOK_EVERY))).0,
        )
    }

    #[tokio::test]
    async fn what_is_not_configured_is_refused_and_said_to_be_nothing() {
        let order = Order { container: "app".to_owned(), image: format!("r.test/app@sha256:{}", "0".repeat(64)) };
        let nothing = updater("");
        assert_eq!(nothing.refusal(&order).unwrap().code, "not_configured");
        assert!(nothing.running(LOOK_EVERY).await.is_empty());

        let some =
            updater("[update.container]\nsocket = \"/nowhere\"\nallow = [\"app\"]\nrepositories = [\"r.test/app\"]\n");
        assert!(some.refusal(&order).is_none());
        let with_tag = Order { image: "r.test/app:1".to_owned(), ..order.clone() };
        assert_eq!(some.refusal(&with_tag).unwrap().code, "source_not_allowed");
        assert_eq!(some.refusal(&Order { container: "db".to_owned(), ..order }).unwrap().code, "not_allowed");
        assert!(some.running(LOOK_EVERY).await.is_empty(), "there is no engine to ask");
    }

    #[test]
    fn what_the_engine_says_is_short_and_plain() {
        let said = Trouble::new(&format!("a\u{1b}[31m\n{}", "ä".repeat(10_000))).to_string();
        assert!(said.starts_with("a\u{fffd}[31m\u{fffd}ä") && said.len() <= 512, "{said}");
    }

    #[test]
    fn layers_are_counted_as_they_are_downloaded_and_only_so_many() {
        let mut layers = Layers::default();
        assert_eq!((layers.bytes(), layers.percent()), (0, 0));
        layers.take_in(&said("a", "Downloading", 10, 100));
        layers.take_in(&said("b", "Downloading", 50, 100));
        assert_eq!((layers.bytes(), layers.percent()), (200, 24));
        layers.take_in(&said("a", "Download complete", 0, 0));
        layers.take_in(&said("a", "Extracting", 1, 100_000));
        layers.take_in(&said("c", "Already exists", 1, 100_000));
        assert_eq!((layers.bytes(), layers.percent()), (200, 60));
        // Whatever the engine says.
        layers.take_in(&said("b", "Downloading", -1, -1));
        layers.take_in(&said("b", "Downloading", 300, 0));
        assert_eq!((layers.bytes(), layers.percent()), (400, 80));
        layers.take_in(&said("d", "Downloading", i64::MAX, i64::MAX));
        layers.take_in(&said("e", "Downloading", i64::MAX, i64::MAX));
        layers.take_in(&said("f", "Downloading", i64::MAX, i64::MAX));
        assert_eq!((layers.bytes(), layers.percent()), (u64::MAX, 80));
        for number in 0..2 * LAYERS_MAX {
            layers.take_in(&said(&number.to_string(), "Downloading", 1, 1));
        }
        assert_eq!(layers.0.len(), LAYERS_MAX);
    }
}
