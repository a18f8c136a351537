//! Updates: fetch, check, install, be back with the new version, or else with the one of before.
//!
//! The journal says what may have been done to the device. Fetching goes on after a restart of the agent; the installer is begun
//! once. From then on there are two ends: the device is in contact with the server again and says that it runs the new version, or
//! the one of before is put back and the report says why.

mod download;
mod journal;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use self::download::Download;
use self::journal::{Journal, Phase};
use super::lines::Lines;
use super::{Failure, argv};
use crate::clock::KnownTime;
use crate::command::{Kind, Update as Order};
use crate::config::{Config, Installer, Proxies, Update as Limits};
use crate::{chain, disk, machine};

/// How long a program may run that says a version, starts what was installed, or commits it.
const ASKED_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked whether the device is back.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the program that goes back is run at most: one that reboots each time must come to an end.
const ROLLBACKS_MAX: u32 = 3;
/// How many agents may go on waiting for the new version: one that restarts the agent again and again would otherwise be waited for
/// without end.
const AGENTS_MAX: u32 = 3;
/// Told when an artifact is there, out of 100.
const FETCHED_PERCENT: u64 = 80;
const INSTALLED_PERCENT: u32 = 90;
/// The server hears of steps of so much.
const PERCENT_STEP: u32 = 5;
/// A version as it is reported.
const VERSION_BYTES_MAX: usize = 128;

/// Carries updates out.
#[derive(Debug)]
pub(super) struct Updater {
    limits: Limits,
    proxies: Proxies,
    ca_file: PathBuf,
    state_dir: PathBuf,
    boot_id_path: PathBuf,
    lines: Arc<Lines>,
}

/// One update that is under way.
struct Job<'a> {
    id: CommandId,
    kind: Kind,
    installer: &'a Installer,
    journal: Journal,
    /// Another agent began to start what was installed.
    started_by_another: bool,
    /// When it is waited no longer for a device that is busy: the fetching may take as long.
    quiet_by: Instant,
}

impl Updater {
    pub(super) fn new(config: &Config, lines: Arc<Lines>) -> Self {
        Self {
            limits: config.update.clone(),
            proxies: config.server.proxies.clone(),
            ca_file: config.update.ca_file.clone().unwrap_or_else(|| config.server.ca_file.clone()),
            state_dir: config.state_dir.clone(),
            boot_id_path: config.boot_id_path.clone(),
            lines,
        }
    }

    /// Why the configuration does not let this be done.
    pub(super) fn refusal(&self, kind: Kind, order: &Order) -> Option<Failure> {
        if self.installer(kind).is_none() || self.limits.hosts.is_empty() {
            let section = section(kind);
            let message =
                format!("set update.hosts and the programs of [update.{section}] in the device's configuration");
            return Some(Failure::new("not_configured", message));
        }
        if order.size > self.limits.bytes_max {
            let message = format!("the artifact is larger than update.bytes_max, {} bytes", self.limits.bytes_max);
            return Some(Failure::new("too_large", message));
        }
        download::allowed(&self.limits, &order.url).err()
    }

    /// What an earlier agent was told, if it left this update so that there is something to go on with.
    pub(super) fn unfinished(&self, id: CommandId, kind: Kind) -> Option<Order> {
        let journal = Journal::load(&self.journal_path(kind)).filter(|journal| journal.id == id.as_uuid())?;
        self.installer(kind).map(|_| journal.update)
    }

    /// Removes what no update goes on with.
    pub(super) fn tidy(&self, kind: Kind) {
        if let Err(error) = disk::remove_if_there(&self.artifact_path(kind)) {
            tracing::warn!(%error, "a left-over artifact cannot be removed");
        }
    }

