//! `[update]`: which updates the device takes, from where, and what installs them. None unless it is configured.

use std::path::PathBuf;
use std::time::Duration;

use super::container::{self, Containers};
use super::section::Section;
use super::{Argv, parse_path, read_argv};

/// What an argument of `install_argv` must be to be replaced by the path of the artifact.
const FILE_PLACEHOLDER: &str = "{file}";
/// What an argument must be to be replaced by a version: the new one, or for `rollback_argv` the one of before.
const VERSION_PLACEHOLDER: &str = "{version}";

const BYTES_MAX_DEFAULT: u64 = 1024 * 1024 * 1024;
const BYTES_MAX_MAX: u64 = 1024 * BYTES_MAX_DEFAULT;
const RATE_MIN_DEFAULT: u64 = 1024;
const RETRIES_DEFAULT: u64 = 10;
const RETRIES_MAX: u64 = 1000;
const DOWNLOAD_SECONDS_DEFAULT: u64 = 2 * 3600;
const DOWNLOAD_SECONDS_MAX: u64 = 6 * 3600;
const INSTALL_SECONDS_DEFAULT: u64 = 30 * 60;
const INSTALL_SECONDS_MAX: u64 = 2 * 3600;
const CONFIRM_SECONDS_DEFAULT: u64 = 15 * 60;
const CONFIRM_SECONDS_MAX: u64 = 3600;
/// The most hosts that artifacts may come from.
const HOSTS_MAX: usize = 64;

/// `[update]`: what holds for every update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The hosts that artifacts may come from. Default: none.
    pub hosts: Vec<String>,
    /// Whether an artifact may come without TLS: its digest protects what it is, not that others see it. Default: false.
    pub plain_http: bool,
    /// The certificates, PEM, that those hosts' must go back to. Default: `server.ca_file`.
    pub ca_file: Option<PathBuf>,
    /// The largest artifact, in bytes. Default: 1 GiB.
    pub bytes_max: u64,
    /// How fast it is fetched at most, in bytes a second. Default: as fast as it comes.
    pub rate_max: Option<u64>,
    /// How many attempts in a row may be of no use, after the first. Default: 10.
    pub retries: u64,
    /// How fast it must come on average of 20 seconds, in bytes a second. Default: 1024.
    pub rate_min: u64,
    /// How long it may take to fetch it. Default: 2 hours.
    pub download_within: Duration,
    /// `[update.os]`.
    pub os: Option<Installer>,
    /// `[update.agent]`.
    pub agent: Option<Installer>,
    /// `[update.container]`.
    pub container: Option<Containers>,
}

/// `[update.os]` or `[update.agent]`: the programs that install, and undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installer {
    /// Puts the artifact `{file}` in place.
    pub install: Argv,
    /// Starts what was put in place: a reboot, or a restart of the agent. Default: nothing, `install` has done so.
    pub activate: Option<Argv>,
    /// Says that the new one stays.
    pub commit: Option<Argv>,
    /// Sees to it that the one of before runs. Does nothing if it does.
    pub rollback: Argv,
    /// Prints the version that runs. Default for the agent: its own.
    pub version: Option<Argv>,
    /// How long `install` may take. Default: 30 minutes.
    pub install_within: Duration,
    /// How long the device may take to be back with the new version. Default: 15 minutes.
    pub confirm_within: Duration,
}

pub(super) fn read(update: &Section<'_>) -> Update {
    let hosts = update.strings("hosts").unwrap_or_default();
    if hosts.len() > HOSTS_MAX || hosts.iter().any(|host| host.is_empty() || host.contains(['/', ':', '@'])) {
        let problem = format!("is not a list of at most {HOSTS_MAX} names");
        update.fault("hosts", &problem, "such as hosts = [\"updates.example.com\"], without https:// and port");
    }
    let seconds = |key, max, default| Duration::from_secs(update.number(key, max).unwrap_or(default));
    let read = Update {
        hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
        plain_http: update.boolean("plain_http").unwrap_or_default(),
        ca_file: update.optional("ca_file", parse_path),
        bytes_max: update.number("bytes_max", BYTES_MAX_MAX).unwrap_or(BYTES_MAX_DEFAULT),
        rate_max: update.number("bytes_per_second_max", BYTES_MAX_MAX),
        rate_min: update.number("bytes_per_second_min", BYTES_MAX_MAX).unwrap_or(RATE_MIN_DEFAULT),
        retries: update.number("retries", RETRIES_MAX).unwrap_or(RETRIES_DEFAULT),
        download_within: seconds("download_seconds", DOWNLOAD_SECONDS_MAX, DOWNLOAD_SECONDS_DEFAULT),
        os: read_installer(update, "os", true),
        agent: read_installer(update, "agent", false),
        container: container::read(update),
    };
    if read.rate_max.is_some_and(|max| max < 2 * read.rate_min) {
        update.fault("bytes_per_second_max", "is less than twice bytes_per_second_min", "more, or a smaller minimum");
    }
    update.finish();
    read
}

