//! What support may do on the device: `[terminal]`, `[forward]` and `[file]`. All of it is off unless it is configured.

use std::path::PathBuf;

use super::section::Section;
use super::{Argv, parse_path, read_argv};
use crate::stream::forward::allow::{AllowList, ENTRIES_MAX, Entry};

/// The largest file that is taken or given unless the configuration says otherwise, in bytes.
const FILE_BYTES_MAX_DEFAULT: u64 = 1024 * 1024 * 1024;
/// What the configuration may say at most.
const FILE_BYTES_MAX_MAX: u64 = 1024 * FILE_BYTES_MAX_DEFAULT;
/// The most roots of files.
const ROOTS_MAX: usize = 64;

/// `[terminal]`: a shell for an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terminal {
    /// Default: false.
    pub enabled: bool,
    /// Default: the login shell of the agent's user.
    pub argv: Option<Argv>,
}

/// `[forward]`: where connections may be made to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// Default: nowhere.
    pub allow: AllowList,
}

/// `[file]`: which files may be written and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Below these directories. Default: none.
    pub roots: Vec<PathBuf>,
    /// The largest file, in bytes. Default: 1 GiB.
    pub bytes_max: u64,
}

impl Default for File {
    fn default() -> Self {
        Self { roots: Vec::new(), bytes_max: FILE_BYTES_MAX_DEFAULT }
    }
}

pub(super) fn read_terminal(terminal: &Section<'_>) -> Terminal {
    let read = Terminal {
        enabled: terminal.boolean("enabled").unwrap_or_default(),
        argv: terminal.has("argv").then(|| read_argv(terminal, "argv")).flatten(),
    };
    terminal.finish();
    read
}

pub(super) fn read_forward(forward: &Section<'_>) -> Forward {
    let texts = forward.strings("allow").unwrap_or_default();
    if texts.len() > ENTRIES_MAX {
        forward.fault("allow", &format!("has more than {ENTRIES_MAX} entries"), "a network takes one entry");
    }
    let mut entries = Vec::new();
    for text in texts {
        match text.parse::<Entry>() {
            Ok(entry) => entries.push(entry),
            Err(error) => forward.fault(
                "allow",
                &format!("has {text:?}: {error}"),
                "such as \"localhost:80\", \"192.168.1.0/24:502\", \"[fd00::/8]:443\", \"plc.local:*\" or \"10.0.0.7:8000-8099\"",
            ),
        }
    }
    forward.finish();
    Forward { allow: AllowList::new(entries) }
}

pub(super) fn read_file(file: &Section<'_>) -> File {
    let texts = file.strings("roots").unwrap_or_default();
    if texts.len() > ROOTS_MAX {
        file.fault("roots", &format!("has more than {ROOTS_MAX} entries"), "name a directory above them");
    }
    let mut roots = Vec::new();
    for text in texts {
        match parse_path(&text) {
            Ok(root) => roots.push(root),
            Err((problem, hint)) => file.fault("roots", &format!("has an entry that {problem}"), &hint),
        }
    }
    let bytes_max = file.number("bytes_max", FILE_BYTES_MAX_MAX).unwrap_or(FILE_BYTES_MAX_DEFAULT);
    file.finish();
    File { roots, bytes_max }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const BEFORE: &str = "state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n";

    #[test]
    fn every_key_is_read() {
        let config = Config::parse(&format!(
            "{BEFORE}[terminal]\nenabled = true\nargv = [\"/bin/bash\", \"-l\"]\n\
             [forward]\nallow = [\"localhost:80\", \"[fd00::/8]:*\"]\n\
             [file]\nroots = [\"/srv\", \"/var/log\"]\nbytes_max = 4096\n"
        ))
        .unwrap();
        assert!(config.terminal.enabled);
        assert_eq!(config.terminal.argv.unwrap().arguments, ["-l"]);
        assert!(
            config.forward.allow.allows_name("localhost", 80) && !config.forward.allow.allows_name("localhost", 81)
        );
        assert!(config.forward.allow.allows_address("fd00::7".parse().unwrap(), 9));
        assert_eq!((config.file.roots.len(), config.file.bytes_max), (2, 4096));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let text = format!(
            "{BEFORE}[terminal]\nenabled = \"yes\"\nargv = [\"bash\"]\n\
             [forward]\nallow = [\"localhost\", \"10.0.0.0/33:1\", \"a:0\"]\n\
             [file]\nroots = [\"srv\"]\nbytes_max = 0\n"
        );
        let problems: Vec<String> = Config::parse(&text).unwrap_err().iter().map(ToString::to_string).collect();
        let expected = [
            "line 6: terminal.enabled is a string",
            "line 7: terminal.argv begins with \"bash\"",
            "line 9: forward.allow has \"localhost\": there is no port",
            "line 9: forward.allow has \"10.0.0.0/33:1\"",
            "line 9: forward.allow has \"a:0\"",
            "line 11: file.roots has an entry that is \"srv\"",
            "line 12: file.bytes_max is out of range",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem:?} does not begin with {expected:?}");
        }
    }
}
