//! Updates: fetch, check, install, be back with the new version, or else with the one of before.
//!
//! The journal says what may have been done to the device. Fetching goes on after a restart of the agent; the installer is begun
//! once. From then on there are two ends: the device is in contact with the server again and says that it runs the new version, or
//! the one of before is put back and the report says why.

mod download;
mod journal;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use self::download::Download;
use self::journal::{Journal, Phase};
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
/// Told when an artifact is there, out of 100.
const FETCHED_PERCENT: u64 = 80;
const INSTALLED_PERCENT: u32 = 90;
/// The server hears of steps of so much.
const PERCENT_STEP: u32 = 5;
/// Steps that wait to be told. One more is left out.
const STEPS_MAX: usize = 16;
/// A version as it is reported.
const VERSION_BYTES_MAX: usize = 128;

/// How far commands are, in percent.
pub type Steps = mpsc::Receiver<(CommandId, u32)>;

/// Carries updates out.
#[derive(Debug)]
pub(super) struct Updater {
    limits: Limits,
    proxies: Proxies,
    ca_file: PathBuf,
    state_dir: PathBuf,
    boot_id_path: PathBuf,
    steps: mpsc::Sender<(CommandId, u32)>,
    contact: watch::Sender<bool>,
}

/// One update that is under way.
struct Job<'a> {
    id: CommandId,
    kind: Kind,
    installer: &'a Installer,
    journal: Journal,
    /// Another agent began it.
    resumed: bool,
}

impl Updater {
    pub(super) fn new(config: &Config) -> (Self, Steps) {
        let (steps, told) = mpsc::channel(STEPS_MAX);
        let updater = Self {
            limits: config.update.clone(),
            proxies: config.server.proxies.clone(),
            ca_file: config.update.ca_file.clone().unwrap_or_else(|| config.server.ca_file.clone()),
            state_dir: config.state_dir.clone(),
            boot_id_path: config.boot_id_path.clone(),
            steps,
            contact: watch::Sender::new(false),
        };
        (updater, told)
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

    /// Whether the device is in contact with the server.
    pub(super) fn set_contact(&self, contact: bool) {
        self.contact.send_replace(contact);
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
    pub(super) async fn run(&self, id: CommandId, kind: Kind, order: &Order) -> Result<Value, Failure> {
        let Some(installer) = self.installer(kind) else {
            return Err(Failure::new("not_configured", format!("[update.{}] is gone", section(kind))));
        };
        let found = Journal::load(&self.journal_path(kind)).filter(|journal| journal.id == id.as_uuid());
        let resumed = found.is_some();
        let journal = match found {
            Some(journal) => journal,
            None => self.begin(id, kind, installer, order).await?,
        };
        let mut job = Job { id, kind, installer, journal, resumed };
        let done = self.go_on(&mut job).await;
        self.tidy(kind);
        done
    }

    async fn begin(&self, id: CommandId, kind: Kind, installer: &Installer, order: &Order) -> Result<Journal, Failure> {
        self.tidy(kind);
        let boot_id = machine::boot_id(&self.boot_id_path).map_err(|error| internal(chain(&error)))?;
        let version_before = version(installer).await?;
        let mut journal =
            Journal { id: id.as_uuid(), update: order.clone(), boot_id, version_before, phase: Phase::Fetching };
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
            Phase::Installing => {
                // An installer that ends with a restart leaves its new version behind; what else it left is not known.
                if version(job.installer).await.is_ok_and(|version| version == job.journal.update.version) {
                    if let Err(failure) = self.enter(job, Phase::Activating) {
                        return Err(self.roll_back(job, failure.code, failure.message).await);
                    }
                    return self.confirm(job).await;
                }
                Err(self.roll_back(job, "interrupted", "the agent stopped while the installer ran".to_owned()).await)
            }
            Phase::Activating => self.confirm(job).await,
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
                self.tell(job.id, percent);
            }
        };
        let tls = || {
            let earliest = KnownTime::load(&self.state_dir, OffsetDateTime::UNIX_EPOCH).earliest();
            download::client(&self.ca_file, earliest)
        };
        let path = self.artifact_path(job.kind);
        let download =
            Download { order, limits: &self.limits, proxies: &self.proxies, path: &path, tls: &tls, told: &told };
        let fetched = Box::pin(download.fetch()).await;
        fetched.map_err(|failure| {
            let data =
                json!({ "reason": failure.code, "installed": false, "version_after": job.journal.version_before });
            failure.with_data(data)
        })
    }

