use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use cloudlink_certs::PrivateKey;
use cloudlink_proto::enroll;
use cloudlink_proto::link::message::{
    CollectMetrics, FileGet, FilePut, Forward, LinkTest, Reboot, RestartService, Shutdown, Terminal,
};
use time::macros::datetime;

use super::*;
use crate::clock::unix_ms;

const TENANT: Uuid = Uuid::from_u128(0x7e);
const OTHER: Uuid = Uuid::from_u128(0x99);
const DEVICE: Uuid = Uuid::from_u128(0xde);
const GRANT: Uuid = Uuid::from_u128(0x67);
/// When the fleet's authority was made.
const MADE: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
const ENDS: OffsetDateTime = datetime!(2190-01-01 00:00 UTC);

struct Device {
    dir: tempfile::TempDir,
    config: config::Access,
}

impl Device {
    fn new() -> Self {
        let config = config::Access { ids: Some((TENANT, DEVICE)), ..config::Access::default() };
        Self { dir: tempfile::tempdir().unwrap(), config }
    }

    fn requiring(keys: &[&PrivateKey]) -> Self {
        let mut device = Self::new();
        device.config.keys = Some(keys.iter().map(|key| device.key_file(key)).collect());
        device
    }

    fn pinning(keys: &[&PrivateKey]) -> Self {
        let device = Self::new();
        device.enroll(TENANT, true, keys).unwrap();
        device
    }

    fn key_file(&self, key: &PrivateKey) -> PathBuf {
        let path = self.dir.path().join(format!("{}.pem", KeyId::of(&key.public_key())));
        std::fs::write(&path, key.public_key().to_pem()).unwrap();
        path
    }

    fn enroll(&self, tenant: Uuid, required: bool, keys: &[&PrivateKey]) -> Result<(), PinError> {
        let keys_pem = keys.iter().map(|key| key.public_key().to_pem()).collect();
        Pinned::enrolled(self.dir.path(), tenant, &enroll::Access { required, keys_pem })
    }

    fn load(&self) -> Access {
        Access::load(&self.config, self.dir.path(), &self.identity())
    }

    fn identity(&self) -> Identity {
        Identity::load(self.dir.path()).unwrap()
    }

    fn known_time(&self) -> KnownTime {
        KnownTime::load(self.dir.path(), MADE)
    }

    fn reboot(&self, access: &mut Access, statement: &str) -> Result<Leave, Denied> {
        judge(access, &mut self.known_time(), statement)
    }
}

fn judge(access: &mut Access, known_time: &mut KnownTime, statement: &str) -> Result<Leave, Denied> {
    let command = command(command::Kind::Reboot(Reboot {}), statement);
    access.judge_command(known_time, Instant::now(), GrantId::from_uuid(GRANT), &command)
}

fn command(kind: command::Kind, statement: &str) -> Command {
    Command { kind: Some(kind), grant_statement: statement.to_owned(), ..Command::default() }
}

fn stream(kind: stream_request::Kind, statement: &str) -> StreamRequest {
    StreamRequest { kind: Some(kind), grant_statement: statement.to_owned(), ..StreamRequest::default() }
}

fn new_key() -> PrivateKey {
    PrivateKey::from_pkcs8_der(Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap().as_ref()).unwrap()
}

fn statement(scopes: &[&str]) -> GrantStatement {
    let now = wall_clock().replace_nanosecond(0).unwrap();
    GrantStatement {
        tenant: TENANT,
        grant: GRANT,
        signed_at: now,
        starts_at: now,
        ends_at: now + time::Duration::HOUR,
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        devices: vec![DEVICE],
        operators: None,
        reason: "r".to_owned(),
        request: None,
    }
}

fn code<T: fmt::Debug>(judged: &Result<T, Denied>) -> &'static str {
    judged.as_ref().map_or_else(Denied::code, |_| "leave")
}

#[test]
fn without_a_need_the_word_of_the_server_is_enough() {
    let device = Device::new();
    assert_eq!(device.reboot(&mut device.load(), ""), Ok(Leave::UNLIMITED));
    device.enroll(TENANT, false, &[]).unwrap();
    assert_eq!(device.reboot(&mut device.load(), "whatever"), Ok(Leave::UNLIMITED));
}

