use std::path::{Path, PathBuf};

use cloudlink_proto::link::message::{Artifact, CollectMetrics, Reboot, RestartService, Shutdown, Update, command};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::*;
use crate::config::Config;
use crate::executor::Bus;
use crate::ledger::tests::{SmallDisk, accept_unknown_kind};
use crate::metrics::Sampler;

/// A device whose services and power are scripts that write down each run.
struct Device {
    dir: tempfile::TempDir,
}

impl Device {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// To be run by a shell that is named: a file that was just written cannot always be executed while other tests fork.
    fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let runs = self.runs_path();
        std::fs::write(&path, format!("echo {name} \"$@\" >> {}\n{body}\n", runs.display())).unwrap();
        path
    }

    fn runs_path(&self) -> PathBuf {
        self.dir.path().join("runs")
    }

    fn runs(&self) -> Vec<String> {
        std::fs::read_to_string(self.runs_path()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn start(&self, boot_id: &str) -> Desk {
        self.start_with(boot_id, "exit 0")
    }

    fn start_with(&self, boot_id: &str, body: &str) -> Desk {
        self.start_on(self.dir.path(), boot_id, body)
    }

    fn start_on(&self, state_dir: &Path, boot_id: &str, body: &str) -> Desk {
        let (restart, reboot, halt) =
            (self.script("restart", body), self.script("reboot", "exit 0"), self.script("halt", "exit 3"));
        let config = Config::parse(&format!(
            "state_dir = \"/unused\"\n[server]\nhost = \"a.test\"\nca_file = \"/unused\"\n\
             [service]\nallow = [\"web\", \"db\"]\nrestart_argv = [\"/bin/sh\", {restart:?}, \"{{service}}\"]\n\
             [power]\nreboot_argv = [\"/bin/sh\", {reboot:?}]\nshutdown_argv = [\"/bin/sh\", {halt:?}]\n\
             [update]\nhosts = [\"u.test\"]\n[update.os]\ninstall_argv = [\"/bin/false\", \"{{file}}\"]\n\
             rollback_argv = [\"/bin/false\"]\nversion_argv = [\"/bin/false\"]\n",
        ))
        .unwrap();
        let busy = Arc::new(Busy::load(state_dir, Duration::from_secs(3600)));
        let sampler = Arc::new(Mutex::new(Sampler::new()));
        let (executor, _) = Executor::new(&config, Bus::System, sampler, Arc::clone(&busy));
        Desk::new(Ledger::open(state_dir).unwrap(), executor, boot_id.to_owned(), busy)
    }
}

const HOUR_MS: u64 = 3_600_000;

fn id(number: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(number))
}

fn restart(service: &str) -> command::Kind {
    command::Kind::RestartService(RestartService { service: service.to_owned() })
}

fn reboot() -> command::Kind {
    command::Kind::Reboot(Reboot {})
}

fn deliver(desk: &mut Desk, number: u128, kind: command::Kind) -> CommandStatus {
    deliver_within(desk, number, Some(kind), HOUR_MS)
}

fn deliver_within(desk: &mut Desk, number: u128, kind: Option<command::Kind>, start_within_ms: u64) -> CommandStatus {
    let command = Command { id: id(number).to_wire(), start_within_ms, kind, ..Command::default() };
    desk.handle_command(Instant::now(), id(number), &command, Ok(Leave::UNLIMITED), 1_000)
}

fn begin(desk: &mut Desk) -> Option<CommandId> {
    let (begun, told) = desk.begin_next(Instant::now())?;
    assert_eq!(told.state(), command_status::State::Running);
    let begun = begun.expect("it can be begun");
    let id = begun.id;
    desk.execute(begun, None);
    Some(id)
}

async fn end(desk: &mut Desk) -> CommandStatus {
    let (id, report) = tokio::time::timeout(Duration::from_secs(30), desk.done()).await.expect("it ends");
    desk.handle_done(id, report)
}

fn told(status: &CommandStatus) -> (command_status::State, &str) {
    (status.state(), status.code.as_str())
}

fn told_owned(status: &CommandStatus) -> (command_status::State, String) {
    (status.state(), status.code.clone())
}

fn data(status: &CommandStatus) -> serde_json::Value {
    serde_json::from_slice(&status.data_json).unwrap()
}

#[tokio::test]
async fn a_command_is_accepted_run_reported_and_receipted() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))), (command_status::State::Accepted, ""));
    assert_eq!(begin(&mut desk), Some(id(1)));
    let done = end(&mut desk).await;
    assert_eq!(told(&done), (command_status::State::Succeeded, ""));
    assert_eq!(data(&done)["exit_status"], 0);
    assert_eq!(device.runs(), ["restart web"]);
    assert_eq!(desk.outstanding(), [done]);
    desk.handle_receipt(id(1), 1_000);
    assert_eq!(desk.outstanding(), []);
}