    /// From wherever it stands to its end. May not return: what is installed may restart the agent or the device.
    pub(super) async fn run(
        &self,
        id: CommandId,
        kind: Kind,
        order: &Order,
        override_busy: bool,
    ) -> Result<Value, Failure> {
        let Some(installer) = self.installer(kind) else {
            return Err(Failure::new("not_configured", format!("[update.{}] is gone", section(kind))));
        };
        let found = Journal::load(&self.journal_path(kind)).filter(|journal| journal.id == id.as_uuid());
        let started_by_another =
            found.as_ref().is_some_and(|journal| matches!(journal.phase, Phase::Activating { .. }));
        let journal = match found {
            Some(journal) => journal,
            None => self.begin(id, kind, installer, order, override_busy).await?,
        };
        let quiet_by = Instant::now() + self.limits.download_within;
        let mut job = Job { id, kind, installer, journal, started_by_another, quiet_by };
        let done = self.go_on(&mut job).await;
        self.tidy(kind);
        done
    }

    async fn begin(
        &self,
        id: CommandId,
        kind: Kind,
        installer: &Installer,
        order: &Order,
        override_busy: bool,
    ) -> Result<Journal, Failure> {
        self.tidy(kind);
        let boot_id = machine::boot_id(&self.boot_id_path).map_err(|error| internal(chain(&error)))?;
        let version_before = version(installer).await?;
        let (id, update, phase) = (id.as_uuid(), order.clone(), Phase::Fetching);
        let mut journal = Journal { id, update, override_busy, boot_id, version_before, phase };
        std::fs::create_dir_all(self.directory()).map_err(|error| internal(chain(&error)))?;
        journal.enter(Phase::Fetching, &self.journal_path(kind)).map_err(|error| internal(chain(&error)))?;
        Ok(journal)
    }

    async fn go_on(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        match job.journal.phase.clone() {
            Phase::Fetching if job.journal.version_before == job.journal.update.version => {
                Ok(job.data(&job.journal.version_before, json!({ "unchanged": true })))
            }
            Phase::Fetching => {
                self.fetch(job).await?;
                self.install(job).await
            }
            phase @ (Phase::Installing | Phase::Installed) => {
                // An installer that ends with a restart leaves its new version behind, and any restart may have started it.
                if version(job.installer).await.is_ok_and(|version| version == job.journal.update.version) {
                    return self.wait_on(job, 0).await;
                }
                if phase == Phase::Installed {
                    return self.activate(job).await;
                }
                // What it left is not known.
                Err(self.roll_back(job, "interrupted", "the agent stopped while the installer ran".to_owned()).await)
            }
            Phase::Activating { agents } if agents >= AGENTS_MAX => {
                let detail = format!("the agent was started {} times, and the update was not confirmed", agents + 1);
                Err(self.roll_back(job, "restarted_too_often", detail).await)
            }
            Phase::Activating { agents } => self.wait_on(job, agents + 1).await,
            Phase::RollingBack { reason, detail, .. } => Err(self.roll_back(job, &reason, detail).await),
        }
    }

    async fn fetch(&self, job: &Job<'_>) -> Result<(), Failure> {
        let order = &job.journal.update;
        let last = AtomicU32::new(0);
        let told = |have: u64| {
            let percent = u32::try_from(have.saturating_mul(FETCHED_PERCENT) / order.size).unwrap_or(0);
            if percent >= last.load(Ordering::Relaxed) + PERCENT_STEP {
                last.store(percent, Ordering::Relaxed);
                self.lines.tell(job.id, percent);
            }
        };
        let tls = || {
            let earliest = KnownTime::load(&self.state_dir, OffsetDateTime::UNIX_EPOCH).earliest();
            download::client(&self.ca_file, earliest)
        };
        let path = self.artifact_path(job.kind);
        let download =
            Download { order, limits: &self.limits, proxies: &self.proxies, path: &path, tls: &tls, told: &told };
        Box::pin(download.fetch()).await.map_err(|failure| job.untouched(failure))
    }