#[test]
fn each_command_and_stream_needs_its_scope() {
    let key = new_key();
    let device = Device::requiring(&[&key]);
    let (mut access, mut known_time) = (device.load(), device.known_time());
    let commands = [
        (command::Kind::CollectMetrics(CollectMetrics {}), "metrics:read"),
        (command::Kind::LinkTest(LinkTest { seconds: 1, ..LinkTest::default() }), "metrics:read"),
        (command::Kind::RestartService(RestartService { service: "web".to_owned() }), "service:restart"),
        (command::Kind::Reboot(Reboot {}), "device:reboot"),
        (command::Kind::Shutdown(Shutdown {}), "device:shutdown"),
        (command::Kind::OsUpdate(Box::default()), "os:update"),
        (command::Kind::AgentUpdate(Box::default()), "agent:update"),
        (command::Kind::ContainerUpdate(Box::default()), "container:update"),
    ];
    let streams = [
        (stream_request::Kind::Terminal(Terminal::default()), "shell:open"),
        (stream_request::Kind::Forward(Forward::default()), "tcp:open"),
        (stream_request::Kind::FilePut(FilePut::default()), "file:write"),
        (stream_request::Kind::FileGet(FileGet::default()), "file:read"),
    ];
    let scopes: Vec<&str> =
        commands.iter().map(|(_, scope)| *scope).chain(streams.iter().map(|(_, scope)| *scope)).collect();
    let (now, grant) = (Instant::now(), GrantId::from_uuid(GRANT));
    for named in &scopes {
        let text = statement(&[*named]).sign(&key).unwrap();
        for (kind, scope) in &commands {
            let judged = access.judge_command(&mut known_time, now, grant, &command(kind.clone(), &text));
            assert_eq!(code(&judged), if named == scope { "leave" } else { "grant_invalid" }, "{named} {scope}");
            let judged = access.judge_command(&mut known_time, now, grant, &command(kind.clone(), ""));
            assert_eq!(code(&judged), "grant_unsigned");
        }
        for (kind, scope) in &streams {
            let judged = access.judge_stream(&mut known_time, now, grant, &stream(kind.clone(), &text));
            assert_eq!(code(&judged), if named == scope { "leave" } else { "grant_invalid" }, "{named} {scope}");
            let judged = access.judge_stream(&mut known_time, now, grant, &stream(kind.clone(), ""));
            assert_eq!(code(&judged), "grant_unsigned");
        }
    }
}

#[test]
fn what_is_for_another_or_by_another_is_refused_and_says_why() {
    let (key, foreign) = (new_key(), new_key());
    let device = Device::requiring(&[&key]);
    let mut access = device.load();
    let good = || statement(&["device:reboot"]);
    let signed = |statement: GrantStatement| statement.sign(&key).unwrap();
    let hour = time::Duration::HOUR;
    let cases = [
        (good().sign(&foreign).unwrap(), "not trusted"),
        (signed(GrantStatement { tenant: OTHER, ..good() }), "tenant"),
        (signed(GrantStatement { devices: vec![OTHER], ..good() }), "this device"),
        (signed(GrantStatement { grant: OTHER, ..good() }), "for grant"),
        (signed(GrantStatement { scopes: vec!["shell:open".to_owned()], ..good() }), "device:reboot"),
        (signed(GrantStatement { starts_at: good().starts_at + hour / 2, ..good() }), "holds from"),
        (signed(GrantStatement { signed_at: good().signed_at + hour / 2, ..good() }), "clock"),
        (
            signed(GrantStatement {
                signed_at: good().signed_at - 3 * hour,
                starts_at: good().starts_at - 2 * hour,
                ends_at: good().signed_at - hour,
                ..good()
            }),
            "ended",
        ),
        ("x".to_owned(), "base64url"),
    ];
    for (text, word) in cases {
        let denied = device.reboot(&mut access, &text).unwrap_err();
        assert_eq!(denied.code(), "grant_invalid");
        assert!(denied.to_string().contains(word) && denied.to_string().len() <= 1024, "{word}: {denied}");
    }
    let leave = device.reboot(&mut access, &signed(good())).unwrap();
    let left = leave.until.unwrap() - Instant::now();
    assert!(Duration::from_secs(3590) < left && left <= Duration::from_secs(3600), "{left:?}");
}

#[test]
fn no_word_of_a_server_makes_time_go_back() {
    let key = new_key();
    let device = Device::requiring(&[&key]);
    let (mut access, mut known_time) = (device.load(), device.known_time());
    let text = statement(&["device:reboot"]).sign(&key).unwrap();
    assert!(judge(&mut access, &mut known_time, &text).is_ok());
    let later = wall_clock() + time::Duration::hours(2);
    // Inside of a tunnel of somebody else: the server's word is not kept, and yet counts while the agent runs.
    known_time.learn(unix_ms(later), None);
    assert_eq!(code(&judge(&mut access, &mut known_time, &text)), "grant_invalid");
    for told in [later - time::Duration::hours(3), MADE, OffsetDateTime::UNIX_EPOCH] {
        for ends in [None, Some(ENDS)] {
            known_time.learn(unix_ms(told), ends);
            assert_eq!(code(&judge(&mut access, &mut known_time, &text)), "grant_invalid", "{told} {ends:?}");
        }
    }
    // Of a server that showed its certificate, it is kept over a restart.
    known_time.learn(unix_ms(later), Some(ENDS));
    known_time.learn(unix_ms(MADE), Some(ENDS));
    let mut known_time = device.known_time();
    known_time.learn(unix_ms(MADE), Some(ENDS));
    assert_eq!(code(&judge(&mut device.load(), &mut known_time, &text)), "grant_invalid");
}