fn read_installer(update: &Section<'_>, key: &'static str, needs_version: bool) -> Option<Installer> {
    if !update.has(key) {
        return None;
    }
    let section = update.section(key);
    let seconds = |key, max, default| Duration::from_secs(section.number(key, max).unwrap_or(default));
    let install = required_argv(&section, "install_argv", "[\"/usr/bin/rauc\", \"install\", \"{file}\"]");
    if install.as_ref().is_some_and(|argv| !argv.arguments.iter().any(|argument| argument == FILE_PLACEHOLDER)) {
        section.fault("install_argv", "has no argument {file}", "it stands for the path of the artifact");
    }
    let rollback = required_argv(&section, "rollback_argv", "[\"/usr/local/sbin/back-to\", \"{version}\"]");
    let version = if needs_version {
        required_argv(&section, "version_argv", "[\"/usr/local/sbin/os-version\"]")
    } else {
        read_argv(&section, "version_argv")
    };
    let activate = read_argv(&section, "activate_argv");
    let commit = read_argv(&section, "commit_argv");
    let install_within = seconds("install_seconds", INSTALL_SECONDS_MAX, INSTALL_SECONDS_DEFAULT);
    let confirm_within = seconds("confirm_seconds", CONFIRM_SECONDS_MAX, CONFIRM_SECONDS_DEFAULT);
    section.finish();
    Some(Installer {
        install: install?,
        activate,
        commit,
        rollback: rollback?,
        version,
        install_within,
        confirm_within,
    })
}

fn required_argv(section: &Section<'_>, key: &'static str, example: &str) -> Option<Argv> {
    if !section.has(key) {
        section.fault(key, "is missing", &format!("such as {key} = {example}"));
    }
    read_argv(section, key)
}

impl Argv {
    /// With the place holders of an update replaced, each of which is a whole argument.
    #[must_use]
    pub fn for_update(&self, file: &str, version: &str) -> Self {
        let filled = |argument: &String| match argument.as_str() {
            FILE_PLACEHOLDER => file.to_owned(),
            VERSION_PLACEHOLDER => version.to_owned(),
            _ => argument.clone(),
        };
        Self { program: self.program.clone(), arguments: self.arguments.iter().map(filled).collect() }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Fault};

    const OS: &str =
        "[update.os]\ninstall_argv = [\"/i\", \"{file}\"]\nrollback_argv = [\"/r\"]\nversion_argv = [\"/v\"]\n";

    fn read(update: &str) -> Result<super::Update, Vec<Fault>> {
        let text = format!("state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n{update}");
        Config::parse(&text).map(|config| config.update)
    }

    #[test]
    fn place_holders_are_whole_arguments() {
        let argv = read(&OS.replace("\"{file}\"", "\"{file}\", \"--v={version}\", \"{version}\""))
            .unwrap()
            .os
            .unwrap()
            .install;
        let filled = argv.for_update("/a b", "$(id)");
        assert_eq!(filled.arguments, ["/a b", "--v={version}", "$(id)"]);
    }

    #[test]
    fn nothing_is_installed_unless_it_is_configured() {
        let update = read("").unwrap();
        assert!(
            update.hosts.is_empty()
                && update.os.is_none()
                && update.agent.is_none()
                && update.container.is_none()
                && !update.plain_http
        );
    }

    #[test]
    fn faults_say_what_is_missing() {
        for (text, expected) in [
            (OS.replace("\"{file}\"", "\"x\""), "update.os.install_argv has no argument {file}"),
            (OS.replace("rollback_argv", "commit_argv"), "update.os.rollback_argv is missing"),
            (OS.replace("version_argv", "commit_argv"), "update.os.version_argv is missing"),
            ("[update]\nhosts = [\"https://u.test\"]\n".to_owned(), "update.hosts is not a list"),
            ("[update]\nbytes_per_second_max = 1000\n".to_owned(), "update.bytes_per_second_max is less than"),
        ] {
            let faults = read(&text).unwrap_err();
            assert!(faults.len() == 1 && faults[0].problem.starts_with(expected), "{faults:?}");
        }
    }
}
