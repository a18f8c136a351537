use std::collections::BTreeMap;

use cloudlink_proto::ids::CommandId;
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;

fn id(number: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(number))
}

fn intent(number: u128, server_unix_ms: u64) -> Intent {
    Intent { id: id(number), kind: Kind::RestartService, boot_id: "boot-1".to_owned(), server_unix_ms }
}

fn report(state: FinalState) -> Report {
    Report { state, code: "c".to_owned(), message: "m".to_owned(), data: Some(json!({"exit_status": 1})) }
}

/// In memory where that can be had: these tests write and sync thousands of files.
fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn content(dir: &tempfile::TempDir) -> Vec<u8> {
    std::fs::read(dir.path().join(FILE_NAME)).unwrap()
}

#[test]
fn everything_is_known_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    for number in 1..=5 {
        ledger.accept(intent(number, 1_000)).unwrap();
    }
    for number in 2..=5 {
        ledger.begin(id(number)).unwrap();
    }
    for number in 3..=4 {
        ledger.finish(id(number), report(FinalState::Failed)).unwrap();
    }
    ledger.receipt(id(4)).unwrap();
    ledger.refuse(id(6), 1_000, report(FinalState::Refused)).unwrap();
    drop(ledger);

    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.damage(), None);
    assert_eq!(ledger.unfinished(), [id(1), id(2), id(5)]);
    assert_eq!(ledger.unreceipted(), [id(3), id(6)]);
    let progress = |number| ledger.entry(id(number)).unwrap().progress.clone();
    assert_eq!(progress(1), Progress::Accepted);
    assert_eq!(progress(2), Progress::Running);
    assert_eq!(progress(3), Progress::Reported(report(FinalState::Failed)));
    assert_eq!(progress(4), Progress::Receipted { state: FinalState::Failed, code: "c".to_owned() });
    assert_eq!(progress(6), Progress::Reported(report(FinalState::Refused)));
    assert_eq!(ledger.entry(id(1)).unwrap().intent.as_ref().unwrap().boot_id, "boot-1");
}

/// As a later version of the agent would have written it.
pub(crate) fn accept_unknown_kind(state_dir: &Path, id: CommandId) {
    let mut ledger = Ledger::open(state_dir).unwrap();
    let kind = WrittenKind::Unknown("firmware.update".to_owned());
    let accepted = Record::Accepted { id, kind, boot_id: "boot-1".to_owned(), at_unix_ms: 1_000 };
    for record in [accepted, Record::Running { id }] {
        ledger.append(&record, Durability::Synced).unwrap();
    }
}

#[test]
fn a_kind_of_a_later_version_is_no_damage_and_is_kept_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    accept_unknown_kind(dir.path(), id(1));
    let written = content(&dir);
    assert!(String::from_utf8_lossy(&written).contains(r#""kind":"firmware.update""#));

    let mut ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!((ledger.damage(), ledger.unfinished()), (None, vec![id(1)]));
    assert_eq!(Ledger::inspect(dir.path()).unwrap().damage, None);
    assert!(matches!(ledger.accept(intent(1, 1_000)), Err(AcceptError::Known)), "it does not run again");
    ledger.accept(intent(2, 1_000)).expect("others may run");

    // The later version is put back, and finds what it has written.
    ledger.compact(2_000).unwrap();
    assert!(content(&dir).starts_with(&written));
    let unknown = WrittenKind::Unknown("firmware.update".to_owned());
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.entry(id(1)).unwrap().intent.as_ref().unwrap().kind, unknown);
}

#[test]
fn what_stands_where_a_kind_should_and_is_none_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    accept_unknown_kind(dir.path(), id(1));
    let spoilt = String::from_utf8(content(&dir)).unwrap().replace("firmware", "firmwarf");
    std::fs::write(dir.path().join(FILE_NAME), spoilt).unwrap();
    assert!(Ledger::open(dir.path()).unwrap().damage().is_some(), "the checksum is another one");
}

#[test]
fn a_known_id_is_never_accepted_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.accept(intent(1, 0)).unwrap();
    ledger.refuse(id(2), 0, report(FinalState::Refused)).unwrap();
    ledger.finish(id(1), report(FinalState::Succeeded)).unwrap();
    ledger.receipt(id(1)).unwrap();
    ledger.compact(1_000).unwrap();
    for mut ledger in [ledger, Ledger::open(dir.path()).unwrap()] {
        for number in [1, 2] {
            assert!(matches!(ledger.accept(intent(number, 0)), Err(AcceptError::Known)));
        }
    }
}