#[tokio::test]
async fn a_command_that_comes_again_is_answered_and_not_run_whatever_became_of_it() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    deliver(&mut desk, 1, restart("web"));
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))).0, command_status::State::Accepted);
    begin(&mut desk);
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))).0, command_status::State::Running);
    let done = end(&mut desk).await;
    assert_eq!(deliver(&mut desk, 1, restart("web")), done);
    desk.handle_receipt(id(1), 1_000);
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))).0, command_status::State::Succeeded);

    let mut desk = device.start("boot-2");
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))).0, command_status::State::Succeeded);
    assert_eq!(begin(&mut desk), None);
    assert_eq!(device.runs(), ["restart web"]);
}

#[tokio::test]
async fn what_a_later_version_has_begun_is_told_and_holds_nothing_up() {
    let device = Device::new();
    accept_unknown_kind(device.dir.path(), id(1));
    let mut desk = device.start("boot-1");
    let outstanding = desk.outstanding();
    assert_eq!(outstanding.iter().map(told).collect::<Vec<_>>(), [(command_status::State::Failed, "interrupted")]);
    assert!(outstanding[0].message.contains("firmware.update"), "{}", outstanding[0].message);
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))), (command_status::State::Failed, "interrupted"));
    assert_eq!(deliver(&mut desk, 2, restart("web")).state(), command_status::State::Accepted);
}

#[tokio::test]
async fn what_was_interrupted_is_never_begun_again() {
    let device = Device::new();
    let mut desk = device.start_with("boot-1", "sleep 5");
    deliver(&mut desk, 1, restart("web"));
    deliver(&mut desk, 2, restart("db"));
    begin(&mut desk);
    assert_eq!(begin(&mut desk), None, "one of a kind at a time");
    drop(desk);

    let mut desk = device.start("boot-1");
    let outstanding = desk.outstanding();
    assert_eq!(outstanding.iter().map(told).collect::<Vec<_>>(), [(command_status::State::Failed, "interrupted"); 2]);
    assert!(outstanding[1].message.contains("before it was begun"), "{:?}", outstanding[1].message);
    assert_eq!(begin(&mut desk), None);
}

#[tokio::test]
async fn another_boot_proves_a_reboot_and_the_same_boot_disproves_it() {
    for (after, expected) in [
        ("boot-2", (command_status::State::Succeeded, "")),
        ("boot-1", (command_status::State::Failed, "not_rebooted")),
    ] {
        let device = Device::new();
        let mut desk = device.start("boot-1");
        deliver(&mut desk, 1, reboot());
        begin(&mut desk);
        drop(desk);
        let desk = device.start(after);
        let [status] = &desk.outstanding()[..] else { panic!("one is outstanding") };
        assert_eq!(told(status), expected);
        assert_eq!(data(status), json!({"boot_id_before": "boot-1", "boot_id_after": after}));
    }
}

#[tokio::test]
async fn a_power_program_that_fails_is_a_failed_command() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    deliver(&mut desk, 1, command::Kind::Shutdown(Shutdown {}));
    begin(&mut desk);
    let done = end(&mut desk).await;
    assert_eq!(told(&done), (command_status::State::Failed, "exit_status"));
    assert_eq!(data(&done)["exit_status"], 3);
    assert_eq!(told(&deliver(&mut desk, 2, restart("web"))).0, command_status::State::Accepted, "it goes on");
}

#[tokio::test]
async fn a_reboot_waits_for_what_runs_runs_alone_and_lets_nothing_in() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    deliver(&mut desk, 1, restart("web"));
    begin(&mut desk);
    deliver(&mut desk, 2, reboot());
    assert_eq!(begin(&mut desk), None);
    assert_eq!(told(&deliver(&mut desk, 3, restart("db"))), (command_status::State::Refused, "busy"));
    end(&mut desk).await;
    assert!(!desk.is_at_work());
    assert_eq!(begin(&mut desk), Some(id(2)));
    assert_eq!(told(&deliver(&mut desk, 4, command::Kind::CollectMetrics(CollectMetrics {}))).1, "busy");
    assert_eq!(told(&deliver(&mut desk, 3, restart("db"))).1, "busy", "a refusal stays one");
}

#[tokio::test]
async fn metrics_are_measured_while_a_service_restarts() {
    let device = Device::new();
    let mut desk = device.start_with("boot-1", "sleep 5");
    deliver(&mut desk, 1, restart("web"));
    deliver(&mut desk, 2, command::Kind::CollectMetrics(CollectMetrics {}));
    assert_eq!((begin(&mut desk), begin(&mut desk)), (Some(id(1)), Some(id(2))));
    let done = end(&mut desk).await;
    assert_eq!((done.id.clone(), told(&done).0), (id(2).to_wire(), command_status::State::Succeeded));
    assert!(data(&done)["memory_total_bytes"].as_u64().unwrap() > 0);
    assert!(desk.is_at_work());
}

