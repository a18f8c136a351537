//! `[update.container]`: which containers may get another image, of which repositories. None unless it is configured.

use std::path::PathBuf;
use std::time::Duration;

use cloudlink_proto::link::{IMAGE_BYTES_MAX, is_container_name};

use super::parse_path;
use super::section::Section;

const SOCKET_DEFAULT: &str = "/run/docker.sock";
/// The most containers, and the most repositories.
const ALLOWED_MAX: usize = 64;
const BYTES_MAX_DEFAULT: u64 = 4 * 1024 * 1024 * 1024;
const BYTES_MAX_MAX: u64 = 1024 * 1024 * 1024 * 1024;
const FREE_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;
const PULL_SECONDS_DEFAULT: u64 = 2 * 3600;
const PULL_SECONDS_MAX: u64 = 6 * 3600;
const CONFIRM_SECONDS_DEFAULT: u64 = 5 * 60;
const CONFIRM_SECONDS_MAX: u64 = 3600;
const STABLE_SECONDS_DEFAULT: u64 = 30;

/// `[update.container]`: what holds for all containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containers {
    /// Where the engine listens. Default: `/run/docker.sock`.
    pub socket: PathBuf,
    /// The names of those that may get another image.
    pub allow: Vec<String>,
    /// The repositories that images may be of; what ends with a slash stands for all below.
    pub repositories: Vec<String>,
    /// Names and passwords for registries, in Docker's format. Default: none.
    pub login_file: Option<PathBuf>,
    /// The largest image, compressed, as far as the engine says how large it is. Default: 4 GiB.
    pub bytes_max: u64,
    /// What must stay free where the engine keeps images. Default: 512 MiB.
    pub free_bytes_min: u64,
    /// How long the engine may take to pull an image. Default: 2 hours.
    pub pull_within: Duration,
    /// How long the new container may take until it has run for `stable_for`. Default: 5 minutes.
    pub confirm_within: Duration,
    /// How long it must have run without a break, and been healthy if it says so. Default: 30 seconds.
    pub stable_for: Duration,
}

impl Containers {
    /// Whether images of this repository may be pulled.
    #[must_use]
    pub fn allows_repository(&self, repository: &str) -> bool {
        self.repositories
            .iter()
            .any(|allowed| if allowed.ends_with('/') { repository.starts_with(allowed) } else { repository == allowed })
    }
}

pub(super) fn read(update: &Section<'_>) -> Option<Containers> {
    if !update.has("container") {
        return None;
    }
    let section = update.section("container");
    let seconds = |key, max, default| Duration::from_secs(section.number(key, max).unwrap_or(default));
    let read = Containers {
        socket: section.optional("socket", parse_path).unwrap_or_else(|| PathBuf::from(SOCKET_DEFAULT)),
        allow: allowed(&section, "allow", "allow = [\"app\"]", is_container_name),
        repositories: allowed(
            &section,
            "repositories",
            "repositories = [\"registry.example.com/vendor/\"]",
            is_repository,
        ),
        login_file: section.optional("login_file", parse_path),
        bytes_max: section.number("bytes_max", BYTES_MAX_MAX).unwrap_or(BYTES_MAX_DEFAULT),
        free_bytes_min: section.number("free_bytes_min", BYTES_MAX_MAX).unwrap_or(FREE_BYTES_DEFAULT),
        pull_within: seconds("pull_seconds", PULL_SECONDS_MAX, PULL_SECONDS_DEFAULT),
        confirm_within: seconds("confirm_seconds", CONFIRM_SECONDS_MAX, CONFIRM_SECONDS_DEFAULT),
        stable_for: seconds("stable_seconds", CONFIRM_SECONDS_MAX, STABLE_SECONDS_DEFAULT),
    };
    if read.stable_for >= read.confirm_within {
        section.fault("stable_seconds", "is not less than confirm_seconds", "less, or more time to confirm");
    }
    section.finish();
    Some(read)
}

/// A list that must be there and name something.
fn allowed(section: &Section<'_>, key: &'static str, example: &str, is_one: fn(&str) -> bool) -> Vec<String> {
    let names = section.strings(key).unwrap_or_default();
    if !section.has(key) {
        section.fault(key, "is missing", &format!("such as {example}"));
    } else if !(1..=ALLOWED_MAX).contains(&names.len()) || !names.iter().all(|name| is_one(name)) {
        section.fault(key, &format!("is not a list of 1 to {ALLOWED_MAX} names"), &format!("such as {example}"));
    }
    names
}

/// What no image could be of does no harm.
fn is_repository(name: &str) -> bool {
    (2..=IMAGE_BYTES_MAX).contains(&name.len()) && !name.contains('@')
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Fault};

    const GOOD: &str = "[update.container]\nallow = [\"app\"]\nrepositories = [\"r.test/app\", \"r.test/vendor/\"]\n";

    fn read(update: &str) -> Result<super::Containers, Vec<Fault>> {
        let text = format!("state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n{update}");
        Config::parse(&text).map(|config| config.update.container.unwrap())
    }

    #[test]
    fn repositories_are_named_whole_or_by_what_they_are_below() {
        let containers = read(GOOD).unwrap();
        for (repository, allowed) in [
            ("r.test/app", true),
            ("r.test/apple", false),
            ("r.test/app/x", false),
            ("r.test/vendor/x", true),
            ("r.test/vendor", false),
            ("r.test/vendors/x", false),
        ] {
            assert_eq!(containers.allows_repository(repository), allowed, "{repository}");
        }
    }

    #[test]
    fn faults_say_what_is_missing() {
        for (text, expected) in [
            (GOOD.replace("allow", "allowed"), "update.container.allow is missing"),
            (GOOD.replace("[\"app\"]", "[]"), "update.container.allow is not a list of 1 to 64 names"),
            (GOOD.replace("[\"app\"]", "[\"--all\"]"), "update.container.allow is not a list of 1 to 64 names"),
            (GOOD.replace("r.test/app", "app@sha256:00"), "update.container.repositories is not a list"),
            (format!("{GOOD}stable_seconds = 300\n"), "update.container.stable_seconds is not less"),
        ] {
            let faults = read(&text).unwrap_err();
            assert!(faults.iter().any(|fault| fault.problem.starts_with(expected)), "{text}: {faults:?}");
        }
    }

    #[test]
    fn passwords_for_registries_are_withheld() {
        let text = format!(
            "state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n{GOOD}login_file = \"/etc/logins\"\n"
        );
        assert!(Config::parse(&text).unwrap().withheld().contains(&"/etc/logins".into()));
    }
}
