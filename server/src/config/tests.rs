use std::io::Write as _;

use tempfile::NamedTempFile;

use super::*;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn load(text: &str, environment: &[(&str, &str)], set: &[&str]) -> Result<Loaded, String> {
    let file = file(text);
    let sources = Sources {
        path: Some(file.path().to_owned()),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        set: set.iter().map(|&flag| flag.to_owned()).collect(),
    };
    Config::load(sources).map_err(|faults| faults.to_string().replace(file.path().to_str().unwrap(), "F"))
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = load("", &[], &[]).unwrap().config;
    assert_eq!(config.device.listen.to_string(), "[::]:443");
    assert_eq!(config.device.enroll_name().to_string(), "enroll.localhost");
    assert_eq!(config.link.ping_interval_seconds.duration().as_secs(), 25);
    assert!(!config.node.is_empty());
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let text = "[device]\nlisten = \"127.0.0.1:1\"\nserver_name = \"file.example\"\nlinks_max = 1\n";
    let environment = [("CLOUDLINK_DEVICE_LISTEN", "127.0.0.1:2"), ("CLOUDLINK_DEVICE_LINKS_MAX", "2")];
    let loaded = load(text, &environment, &["device.listen=127.0.0.1:3"]).unwrap();
    let device = &loaded.config.device;
    assert_eq!(device.listen.port(), 3);
    assert_eq!(device.links_max, 2);
    assert_eq!(device.server_name.to_string(), "file.example");
    let shown = Config::show(&loaded.shown);
    assert!(shown.contains("listen = \"127.0.0.1:3\"  # --set device.listen\n"), "{shown}");
    assert!(shown.contains("links_max = 2  # environment CLOUDLINK_DEVICE_LINKS_MAX\n"), "{shown}");
    assert!(shown.contains("server_name = \"file.example\"  # line 3\n"), "{shown}");
}