#[tokio::test]
async fn what_is_not_allowed_or_not_known_is_refused_and_nothing_runs() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    for (number, service) in [(1, "sshd"), (2, "../../bin/sh"), (3, "--force"), (4, "web\n")] {
        assert_eq!(
            told(&deliver(&mut desk, number, restart(service))),
            (command_status::State::Refused, "not_allowed")
        );
    }
    let unknown = deliver_within(&mut desk, 5, None, HOUR_MS);
    assert_eq!(told(&unknown), (command_status::State::Refused, "unknown_kind"));
    assert_eq!((begin(&mut desk), device.runs()), (None, vec![]));
    assert_eq!(desk.outstanding().len(), 5, "told again until receipted");
}

#[tokio::test]
async fn what_the_tenant_did_not_sign_is_refused_and_stays_so() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    let command = Command { id: id(1).to_wire(), start_within_ms: HOUR_MS, kind: Some(reboot()), ..Command::default() };
    let mut deliver = |leave| told_owned(&desk.handle_command(Instant::now(), id(1), &command, leave, 1_000));
    assert_eq!(deliver(Err(Denied::Unsigned)), (command_status::State::Refused, "grant_unsigned".to_owned()));
    assert_eq!(deliver(Ok(Leave::UNLIMITED)), (command_status::State::Refused, "grant_unsigned".to_owned()));
    let mut desk = device.start("boot-1");
    assert_eq!(told(&deliver_within(&mut desk, 1, Some(reboot()), HOUR_MS)).1, "grant_unsigned", "from the disk");
    let denied = Err(Denied::Invalid("it has ended".to_owned()));
    let status = desk.handle_command(Instant::now(), id(2), &command, denied, 1_000);
    assert_eq!((told(&status).1, status.message.as_str()), ("grant_invalid", "it has ended"));
    assert_eq!((begin(&mut desk), device.runs()), (None, vec![]));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_after_the_end_of_the_signed_grant() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    let command = Command { start_within_ms: HOUR_MS, kind: Some(restart("web")), ..Command::default() };
    let now = Instant::now();
    let ended = desk.handle_command(now, id(1), &command, Ok(Leave { until: Some(now) }), 1_000);
    assert_eq!(told(&ended), (command_status::State::Expired, "expired"));
    let leave = Leave { until: Some(now + Duration::from_secs(5)) };
    desk.handle_command(now, id(2), &command, Ok(leave), 1_000);
    assert_eq!(desk.poll_timeout(), Some(now + Duration::from_secs(5)));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(begin(&mut desk), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_begun_in_time_expires() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    let late = deliver_within(&mut desk, 1, Some(restart("web")), 0);
    assert_eq!(told(&late), (command_status::State::Expired, "expired"));
    deliver_within(&mut desk, 2, Some(restart("web")), 1_000);
    deliver_within(&mut desk, 3, Some(restart("web")), u64::MAX);
    assert_eq!(desk.poll_timeout(), Some(Instant::now() + Duration::from_secs(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(begin(&mut desk), None, "too late, and not yet told so");
    let expired = desk.handle_timeout(Instant::now());
    assert_eq!(expired.iter().map(told).collect::<Vec<_>>(), [(command_status::State::Expired, "expired")]);
    assert_eq!(begin(&mut desk), Some(id(3)));
}

#[tokio::test]
async fn a_cancelled_command_is_not_begun_also_when_the_cancellation_comes_first() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    deliver(&mut desk, 1, restart("web"));
    let cancelled = desk.handle_cancel(id(1), 1_000);
    assert_eq!(told(&cancelled), (command_status::State::Cancelled, "cancelled"));
    desk.handle_cancel(id(2), 1_000);
    assert_eq!(told(&deliver(&mut desk, 2, restart("web"))).0, command_status::State::Cancelled);
    assert_eq!(begin(&mut desk), None);

    deliver(&mut desk, 3, restart("web"));
    begin(&mut desk);
    assert_eq!(told(&desk.handle_cancel(id(3), 1_000)).0, command_status::State::Running, "it goes on");
    assert_eq!(told(&end(&mut desk).await).0, command_status::State::Succeeded);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    for number in 0..WAITING_MAX as u128 {
        assert_eq!(told(&deliver(&mut desk, number, restart("web"))).0, command_status::State::Accepted);
    }
    assert_eq!(told(&deliver(&mut desk, 100, restart("web"))), (command_status::State::Refused, "busy"));
}

#[tokio::test]
async fn a_damaged_ledger_refuses_everything_and_begins_nothing() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    deliver(&mut desk, 1, restart("web"));
    deliver(&mut desk, 2, restart("db"));
    drop(desk);
    let path = device.dir.path().join("ledger");
    let mut content = std::fs::read(&path).unwrap();
    content[40] ^= 1;
    std::fs::write(&path, content).unwrap();
    let mut desk = device.start("boot-1");
    for number in [1, 3] {
        assert_eq!(
            told(&deliver(&mut desk, number, restart("web"))),
            (command_status::State::Refused, "ledger_corrupt")
        );
    }
    assert_eq!((begin(&mut desk), device.runs()), (None, vec![]));
}

#[tokio::test]
async fn with_a_full_disk_commands_are_refused_and_stay_so_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount(256 * 1024) else {
        println!("skipped: mounting a small disk needs root");
        return;
    };
    let device = Device::new();
    let mut desk = device.start_on(disk.path(), "boot-1", "exit 0");
    deliver(&mut desk, 1, restart("web"));
    disk.fill();
    let full = (command_status::State::Refused, "ledger_full");
    assert_eq!(told(&deliver(&mut desk, 2, restart("db"))), full);
    begin(&mut desk);
    assert_eq!(told(&end(&mut desk).await).0, command_status::State::Succeeded);
    disk.empty();
    assert_eq!(told(&deliver(&mut desk, 2, restart("db"))), full, "what was refused is not run later");
    assert_eq!(told(&deliver(&mut desk, 3, restart("db"))).0, command_status::State::Accepted);
    assert_eq!(device.runs(), ["restart web"]);
}