#[test]
fn compaction_keeps_ids_for_thirty_days_of_server_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    let day_ms = 24 * 3600 * 1000;
    for (number, at) in [(1, 0), (2, 0), (3, 5 * day_ms)] {
        ledger.accept(intent(number, at)).unwrap();
        ledger.finish(id(number), report(FinalState::Succeeded)).unwrap();
    }
    ledger.receipt(id(1)).unwrap();
    ledger.receipt(id(3)).unwrap();
    let before = content(&dir).len();
    ledger.compact(31 * day_ms).unwrap();
    assert!(content(&dir).len() < before);
    // What comes after a compaction goes to the new file.
    ledger.accept(intent(4, 31 * day_ms)).unwrap();
    drop(ledger);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert!(ledger.entry(id(1)).is_none(), "receipted and older than 30 days");
    assert_eq!(ledger.unreceipted(), [id(2)], "a report without a receipt stays");
    assert!(ledger.entry(id(3)).is_some(), "younger than 30 days");
    assert_eq!(ledger.unfinished(), [id(4)]);
}

#[test]
fn reports_without_receipt_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    for number in 0..UNRECEIPTED_MAX as u128 {
        ledger.refuse(id(number), 0, report(FinalState::Refused)).unwrap();
    }
    assert!(matches!(ledger.accept(intent(1_000, 0)), Err(AcceptError::Crowded)));
    ledger.receipt(id(0)).unwrap();
    ledger.accept(intent(1_000, 0)).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_but_in_a_torn_end_refuses_new_commands_and_forgets_nothing_else() {
    let dir = quick_dir();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    for number in 1..=3 {
        ledger.accept(intent(number, 0)).unwrap();
    }
    drop(ledger);
    let whole = content(&dir);
    for position in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[position] ^= 1;
        std::fs::write(dir.path().join(FILE_NAME), &flipped).unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.damage().is_some(), "bit at {position}");
        assert!(matches!(ledger.accept(intent(9, 0)), Err(AcceptError::Damaged)), "bit at {position}");
        let known = (1..=3).filter(|number| ledger.entry(id(*number)).is_some()).count();
        assert!(known >= 1, "bit at {position}: {known} known");
        assert_eq!(content(&dir), flipped, "damage is left for somebody to look at");
        assert!(Ledger::inspect(dir.path()).unwrap().damage.is_some());
    }
}

#[test]
fn an_end_that_reads_as_zeros_was_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.accept(intent(1, 0)).unwrap();
    drop(ledger);
    let mut torn = content(&dir);
    let line = torn.clone();
    torn.extend_from_slice(&line[..30]);
    torn.extend_from_slice(&[0; 4096]);
    std::fs::write(dir.path().join(FILE_NAME), &torn).unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!((ledger.damage(), ledger.unfinished()), (None, vec![id(1)]));
    assert_eq!(content(&dir), line);
}

/// Runs commands as the agent does. What is run is kept outside, as the device's own memory of what was done to it.
struct Device {
    ledger: Ledger,
    /// For each run: the command, and how long the file was when it was begun.
    runs: Vec<(CommandId, u64)>,
}

impl Device {
    fn deliver(&mut self, number: u128) {
        if self.ledger.accept(intent(number, 0)).is_ok() {
            self.ledger.begin(id(number)).unwrap();
            self.runs.push((id(number), self.ledger.bytes));
        }
    }

    fn runs_by_command(&self) -> BTreeMap<CommandId, usize> {
        let mut runs = BTreeMap::new();
        self.runs.iter().for_each(|(id, _)| *runs.entry(*id).or_default() += 1);
        runs
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver(u128),
    Finish(u128),
    Receipt(u128),
    Refuse(u128),
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u128).prop_map(Step::Deliver),
        2 => (0..6u128).prop_map(Step::Finish),
        2 => (0..6u128).prop_map(Step::Receipt),
        1 => (0..6u128).prop_map(Step::Refuse),
        1 => Just(Step::Compact),
    ]
}