    async fn install(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        self.wait_for_quiet(job).await.map_err(|failure| job.untouched(failure))?;
        self.enter(job, Phase::Installing).map_err(|failure| job.untouched(failure))?;
        self.lines.tell(job.id, u32::try_from(FETCHED_PERCENT).unwrap_or_default());
        let path = self.artifact_path(job.kind);
        let program = job.installer.install.for_update(&path.to_string_lossy(), &job.journal.update.version);
        let installed = argv::run(&program, job.installer.install_within).await;
        self.tidy(job.kind);
        if let Err(failure) = installed {
            return Err(self.roll_back(job, "installer_failed", told_by(&failure)).await);
        }
        self.lines.tell(job.id, INSTALLED_PERCENT);
        match self.enter(job, Phase::Installed) {
            Ok(()) => self.activate(job).await,
            Err(failure) => Err(self.roll_back(job, failure.code, failure.message).await),
        }
    }

    async fn activate(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        let ready = match job.installer.activate {
            Some(_) => self.wait_for_quiet(job).await,
            // It is done: the installer has started what it installed.
            None => Ok(()),
        };
        // A device that was restarted before has not been so by this.
        job.journal.boot_id = machine::boot_id(&self.boot_id_path).unwrap_or_else(|_| job.journal.boot_id.clone());
        if let Err(failure) = ready.and_then(|()| self.enter(job, Phase::Activating { agents: 0 })) {
            return Err(self.roll_back(job, failure.code, failure.message).await);
        }
        if let Some(program) = &job.installer.activate {
            let program = program.for_update("", &job.journal.update.version);
            match argv::run(&program, ASKED_WITHIN).await {
                Ok(_) => {}
                Err(failure) if is_stopped(&failure) => {}
                Err(failure) => return Err(self.roll_back(job, "not_activated", told_by(&failure)).await),
            }
        }
        self.confirm(job).await
    }

    /// Waits until nothing on the device asks not to be disturbed: hours may have passed since the command was taken.
    async fn wait_for_quiet(&self, job: &Job<'_>) -> Result<(), Failure> {
        if job.journal.override_busy {
            return Ok(());
        }
        self.lines.wait_for_quiet(job.quiet_by).await
    }

    /// Goes on with what another agent has begun to start.
    async fn wait_on(&self, job: &mut Job<'_>, agents: u32) -> Result<Value, Failure> {
        match self.enter(job, Phase::Activating { agents }) {
            Ok(()) => self.confirm(job).await,
            Err(failure) => Err(self.roll_back(job, failure.code, failure.message).await),
        }
    }