#[tokio::test]
async fn an_update_that_cannot_be_noted_is_not_begun_and_says_so() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    let artifact = Artifact { url: "https://u.test/2".to_owned(), sha256: vec![1; 32].into(), size: 1 };
    let update = Update { artifact: Some(artifact), version: "2".to_owned() };
    assert_eq!(
        told(&deliver(&mut desk, 1, command::Kind::OsUpdate(Box::new(update)))).0,
        command_status::State::Accepted
    );
    deliver(&mut desk, 2, restart("web"));
    desk.ledger.get_stuck();
    let (begun, status) = desk.begin_next(Instant::now()).unwrap();
    assert!(begun.is_none(), "whether it is half done would be known to nobody after a crash");
    assert_eq!(told(&status), (command_status::State::Failed, "disk"));
    // What is done in seconds is begun: that it was accepted is on the disk.
    assert_eq!(begin(&mut desk), Some(id(2)));
    assert_eq!(told(&end(&mut desk).await).0, command_status::State::Succeeded);
}

#[tokio::test]
async fn a_busy_device_does_only_what_does_not_disturb_it_or_overrides_its_lock() {
    let device = Device::new();
    let mut desk = device.start("boot-1");
    // Accepted before, and not begun.
    assert_eq!(told(&deliver(&mut desk, 1, restart("web"))).0, command_status::State::Accepted);
    assert_eq!(
        told(&deliver(&mut desk, 2, command::Kind::CollectMetrics(CollectMetrics {}))).0,
        command_status::State::Accepted
    );
    desk.busy.set("writing results", Duration::from_secs(600)).unwrap();
    let refused = desk.handle_busy();
    assert_eq!(refused.iter().map(told).collect::<Vec<_>>(), [(command_status::State::Refused, "device_busy")]);
    assert_eq!(begin(&mut desk), Some(id(2)));
    assert_eq!(told(&end(&mut desk).await).0, command_status::State::Succeeded);

    for (number, kind) in [(3, restart("web")), (4, reboot()), (5, command::Kind::Shutdown(Shutdown {}))] {
        let answer = deliver(&mut desk, number, kind);
        assert_eq!(told(&answer), (command_status::State::Refused, "device_busy"));
        assert!(answer.message.contains("writing results"), "{answer:?}");
    }
    assert_eq!(device.runs(), [""; 0]);
    let forced =
        Command { override_busy: true, start_within_ms: HOUR_MS, kind: Some(restart("web")), ..Command::default() };
    desk.handle_command(Instant::now(), id(6), &forced, Ok(Leave::UNLIMITED), 1_000);
    assert_eq!(desk.handle_busy(), []);
    assert_eq!(begin(&mut desk), Some(id(6)));
    assert_eq!(told(&end(&mut desk).await).0, command_status::State::Succeeded);
    desk.busy.clear().unwrap();
    // What was refused stays refused.
    assert_eq!(told(&deliver(&mut desk, 4, reboot())).0, command_status::State::Refused);
    assert_eq!(told(&deliver(&mut desk, 7, restart("web"))).0, command_status::State::Accepted);
}
