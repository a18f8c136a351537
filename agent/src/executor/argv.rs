//! Runs a configured program: never through a shell, with a time limit, and with a bounded part of what it says.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::Failure;
use crate::config::Argv;

/// How much is kept of each of standard output and standard error, in bytes. The rest is read and thrown away, so that the
/// program is not held up.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How long is read on after the program ended: what it left running may hold its output open for ever.
const OUTPUT_AFTER_EXIT: Duration = Duration::from_millis(200);

/// Runs it to its end. Data: `exit_status` or `signal`, `stdout`, `stderr`, `truncated`, `duration_ms`.
pub(super) async fn run(argv: &Argv, within: Duration) -> Result<Value, Failure> {
    let begun = Instant::now();
    let mut child = Command::new(&argv.program)
        .args(&argv.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that the time limit ends whatever the program has started.
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::new("spawn_failed", format!("cannot start {}: {error}", argv.program.display())))?;
    let stdout = Output::read(child.stdout.take());
    let stderr = Output::read(child.stderr.take());

    let waited = timeout(within, child.wait()).await;
    if waited.is_err() {
        kill_group(&mut child).await;
    }
    let heard_by = Instant::now() + OUTPUT_AFTER_EXIT;
    let data = |status: Option<ExitStatus>, stdout: Output, stderr: Output| {
        let mut data = json!({
            "stdout": stdout.text(),
            "stderr": stderr.text(),
            "truncated": stdout.truncated || stderr.truncated,
            "duration_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        if let Some(code) = status.and_then(|status| status.code()) {
            data["exit_status"] = code.into();
        }
        if let Some(signal) = status.and_then(|status| status.signal()) {
            data["signal"] = signal.into();
        }
        data
    };
    let stdout = stdout.until(heard_by).await;
    let stderr = stderr.until(heard_by).await;
    match waited {
        Ok(Ok(status)) if status.success() => Ok(data(Some(status), stdout, stderr)),
        Ok(Ok(status)) => {
            let message = format!("{} ended with {status}", argv.program.display());
            Err(Failure::new("exit_status", message).with_data(data(Some(status), stdout, stderr)))
        }
        Ok(Err(error)) => Err(Failure::new("internal", format!("cannot wait for the program: {error}"))),
        Err(_) => {
            let message = format!("{} ran for more than {} s and was killed", argv.program.display(), within.as_secs());
            Err(Failure::new("timeout", message).with_data(data(None, stdout, stderr)))
        }
    }
}

async fn kill_group(child: &mut Child) {
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // The leader is not yet waited for, so the group's number cannot belong to anything else.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait().await;
}

/// The beginning of what a program says.
#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Output {
    fn read(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> Reading {
        let output = Arc::new(Mutex::new(Self::default()));
        let task = tokio::spawn(Self::read_into(Arc::clone(&output), pipe));
        Reading { output, task }
    }

    async fn read_into(output: Arc<Mutex<Self>>, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else {
            return;
        };
        let mut chunk = [0; 1024];
        while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = count.min(OUTPUT_BYTES_MAX - output.bytes.len());
            output.bytes.extend_from_slice(&chunk[..kept]);
            output.truncated |= kept < count;
        }
    }

    /// At most three bytes for each byte that was said, also as JSON: two outputs fit into a report.
    fn text(&self) -> String {
        let shown = |character: char| match character {
            '\n' | '\t' => character,
            _ if character.is_control() => char::REPLACEMENT_CHARACTER,
            _ => character,
        };
        String::from_utf8_lossy(&self.bytes).chars().map(shown).collect()
    }
}

/// An output that is being read.
struct Reading {
    output: Arc<Mutex<Output>>,
    task: JoinHandle<()>,
}

impl Reading {
    /// What was said until its end, or until this moment.
    async fn until(mut self, by: Instant) -> Output {
        let ended = timeout_at(by, &mut self.task).await.is_ok();
        self.task.abort();
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.truncated |= !ended;
        std::mem::take(&mut *output)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Run by a shell that is named: a file that was just written cannot always be executed while other tests fork.
    fn script(dir: &Path, body: &str) -> Argv {
        let path = dir.join("script");
        std::fs::write(&path, body).unwrap();
        Argv { program: "/bin/sh".into(), arguments: vec![path.to_str().unwrap().to_owned()] }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_program_that_works_gives_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let mut argv = script(dir.path(), "printf %s \"$1\"; echo e >&2");
        argv.arguments.push("$(id) `id`; *".to_owned());
        let data = run(&argv, LONG).await.unwrap();
        assert_eq!(data["stdout"], "$(id) `id`; *", "no shell looks at arguments");
        assert_eq!(
            (&data["stderr"], &data["exit_status"], &data["truncated"]),
            (&json!("e\n"), &json!(0), &json!(false))
        );
    }

    #[tokio::test]
    async fn a_program_that_fails_gives_its_exit_status() {
        let dir = tempfile::tempdir().unwrap();
        let failure = run(&script(dir.path(), "echo no >&2; exit 7"), LONG).await.unwrap_err();
        assert_eq!(failure.code, "exit_status");
        let data = failure.data.unwrap();
        assert_eq!((&data["exit_status"], &data["stderr"]), (&json!(7), &json!("no\n")));
    }

    #[tokio::test]
    async fn a_program_that_is_killed_gives_the_signal() {
        let dir = tempfile::tempdir().unwrap();
        let failure = run(&script(dir.path(), "kill -SEGV $$"), LONG).await.unwrap_err();
        assert_eq!(failure.data.unwrap()["signal"], 11);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_failure_to_start() {
        let argv = Argv { program: "/nowhere/at/all".into(), arguments: Vec::new() };
        assert_eq!(run(&argv, LONG).await.unwrap_err().code, "spawn_failed");
    }

    #[tokio::test]
    async fn the_time_limit_ends_the_program_and_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let child = dir.path().join("child");
        let argv = script(dir.path(), &format!("sleep 600 & echo $! > {}; wait", child.display()));
        let failure = run(&argv, Duration::from_millis(500)).await.unwrap_err();
        assert_eq!(failure.code, "timeout");
        let pid: i32 = std::fs::read_to_string(child).unwrap().trim().parse().unwrap();
        let gone = async {
            // A killed child of a killed parent may be a zombie until init has seen it.
            while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, gone).await.expect("the grandchild is gone");
    }

    #[tokio::test]
    async fn endless_output_is_cut_and_does_not_hold_the_program_up() {
        let dir = tempfile::tempdir().unwrap();
        let data = run(&script(dir.path(), "head -c 1000000 /dev/zero"), LONG).await.unwrap();
        assert_eq!(data["stdout"].as_str().unwrap().chars().count(), OUTPUT_BYTES_MAX);
        assert_eq!(data["truncated"], true);
        let both = json!([data["stdout"], data["stdout"]]).to_string();
        assert!(both.len() < 30_000, "{} bytes must fit into a report", both.len());
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_does_not_hold_the_answer_up() {
        let dir = tempfile::tempdir().unwrap();
        let child = dir.path().join("child");
        let argv = script(dir.path(), &format!("echo hello; sleep 600 & echo $! > {}; exit 0", child.display()));
        let data = timeout(LONG, run(&argv, LONG)).await.expect("in time").unwrap();
        assert_eq!(
            (&data["exit_status"], &data["stdout"], &data["truncated"]),
            (&json!(0), &json!("hello\n"), &json!(true))
        );
        let pid: i32 = std::fs::read_to_string(child).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}
