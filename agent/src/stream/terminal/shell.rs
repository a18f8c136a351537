//! Which program runs in a terminal, and as what it is started.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::config;
use crate::tunnel::client::is_executable;

/// What makes of the agent's program the leader of a session. See [`become_if_asked`].
const SUBCOMMAND: &str = "terminal-session";
/// The shell of a user that has none.
const SHELL_DEFAULT: &str = "/bin/sh";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of the agent's own environment, which may hold secrets, nothing else is passed on.
const PASSED_ON: [&str; 3] = ["LANG", "LC_ALL", "TZ"];

/// What runs in a terminal.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) program: PathBuf,
    /// What it is told that it is called: a shell that is called `-sh` is a login shell.
    name: OsString,
    arguments: Vec<String>,
    pub(super) user: String,
    home: PathBuf,
}

impl Shell {
    /// The configured program, or the login shell of the agent's user.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub(super) fn new(settings: &config::Terminal) -> io::Result<Self> {
        let user = User::from_uid(geteuid()).ok().flatten();
        let (user_name, home, own_shell) = match user {
            Some(user) => (user.name, user.dir, user.shell),
            None => (geteuid().to_string(), PathBuf::from("/"), PathBuf::new()),
        };
        let (program, name, arguments) = match &settings.argv {
            Some(argv) => (argv.program.clone(), argv.program.clone().into(), argv.arguments.clone()),
            None => {
                let program = if own_shell == Path::new("") { PathBuf::from(SHELL_DEFAULT) } else { own_shell };
                let name = login_name(&program);
                (program, name, Vec::new())
            }
        };
        if !is_executable(&program) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} cannot be executed", program.display())));
        }
        let home = if home.is_dir() { home } else { PathBuf::from("/") };
        Ok(Self { program, name, arguments, user: user_name, home })
    }

    /// With this end of a pseudo-terminal as all it has.
    pub(super) fn command(&self, terminal: OwnedFd, term: &str, session_id: Uuid) -> io::Result<Command> {
        // Only the new process itself can begin a session and take the terminal: the agent's program does that, and becomes the
        // shell then.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("cloudlink-agent").arg(SUBCOMMAND).arg(&self.program).arg(&self.name).args(&self.arguments);
        command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        if std::env::var_os("LANG").is_none() {
            command.env("LANG", "C.UTF-8");
        }
        command
            .env("PATH", PATH)
            .env("TERM", term)
            .env("HOME", &self.home)
            .env("USER", &self.user)
            .env("LOGNAME", &self.user)
            .env("SHELL", &self.program)
            .env("CLOUDLINK_SESSION", session_id.to_string())
            .current_dir(&self.home)
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal)
            .kill_on_drop(true);
        Ok(command)
    }
}

fn login_name(program: &Path) -> OsString {
    let mut name = OsString::from("-");
    name.push(program.file_name().unwrap_or(OsStr::new("sh")));
    name
}

/// Becomes the program of a terminal, if the command line is the one that the agent gives to a process for it: `SUBCOMMAND`, the
/// program, its name and its arguments. The process begins a session, with its standard input as the terminal of it. Only returns
/// when that is not asked for, or what is in the way.
pub fn become_if_asked(mut command_line: impl Iterator<Item = OsString>) -> Option<io::Error> {
    command_line.nth(1).filter(|subcommand| subcommand == SUBCOMMAND)?;
    let Some((program, name)) = command_line.next().zip(command_line.next()) else {
        return Some(io::Error::other("only the agent itself starts it"));
    };
    let taken = rustix::process::setsid().and_then(|_| rustix::process::ioctl_tiocsctty(io::stdin()));
    if let Err(error) = taken.map_err(io::Error::from).and_then(|()| heed_signals()) {
        return Some(error);
    }
    let error = std::process::Command::new(&program).arg0(name).args(command_line).exec();
    Some(io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

/// What was ignored when the agent was started, as by `nohup` or in a script's background, would be ignored by the shell and all that it
/// starts. What has a handler gets its default back with the next program.
fn heed_signals() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    for kind in [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()] {
        // The handler stays when what listens goes.
        drop(signal(kind)?);
    }
    Ok(())
}