    async fn install(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        self.enter(job, Phase::Installing)?;
        self.tell(job.id, u32::try_from(FETCHED_PERCENT).unwrap_or_default());
        let path = self.artifact_path(job.kind);
        let program = job.installer.install.for_update(&path.to_string_lossy(), &job.journal.update.version);
        let installed = argv::run(&program, job.installer.install_within).await;
        self.tidy(job.kind);
        if let Err(failure) = installed {
            return Err(self.roll_back(job, "installer_failed", told_by(&failure)).await);
        }
        if let Err(failure) = self.enter(job, Phase::Activating) {
            return Err(self.roll_back(job, failure.code, failure.message).await);
        }
        self.tell(job.id, INSTALLED_PERCENT);
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

    /// Waits until the device runs the new version and is in contact with the server.
    async fn confirm(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        let deadline = Instant::now() + job.installer.confirm_within;
        let wanted = job.journal.update.version.clone();
        loop {
            let contact = *self.contact.borrow();
            let found = version(job.installer).await;
            let is_new = found.as_ref().is_ok_and(|found| *found == wanted);
            if contact && is_new {
                return self.commit(job).await;
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
            | Kind::TestLink => job.resumed,
        }
    }

    async fn commit(&self, job: &mut Job<'_>) -> Result<Value, Failure> {
        if let Some(program) = &job.installer.commit {
            let program = program.for_update("", &job.journal.update.version);
            if let Err(failure) = argv::run(&program, ASKED_WITHIN).await {
                return Err(self.roll_back(job, "commit_failed", told_by(&failure)).await);
            }
        }
        Ok(job.data(&job.journal.update.version, json!({})))
    }

    /// Puts back what was before, and waits until it runs.
    async fn roll_back(&self, job: &mut Job<'_>, reason: &str, detail: String) -> Failure {
        tracing::warn!(command.id = %job.id, reason, detail = ?detail, "going back to the version of before");
        let attempts = match &job.journal.phase {
            Phase::RollingBack { attempts, .. } => *attempts,
            Phase::Fetching | Phase::Installing | Phase::Activating => 0,
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

    /// Tells how far a command is.
    pub(super) fn tell(&self, id: CommandId, percent: u32) {
        // A step that nobody hears of does no harm.
        let _ = self.steps.try_send((id, percent));
    }

    fn installer(&self, kind: Kind) -> Option<&Installer> {
        match kind {
            Kind::UpdateOs => self.limits.os.as_ref(),
            Kind::UpdateAgent => self.limits.agent.as_ref(),
            Kind::CollectMetrics | Kind::RestartService | Kind::Reboot | Kind::Shutdown | Kind::TestLink => None,
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

    const ARTIFACT: &[u8] = b"another system";

    /// A device on which the artifact is fetched already. Its version is a line in a file; the programs are lines of a shell, in its
    /// directory.
    struct Device {
        dir: tempfile::TempDir,
        updater: Updater,
        id: CommandId,
        order: Order,
    }

    impl Device {
        fn new(install: &str, activate: &str, rollback: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().display();
            let shell = |body: &str| json!(["/bin/sh", "-c", format!("cd {path} && {body}")]);
            let file = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
            let mut install = shell(install);
            install.as_array_mut().unwrap().push("{file}".into());
            let text = format!(
                "state_dir = \"{path}\"\nboot_id_path = \"{path}/boot_id\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n\
                 [update]\nhosts = [\"u.test\"]\n[update.os]\ninstall_argv = {install}\nactivate_argv = {}\nrollback_argv = {}\n\
                 version_argv = [\"/bin/cat\", \"{path}/version\"]\nconfirm_seconds = 30\n",
                shell(activate),
                shell(rollback)
            );
            let (updater, _) = Updater::new(&Config::parse(&text).unwrap());
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
            let mut journal = Journal {
                id: id.as_uuid(),
                update: order.clone(),
                boot_id: "boot-1".to_owned(),
                version_before: "1".to_owned(),
                phase: Phase::Fetching,
            };
            journal.enter(Phase::Fetching, &updater.journal_path(Kind::UpdateOs)).unwrap();
            updater.set_contact(true);
            Self { dir, updater, id, order }
        }

        async fn update(&self) -> Result<Value, Failure> {
            self.updater.run(self.id, Kind::UpdateOs, &self.order).await
        }

        fn version(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("version")).unwrap()
        }
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