    /// Waits until the device runs the new version and is in contact with the server: what was heard of it before proves nothing.
    async fn confirm(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        let deadline = Instant::now() + job.installer.confirm_within;
        self.lines.want_contact();
        let wanted = job.journal.update.version.clone();
        loop {
            let contact = self.lines.has_contact();
            let found = version(job.installer).await;
            let is_new = found.as_ref().is_ok_and(|found| *found == wanted);
            if contact && is_new {
                return self.commit(job, deadline).await;
            }
            if contact
                && self.has_started_anew(job)
                && let Ok(found) = found
            {
                let detail = format!("the device came back with {found:?} instead of {wanted:?}");
                return Err(self.roll_back(job, "other_version", detail).await);
            }
            if Instant::now() >= deadline {
                let seconds = job.installer.confirm_within.as_secs();
                let (reason, what) = if is_new { ("no_contact", "contact") } else { ("not_activated", "new version") };
                return Err(self.roll_back(job, reason, format!("there was no {what} within {seconds} s")).await);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether what runs now was started after the installer ended.
    fn has_started_anew(&self, job: &Job<'_>) -> bool {
        match job.kind {
            Kind::UpdateOs => machine::boot_id(&self.boot_id_path).is_ok_and(|boot_id| boot_id != job.journal.boot_id),
            Kind::UpdateAgent
            | Kind::CollectMetrics
            | Kind::RestartService
            | Kind::Reboot
            | Kind::Shutdown
            | Kind::UpdateContainer
            | Kind::TestLink => job.started_by_another,
        }
    }

    async fn commit(&self, job: &mut Job<'_>, deadline: Instant) -> Result<Value, Failure> {
        if let Some(program) = &job.installer.commit {
            let program = program.for_update("", &job.journal.update.version);
            while let Err(failure) = argv::run(&program, ASKED_WITHIN).await {
                // Whoever stops the agent or the device at this moment says nothing against the new version.
                if !is_stopped(&failure) || Instant::now() >= deadline {
                    return Err(self.roll_back(job, "commit_failed", told_by(&failure)).await);
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(job.data(&job.journal.update.version, json!({})))
    }

    /// Puts back what was before, and waits until it runs.
    async fn roll_back(&self, job: &mut Job<'_>, reason: &str, detail: String) -> Failure {
        tracing::warn!(command.id = %job.id, reason, detail = ?detail, "going back to the version of before");
        let attempts = match &job.journal.phase {
            Phase::RollingBack { attempts, .. } => *attempts,
            Phase::Fetching | Phase::Installing | Phase::Installed | Phase::Activating { .. } => 0,
        };
        let next = Phase::RollingBack { reason: reason.to_owned(), detail: detail.clone(), attempts: attempts + 1 };
        if let Err(failure) = self.enter(job, next) {
            // What was begun is undone all the same: once more after a restart, too.
            tracing::error!(command.id = %job.id, reason = failure.message, "cannot note that an update is undone");
        }
        let before = job.journal.version_before.clone();
        let mut undone = Ok(Value::Null);
        if attempts < ROLLBACKS_MAX {
            let program = job.installer.rollback.for_update("", &before);
            undone = argv::run(&program, job.installer.install_within).await;
            if undone.as_ref().is_err_and(is_stopped) {
                undone = Ok(Value::Null);
            }
        }
        let deadline = Instant::now() + job.installer.confirm_within;
        let mut found = version(job.installer).await;
        while undone.is_ok() && !found.as_ref().is_ok_and(|found| *found == before) && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
            found = version(job.installer).await;
        }
        let is_back = undone.is_ok() && found.as_ref().is_ok_and(|found| *found == before);
        let data = json!({ "reason": reason, "detail": detail, "installed": true, "rolled_back": is_back });
        let data = job.data(found.as_deref().unwrap_or_default(), data);
        if is_back {
            let message = format!("the version of before runs again ({reason}: {detail})");
            return Failure::new("rolled_back", message).with_data(data);
        }
        let why = undone.err().map_or_else(|| "another version runs".to_owned(), |failure| told_by(&failure));
        Failure::new("rollback_failed", format!("{why}, after {reason}: {detail}")).with_data(data)
    }

    fn enter(&self, job: &mut Job<'_>, phase: Phase) -> Result<(), Failure> {
        let entered = job.journal.enter(phase, &self.journal_path(job.kind));
        entered.map_err(|error| Failure::new("disk", format!("the journal cannot be kept: {}", chain(&error))))
    }

    fn installer(&self, kind: Kind) -> Option<&Installer> {
        match kind {
            Kind::UpdateOs => self.limits.os.as_ref(),
            Kind::UpdateAgent => self.limits.agent.as_ref(),
            Kind::CollectMetrics
            | Kind::RestartService
            | Kind::Reboot
            | Kind::Shutdown
            | Kind::UpdateContainer
            | Kind::TestLink => None,
        }
    }

    fn directory(&self) -> PathBuf {
        self.state_dir.join("update")
    }

    fn artifact_path(&self, kind: Kind) -> PathBuf {
        self.directory().join(format!("{}.artifact", section(kind)))
    }

    fn journal_path(&self, kind: Kind) -> PathBuf {
        self.directory().join(format!("{}.json", section(kind)))
    }
}

impl Job<'_> {
    fn data(&self, version_after: &str, more: Value) -> Value {
        let mut data = more;
        data["version_before"] = self.journal.version_before.clone().into();
        data["version_wanted"] = self.journal.update.version.clone().into();
        data["version_after"] = version_after.into();
        data
    }

    /// It came to nothing before anything was done to the device.
    fn untouched(&self, failure: Failure) -> Failure {
        let data = json!({ "reason": failure.code, "installed": false });
        failure.with_data(self.data(&self.journal.version_before, data))
    }
}

fn section(kind: Kind) -> &'static str {
    if kind == Kind::UpdateAgent { "agent" } else { "os" }
}

/// What runs now.
async fn version(installer: &Installer) -> Result<String, Failure> {
    let Some(program) = &installer.version else {
        return Ok(machine::version().to_owned());
    };
    let said = argv::run(program, ASKED_WITHIN).await?;
    let found = said["stdout"].as_str().unwrap_or_default().trim();
    if found.is_empty() || found.len() > VERSION_BYTES_MAX {
        return Err(Failure::new("version_unknown", "version_argv does not print a version".to_owned()));
    }
    Ok(found.to_owned())
}

/// Whether a program was told to end. Whoever restarts the agent or the device ends with them what they have started, and that may be what
/// the program itself has brought about: whether it has worked, the version says.
fn is_stopped(failure: &Failure) -> bool {
    failure.data.as_ref().is_some_and(|data| data["signal"] == Signal::SIGTERM as i32)
}

/// The message and the last words of a program.
fn told_by(failure: &Failure) -> String {
    let said = failure.data.as_ref().and_then(|data| data["stderr"].as_str()).unwrap_or_default().trim();
    let mut text = if said.is_empty() { failure.message.clone() } else { format!("{}: {said}", failure.message) };
    text.truncate(text.floor_char_boundary(512));
    text
}

fn internal(message: String) -> Failure {
    Failure::new("internal", message)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest;
    use data_encoding::HEXLOWER;
    use uuid::Uuid;

    use super::*;
    use crate::busy::Busy;
    use crate::ledger::tests::SmallDisk;

    const ARTIFACT: &[u8] = b"another system";

    const HOUR: Duration = Duration::from_secs(3600);

    /// A device on which the artifact is fetched already. Its version is a line in a file; the programs are lines of a shell, in its
    /// directory.
    struct Device {
        dir: tempfile::TempDir,
        updater: Updater,
        busy: Arc<Busy>,
        id: CommandId,
        order: Order,
        journal: Journal,
    }

    impl Device {
        fn new(install: &str, activate: &str, rollback: &str) -> Self {
            Self::with(install, activate, rollback, "true", 30)
        }

        fn with(install: &str, activate: &str, rollback: &str, commit: &str, confirm_seconds: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().display();
            let shell = |body: &str| json!(["/bin/sh", "-c", format!("cd {path} && {body}")]);
            let file = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
            let mut install = shell(install);
            install.as_array_mut().unwrap().push("{file}".into());
            let text = format!(
                "state_dir = \"{path}\"\nboot_id_path = \"{path}/boot_id\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n\
                 [update]\nhosts = [\"u.test\"]\ndownload_seconds = 4\n[update.os]\ninstall_argv = {install}\nactivate_argv = {}\n\
                 rollback_argv = {}\ncommit_argv = {}\nversion_argv = [\"/bin/cat\", \"{path}/version\"]\n\
                 confirm_seconds = {confirm_seconds}\n",
                shell(activate),
                shell(rollback),
                shell(commit)
            );
            let busy = Arc::new(Busy::load(dir.path(), HOUR));
            let (lines, _) = Lines::new(Arc::clone(&busy));
            let updater = Updater::new(&Config::parse(&text).unwrap(), lines);
            std::fs::create_dir(dir.path().join("update")).unwrap();
            file("update/os.artifact", ARTIFACT);
            file("version", b"1\n");
            file("boot_id", b"boot-1\n");
            let order = Order {
                url: "https://u.test/2".to_owned(),
                sha256: HEXLOWER.encode(digest::digest(&digest::SHA256, ARTIFACT).as_ref()),
                size: ARTIFACT.len() as u64,
                version: "2".to_owned(),
            };
            let id = CommandId::from_uuid(Uuid::now_v7());
            let journal = Journal {
                id: id.as_uuid(),
                update: order.clone(),
                override_busy: false,
                boot_id: "boot-1".to_owned(),
                version_before: "1".to_owned(),
                phase: Phase::Fetching,
            };
            let mut device = Self { dir, updater, busy, id, order, journal };
            device.enter(Phase::Fetching);
            device
        }

        /// As an agent of before left it.
        fn enter(&mut self, phase: Phase) {
            self.journal.enter(phase, &self.updater.journal_path(Kind::UpdateOs)).unwrap();
        }

        /// With a link over which the server is heard of now and then.
        async fn update(&self) -> Result<Value, Failure> {
            let heard = async {
                loop {
                    self.updater.lines.answered(Instant::now());
                    sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                done = self.run() => done,
                () = heard => unreachable!("it has no end"),
            }
        }

        async fn run(&self) -> Result<Value, Failure> {
            self.updater.run(self.id, Kind::UpdateOs, &self.order, false).await
        }

        fn version(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("version")).unwrap()
        }

        fn has(&self, name: &str) -> bool {
            self.dir.path().join(name).exists()
        }

        async fn waits_for(&self, name: &str) {
            while !self.has(name) {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// The reason of one that went back.
    fn reason(done: Result<Value, Failure>) -> String {
        let failure = done.unwrap_err();
        assert_eq!(failure.code, "rolled_back", "{failure:?}");
        failure.data.unwrap()["reason"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn an_artifact_that_would_fill_the_disk_is_not_fetched() {
        let Some(disk) = SmallDisk::mount(1024 * 1024) else {
            println!("skipped: mounting a small disk needs root");
            return;
        };
        let mut device = Device::new("touch installed", "true", "true");
        let kept = device.dir.path().join("update");
        std::fs::remove_dir_all(&kept).unwrap();
        std::os::unix::fs::symlink(disk.path(), &kept).unwrap();
        device.enter(Phase::Fetching);
        let failure = device.update().await.unwrap_err();
        assert_eq!(failure.code, "no_space");
        assert_eq!(failure.data.unwrap()["version_after"], "1");
        assert!(!device.has("installed") && !device.has("update/os.artifact"));
    }

    #[tokio::test]
    async fn a_device_that_is_busy_by_now_is_not_disturbed() {
        let device = Device::new("touch installed", "true", "true");
        device.busy.set("writing results", HOUR).unwrap();
        let failure = device.update().await.unwrap_err();
        assert_eq!(failure.code, "device_busy");
        assert!(failure.message.ends_with("writing results"), "{}", failure.message);
        assert_eq!(failure.data.unwrap()["installed"], false);
        assert!(!device.has("installed") && !device.has("update/os.artifact"));
        assert_eq!(device.version(), "1\n");
    }

    #[tokio::test]
    async fn an_update_waits_until_the_device_is_not_busy_any_more() {
        let device = Device::new("echo 2 > version; touch installed", "true", "true");
        device.busy.set("writing results", Duration::from_secs(2)).unwrap();
        let done = device.update().await.unwrap();
        assert_eq!(done["version_after"], "2");
        assert_eq!(device.busy.in_force(), None);
    }

    #[tokio::test]
    async fn what_is_installed_is_not_started_on_a_device_that_became_busy() {
        let install = "touch installing; while [ ! -e go ]; do sleep 0.05; done; echo 2 > next";
        let device = Device::new(install, "touch started; cp next version", "rm next");
        let application = async {
            device.waits_for("installing").await;
            device.busy.set("writing results", HOUR).unwrap();
            std::fs::write(device.dir.path().join("go"), "").unwrap();
        };
        let (done, ()) = tokio::join!(device.update(), application);
        assert_eq!(reason(done), "device_busy");
        assert!(!device.has("started") && !device.has("next"));
        assert_eq!(device.version(), "1\n");
    }

    #[tokio::test]
    async fn who_may_disturb_a_busy_device_may_do_so_after_a_restart_too() {
        let mut device = Device::new("echo 2 > version", "true", "true");
        device.busy.set("writing results", HOUR).unwrap();
        device.journal.override_busy = true;
        device.enter(Phase::Fetching);
        assert_eq!(device.update().await.unwrap()["version_after"], "2");
    }

    #[tokio::test]
    async fn an_agent_that_stopped_before_it_started_what_is_installed_starts_it() {
        let mut device = Device::new("touch installed", "echo 2 > version", "true");
        device.enter(Phase::Installed);
        assert_eq!(device.update().await.unwrap()["version_after"], "2");
        assert!(!device.has("installed"), "the installer is begun once");

        // The restart that stopped it has started the new one.
        let mut device = Device::new("true", "touch started", "true");
        std::fs::write(device.dir.path().join("version"), "2\n").unwrap();
        device.enter(Phase::Installed);
        assert_eq!(device.update().await.unwrap()["version_after"], "2");
        assert!(!device.has("started"), "it is not started once more");
    }

    #[tokio::test]
    async fn an_installer_that_was_interrupted_is_undone() {
        let mut device = Device::new("touch installed", "true", "echo 1 > version");
        std::fs::write(device.dir.path().join("version"), "between\n").unwrap();
        device.enter(Phase::Installing);
        assert_eq!(reason(device.update().await), "interrupted");
        assert_eq!(device.version(), "1\n");
        assert!(!device.has("installed"), "the installer is begun once");
    }

    #[tokio::test]
    async fn a_new_version_that_hears_nothing_of_the_server_does_not_stay() {
        // What was heard before proves nothing, and neither does what was asked before and comes later.
        let device = Device::with("echo 2 > version", "true", "echo 1 > version", "touch committed", 3);
        let before = Instant::now();
        device.updater.lines.answered(before);
        let late = async {
            device.updater.lines.contact_wanted().await;
            device.updater.lines.answered(before);
        };
        let (done, ()) = tokio::join!(device.run(), late);
        assert_eq!(reason(done), "no_contact");
        assert_eq!(device.version(), "1\n");
        assert!(!device.has("committed"));

        // It asks to hear of it.
        let device = Device::new("echo 2 > version", "true", "true");
        let server = async {
            device.updater.lines.contact_wanted().await;
            assert_eq!(device.version(), "2\n");
            device.updater.lines.answered(Instant::now());
        };
        let (done, ()) = tokio::join!(device.run(), server);
        assert_eq!(done.unwrap()["version_after"], "2");
    }

    #[tokio::test]
    async fn a_new_version_that_restarts_the_agent_again_and_again_does_not_stay() {
        for (agents, expected) in [(0, "2\n"), (2, "2\n"), (3, "1\n")] {
            let mut device = Device::new("true", "true", "echo 1 > version");
            std::fs::write(device.dir.path().join("version"), "2\n").unwrap();
            device.enter(Phase::Activating { agents });
            let done = device.update().await;
            assert_eq!(device.version(), expected, "{agents}");
            if let Err(failure) = done {
                assert_eq!(failure.data.unwrap()["reason"], "restarted_too_often");
            }
        }
        // Each of them is counted before it waits.
        let mut device = Device::new("true", "true", "echo 1 > version");
        device.enter(Phase::Activating { agents: 1 });
        assert!(tokio::time::timeout(Duration::from_millis(500), device.run()).await.is_err(), "it waits");
        let found = Journal::load(&device.updater.journal_path(Kind::UpdateOs)).unwrap();
        assert_eq!(found.phase, Phase::Activating { agents: 2 });
    }

    #[tokio::test]
    async fn a_new_version_that_does_not_come_up_does_not_stay() {
        let device = Device::with("echo 2 > next", "true", "rm next", "true", 3);
        assert_eq!(reason(device.update().await), "not_activated");
        assert_eq!(device.version(), "1\n");
    }

    #[tokio::test]
    async fn a_restart_while_it_was_fetched_is_not_taken_for_one_into_the_new_version() {
        // The device was restarted since, and the activation takes its time.
        let device = Device::new("true", "(sleep 3; echo 2 > version) > /dev/null 2>&1 &", "touch rolled-back");
        std::fs::write(device.dir.path().join("boot_id"), "boot-2\n").unwrap();
        assert_eq!(device.update().await.unwrap()["version_after"], "2");
        assert!(!device.has("rolled-back"));
    }

    #[tokio::test]
    async fn what_commits_is_run_again_if_it_was_stopped_and_leads_back_if_it_fails() {
        let stopped_once = "if [ ! -e stopped ]; then touch stopped; kill -TERM $$; fi; touch committed";
        let device = Device::with("echo 2 > version", "true", "echo 1 > version", stopped_once, 30);
        assert_eq!(device.update().await.unwrap()["version_after"], "2");
        assert!(device.has("stopped") && device.has("committed"));

        for commit in ["echo no >&2; exit 1", "kill -SEGV $$"] {
            let device = Device::with("echo 2 > version", "true", "echo 1 > version", commit, 30);
            assert_eq!(reason(device.update().await), "commit_failed");
            assert_eq!(device.version(), "1\n");
        }
        // Not for ever.
        let device = Device::with("echo 2 > version", "true", "echo 1 > version", "kill -TERM $$", 3);
        assert_eq!(reason(device.update().await), "commit_failed");
    }

    #[tokio::test]
    async fn a_restart_that_takes_with_it_who_asked_for_it_is_no_failure() {
        let device = Device::new("true", "echo 2 > version; kill -TERM $$", "echo 1 > version");
        let data = device.update().await.unwrap();
        assert_eq!((device.version().as_str(), &data["version_after"]), ("2\n", &json!("2")));
        // The same on the way back.
        let device = Device::new("exit 1", "true", "echo 1 > version; kill -TERM $$");
        let failure = device.update().await.unwrap_err();
        assert_eq!((failure.code, &failure.data.unwrap()["reason"]), ("rolled_back", &json!("installer_failed")));
    }

    #[tokio::test]
    async fn an_activation_that_fails_or_dies_leads_back() {
        for activate in ["exit 1", "kill -SEGV $$"] {
            let device = Device::new("echo 2 > version", activate, "echo 1 > version");
            let failure = device.update().await.unwrap_err();
            assert_eq!((failure.code, &failure.data.unwrap()["reason"]), ("rolled_back", &json!("not_activated")));
            assert_eq!(device.version(), "1\n");
        }
    }

    #[tokio::test]
    async fn roots_that_are_no_good_are_told_at_once() {
        let device = Device::new("true", "true", "true");
        device.updater.tidy(Kind::UpdateOs);
        let update = tokio::time::timeout(Duration::from_secs(60), device.update());
        assert_eq!(update.await.expect("it does not try again").unwrap_err().code, "ca_file");
    }

    #[tokio::test]
    async fn what_is_installed_is_undone_also_when_that_cannot_be_noted() {
        // From then on the journal cannot be written.
        let device = Device::new("echo 2 > version; mkdir update/os.json.new", "true", "echo 1 > version");
        let failure = device.update().await.unwrap_err();
        assert_eq!((failure.code, &failure.data.unwrap()["reason"]), ("rolled_back", &json!("disk")));
        assert_eq!(device.version(), "1\n");
    }
}