fn take(device: &mut Device, step: Step) {
    match step {
        Step::Deliver(number) => device.deliver(number),
        Step::Finish(number) => {
            if device.ledger.unfinished().contains(&id(number)) {
                device.ledger.finish(id(number), report(FinalState::Succeeded)).unwrap();
            }
        }
        Step::Receipt(number) => device.ledger.receipt(id(number)).unwrap(),
        Step::Refuse(number) => device.ledger.refuse(id(number), 0, report(FinalState::Refused)).unwrap(),
        Step::Compact => device.ledger.compact(1_000).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The power fails while the last step is being written: any part of what that step added may be missing.
    #[test]
    fn no_command_runs_twice_whatever_crashes(steps in proptest::collection::vec(step(), 1..16)) {
        let dir = quick_dir();
        let mut device = Device { ledger: Ledger::open(dir.path()).unwrap(), runs: Vec::new() };
        let (last, before) = steps.split_last().unwrap();
        before.iter().for_each(|step| take(&mut device, *step));
        let durable = content(&dir).len();
        let runs_before = device.runs.len();
        take(&mut device, *last);
        let written = content(&dir);
        let mut runs = device.runs.clone();
        // A compaction renames: there is nothing between the old and the new file.
        let cuts = if matches!(last, Step::Compact) { written.len()..=written.len() } else { durable..=written.len() };
        for cut in cuts {
            runs.truncate(runs_before);
            // What was begun had its intent on the disk, so it is not among what this crash lost.
            runs.extend(device.runs[runs_before..].iter().filter(|(_, bytes)| *bytes <= cut as u64));
            let crashed = quick_dir();
            std::fs::write(crashed.path().join(FILE_NAME), &written[..cut]).unwrap();
            let ledger = Ledger::open(crashed.path()).unwrap();
            prop_assert_eq!(ledger.damage(), None, "cut at {}", cut);
            let mut again = Device { ledger, runs: runs.clone() };
            (0..6).for_each(|number| again.deliver(number));
            for (command, runs) in again.runs_by_command() {
                prop_assert_eq!(runs, 1, "{} after a cut at {}", command, cut);
            }
        }
    }
}

#[test]
fn a_full_disk_lets_nothing_begin_and_what_was_begun_can_still_be_reported() {
    let Some(disk) = SmallDisk::mount(256 * 1024) else {
        println!("skipped: mounting a small disk needs root");
        return;
    };
    let mut ledger = Ledger::open(disk.path()).unwrap();
    ledger.accept(intent(1, 0)).unwrap();
    ledger.begin(id(1)).unwrap();
    disk.fill();

    let length = std::fs::metadata(disk.path().join(FILE_NAME)).unwrap().len();
    assert!(matches!(ledger.accept(intent(2, 0)), Err(AcceptError::Disk(_))));
    assert_eq!(std::fs::metadata(disk.path().join(FILE_NAME)).unwrap().len(), length, "nothing half written");
    let long = Report { data: Some(json!("x".repeat(30_000))), ..report(FinalState::Succeeded) };
    ledger.finish(id(1), long).expect("room was reserved");
    drop(ledger);

    let mut ledger = Ledger::open(disk.path()).unwrap();
    assert_eq!((ledger.unfinished(), ledger.unreceipted()), (vec![], vec![id(1)]));
    disk.empty();
    ledger.accept(intent(2, 0)).expect("there is room again");
}

#[test]
fn room_for_the_report_of_what_is_under_way_survives_a_compaction() {
    let Some(disk) = SmallDisk::mount(256 * 1024) else {
        println!("skipped: mounting a small disk needs root");
        return;
    };
    let mut ledger = Ledger::open(disk.path()).unwrap();
    ledger.accept(intent(1, 0)).unwrap();
    ledger.begin(id(1)).unwrap();
    ledger.compact(1_000).unwrap();
    disk.fill();
    let long = Report { data: Some(json!("x".repeat(30_000))), ..report(FinalState::Succeeded) };
    ledger.finish(id(1), long).expect("room was reserved");
}

impl Ledger {
    /// As after a failure of the disk that could not be undone.
    pub(crate) fn get_stuck(&mut self) {
        self.stuck = true;
    }
}

/// A file system of a few pages.
pub(crate) struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    pub(crate) fn mount(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then_some(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn fill(&self) {
        use std::io::Write;
        let mut file = File::create(self.path().join("filler")).unwrap();
        while file.write_all(&[1; 1024]).is_ok() {}
    }

    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.path()).status();
    }
}