#[test]
fn every_fault_is_reported_at_once_with_its_place_and_a_hint() {
    let text = "data_dri = \"/x\"\n[device]\nlisten = \"443\"\nserver_name = \"10.0.0.1\"\nping = 1\nlinks_max = 0\n\
                [lnik]\nping_interval_seconds = 25\n[link]\nmax_missed_pings = \"three\"\n[people]\nnames = [\"ok\", 5]\n";
    let environment = [("CLOUDLINK_LINK_MAX_MISSED_PING", "3"), ("CLOUDLINK_TOKEN", "somebody else's")];
    let faults = load(text, &environment, &["log.format=loud", "nonsense"]).unwrap_err();
    insta::assert_snapshot!(faults, @r#"
    F:1: data_dri: there is no such key. Did you mean data_dir?
    F:3: device.listen: expected an address with a port, as "0.0.0.0:443" or "[::]:443"
    F:4: device.server_name: expected a DNS name: a client cannot ask for an address in its TLS greeting
    F:5: device.ping: there is no such key
    F:6: device.links_max: out of range: from 1 to 1000000
    F:7: lnik: there is no such key. Did you mean [link]?
    F:10: link.max_missed_pings: expected a whole number
    F:12: people.names: expected a list of host names or IP addresses, as ["link.example.com", "10.0.0.5"]
    environment CLOUDLINK_LINK_MAX_MISSED_PING: there is no such key. Did you mean CLOUDLINK_LINK_MAX_MISSED_PINGS?
    --set log.format: log.format: expected "auto", "human" or "json"
    --set nonsense: --set takes key=value, as --set device.listen=0.0.0.0:443
    "#);
}

#[test]
fn times_of_warnings_fall_and_are_few() {
    let warnings = |text: &str| load("", &[], &[&format!("support.warn_before_seconds={text}")]);
    let before = |text: &str| {
        let config = warnings(text).unwrap().config;
        config.support.warn_before_seconds.before().map(|before| before.as_secs()).collect::<Vec<_>>()
    };
    let default = load("", &[], &[]).unwrap().config.support.warn_before_seconds;
    assert_eq!(default.before().map(|before| before.as_secs()).collect::<Vec<_>>(), [600, 120]);
    assert_eq!(before("86400, 10,2,1"), [86_400, 10, 2, 1]);
    assert_eq!(before(""), [0; 0]);
    for text in ["2,10", "10,10", "5,4,3,2,1", "86401", "10,0", "soon", "1.5"] {
        assert!(warnings(text).unwrap_err().contains("each less than the one before"), "{text}");
    }
    assert!(load("[support]\nwarn_before_seconds = [120, 600]\n", &[], &[]).unwrap_err().starts_with("F:2:"));
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let faults = load("[device]\nlisten = \n[people\n", &[], &[]).unwrap_err();
    assert!(faults.contains("F:2: this is not TOML"), "{faults}");
    assert!(faults.contains("F:3: this is not TOML"), "{faults}");
}

#[test]
fn keys_that_do_not_go_together_are_faults() {
    let text = "[device]\nenroll_name = \"localhost\"\n[people]\nlisten = \"[::]:443\"\n[certificate]\nserver_days = 20\n\
                [database]\nmigrate_url = \"postgres://secret@x/y\"\nlock_timeout_seconds = 60\nconnections_max = 99\n";
    let faults = load(text, &[], &[]).unwrap_err();
    insta::assert_snapshot!(faults, @r#"
    default: certificate.server_reissue_days: must be below certificate.server_days
    F:2: device.enroll_name: is the same as device.server_name: each needs its own
    F:4: people.listen: is the same as device.listen: each needs its own
    F:8: database.migrate_url: needs database.url as well
    F:9: database.lock_timeout_seconds: must not be above database.statement_timeout_seconds
    F:10: database.connections_max: must leave 5 of postgres.connections_max for maintenance
    "#);
}

#[test]
fn a_missing_file_is_a_fault_when_it_was_named() {
    let sources = Sources { path: Some("/nonexistent/cloudlinkd.toml".into()), ..Sources::default() };
    let faults = Config::load(sources).unwrap_err().to_string();
    assert_eq!(faults, "/nonexistent/cloudlinkd.toml: cannot be read: NotFound. Name an existing file with --config");
}

#[test]
fn secrets_come_from_files_and_are_shown_nowhere() {
    let secret = file("postgres://cloudlink:hunter2@db/cloudlink\n");
    let loaded = load(&format!("[database]\nurl_file = {:?}\n", secret.path()), &[], &[]).unwrap();
    assert_eq!(loaded.config.database.url.as_ref().unwrap().expose(), "postgres://cloudlink:hunter2@db/cloudlink");
    let inline = load("[database]\nurl = \"postgres://u:hunter2@db/x\"", &[], &[]).unwrap();
    for loaded in [loaded, inline] {
        let told = format!("{:?} {}", loaded, Config::show(&loaded.shown));
        assert!(!told.contains("hunter2"), "{told}");
    }
    let faults =
        load("[database]\nurl = \"postgres://x\"\nurl_file = \"/y\"\nmigrate_url_file = \"/nonexistent\"", &[], &[]);
    insta::assert_snapshot!(faults.unwrap_err(), @r#"
    F:3: database.url_file: excludes url: set one of the two
    F:4: database.migrate_url_file: the secret in /nonexistent cannot be read: NotFound. It must exist and be readable by this user
    "#);
}

#[test]
fn the_reference_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIG.md");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(committed == reference(), "run `cargo run -p cloudlink-server -- config reference > docs/CONFIG.md`");
}

#[test]
fn every_default_can_be_written_into_the_file() {
    let loaded = load("", &[], &[]).unwrap();
    let shown = Config::show(&loaded.shown);
    let again = load(&shown, &[], &[]).unwrap();
    let values = |loaded: &Loaded| loaded.shown.iter().map(|shown| shown.value.clone()).collect::<Vec<_>>();
    assert_eq!(values(&loaded), values(&again));
}

/// What would keep a server from starting is said before it is started.
#[test]
fn mail_from_nobody_and_half_of_a_login_are_faults() {
    let notice = "[notice]\nmail_host = \"mail.example\"\n";
    for (lines, fault) in [
        ("mail_from = \"Cloudlink\"", "F:3: notice.mail_from: expected a mail address"),
        ("mail_from = \"a@b, c@d\"", "F:3: notice.mail_from: expected a mail address"),
        ("mail_user = \"cloudlink\"", "F:3: notice.mail_user: needs notice.mail_password as well"),
        ("mail_password = \"secret\"", "F:3: notice.mail_password: needs notice.mail_user as well"),
    ] {
        let faults = load(&format!("{notice}{lines}\n"), &[], &[]).unwrap_err();
        assert!(faults.starts_with(fault), "{faults}");
        assert!(!faults.contains("secret"), "{faults}");
    }
    let both = "mail_from = \"Cloudlink <cloudlink@example.com>\"\nmail_user = \"u\"\nmail_password = \"p\"\n";
    let loaded = load(&format!("{notice}{both}"), &[], &[]).unwrap();
    let from = loaded.config.notice.mail_from.mailbox();
    assert_eq!((from.email.to_string().as_str(), from.name.as_deref()), ("cloudlink@example.com", Some("Cloudlink")));
}