#[test]
fn what_was_signed_proves_that_its_time_has_been() {
    let key = new_key();
    let device = Device::requiring(&[&key]);
    let mut known_time = device.known_time();
    let text = statement(&["device:reboot"]).sign(&key).unwrap();
    let signed_at = statement(&["device:reboot"]).signed_at - time::Duration::MINUTE;
    assert!(judge(&mut device.load(), &mut known_time, &text).is_ok());
    assert!(known_time.earliest() >= signed_at && device.known_time().earliest() >= signed_at);
}

#[test]
fn what_was_pinned_is_never_changed_by_an_enrollment() {
    let (key, foreign) = (new_key(), new_key());
    let device = Device::pinning(&[&key]);
    let good = statement(&["device:reboot"]);
    let is_pinned = || {
        assert!(device.reboot(&mut device.load(), &good.sign(&key).unwrap()).is_ok());
        assert_eq!(device.reboot(&mut device.load(), ""), Err(Denied::Unsigned));
        assert_eq!(code(&device.reboot(&mut device.load(), &good.sign(&foreign).unwrap())), "grant_invalid");
    };
    is_pinned();
    device.enroll(TENANT, false, &[]).unwrap();
    device.enroll(TENANT, true, &[&foreign]).unwrap();
    assert!(matches!(device.enroll(OTHER, false, &[]), Err(PinError::OtherTenant { .. })));
    is_pinned();
    // Until somebody at the device wants it.
    std::fs::remove_file(device.dir.path().join("access.json")).unwrap();
    device.enroll(OTHER, false, &[]).unwrap();
    assert_eq!(device.reboot(&mut device.load(), ""), Ok(Leave::UNLIMITED));
    // What was loose may become strict.
    device.enroll(TENANT, true, &[&key]).unwrap();
    is_pinned();
}

#[test]
fn an_enrollment_with_keys_that_are_none_fails() {
    let device = Device::new();
    for (required, keys_pem) in [(true, vec![]), (true, vec!["x".to_owned()]), (false, vec![String::new(); 17])] {
        let access = enroll::Access { required, keys_pem };
        assert!(matches!(Pinned::enrolled(device.dir.path(), TENANT, &access), Err(PinError::Keys)));
    }
}

#[test]
fn the_configuration_wins_over_what_was_pinned() {
    let (key, pinned) = (new_key(), new_key());
    let good = statement(&["device:reboot"]);
    let mut device = Device::pinning(&[&pinned]);
    device.config.keys = Some(vec![device.key_file(&key)]);
    assert!(device.reboot(&mut device.load(), &good.sign(&key).unwrap()).is_ok());
    assert_eq!(code(&device.reboot(&mut device.load(), &good.sign(&pinned).unwrap())), "grant_invalid");
    device.config.required = Some(false);
    assert_eq!(device.reboot(&mut device.load(), ""), Ok(Leave::UNLIMITED));
    let device = Device { config: config::Access { keys: None, required: Some(true), ..device.config }, ..device };
    device.enroll(TENANT, false, &[]).unwrap();
    assert!(device.reboot(&mut device.load(), &good.sign(&pinned).unwrap()).is_ok());
}

#[test]
fn what_cannot_be_read_refuses_everything() {
    let key = new_key();
    let text = statement(&["device:reboot"]).sign(&key).unwrap();
    let refuses = |device: &Device, word: &str| {
        let denied = device.reboot(&mut device.load(), &text).unwrap_err();
        assert!(denied.code() == "grant_invalid" && denied.to_string().contains(word), "{word}: {denied}");
    };
    let mut device = Device::requiring(&[&key]);
    let path = device.config.keys.as_ref().unwrap()[0].clone();
    std::fs::remove_file(&path).unwrap();
    refuses(&device, "no file");
    std::fs::write(&path, "no key").unwrap();
    refuses(&device, "PEM");
    device.config = config::Access { required: Some(true), ids: device.config.ids, ..config::Access::default() };
    refuses(&device, "knows no key");
    let device = Device::pinning(&[&key]);
    for content in ["", "{}", "{\"tenant_id\":", "\u{0}"] {
        std::fs::write(device.dir.path().join("access.json"), content).unwrap();
        refuses(&device, "damaged");
        assert!(device.enroll(TENANT, false, &[]).is_err());
    }
    // An agent that does not know who it is.
    let mut device = Device::requiring(&[&key]);
    device.config.ids = None;
    refuses(&device, "device_id");
}
