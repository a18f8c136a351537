//! From a key to its echo: somebody types at a terminal, one key at a time, and a program on the device says each again.
//!
//! The way of a key is the whole one: the terminal that somebody sits at, the client in it, the server, the agent or `sshd`, the
//! pseudo-terminal on the device, `cat`, and back.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use portable_pty::{Child, CommandBuilder, MasterPty, PtyPair, PtySize, native_pty_system};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{PEER, Parties, progress, ssh};
use crate::bench::command::percentile;
use crate::bench::report::{Line, Report, median};
use crate::bench::usage::Process;
use crate::fleet::{Device, Fleet as People};
use crate::program::binary;
use crate::support::PROMPT;

const ROUNDS: usize = 5;
/// Of one round.
const KEYS: usize = 400;
/// Between two keys: faster than anybody types or a keyboard repeats.
const KEY_EVERY: Duration = Duration::from_millis(20);
/// Keys at the beginning that are not counted.
const WARM_UP: usize = 50;
/// For all of a round.
const ROUND_WITHIN: Duration = Duration::from_secs(120);
const READY_WITHIN: Duration = Duration::from_secs(40);
const P99_MS_MAX: f64 = 15.0;

/// What echoes. The terminal itself does not, and says nothing of its own.
const ECHO: &str = "stty raw -echo; printf 'be%s' gun; exec cat";
/// What is shown when it does: not in the line above, which a shell shows as well.
const BEGUN: &str = "begun";

/// With the links that the server has.
pub async fn measure(people: &mut People, report: &mut Report) -> Result<()> {
    progress("opening a terminal through cloudlinkd and one through sshd");
    let device = people.device("bench-terminal").await?;
    people.support_grant(&device.id, 3600).await?;
    let sshd = ssh::Server::start().await?;
    let mut own = Typist::at_cloudlink(people, &device).await?;
    let mut other = Typist::at_openssh(&sshd).await?;
    let (mut own_rounds, mut other_rounds) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        progress(&format!("{KEYS} keys at each terminal, round {round} of {ROUNDS}"));
        own_rounds.push(Round::run(&mut own, &other).await?);
        other_rounds.push(Round::run(&mut other, &own).await?);
    }
    let line = |name, figure: &dyn Fn(&Round) -> f64| {
        let middle = |rounds: &[Round]| median(rounds.iter().map(figure).collect());
        Line::new("support_echo", name, middle(&own_rounds), "ms").beside(PEER, middle(&other_rounds))
    };
    report.add(&line("echo_p50", &|round| round.percentile_ms(0.5)))?;
    report.add(&line("echo_p99", &|round| round.percentile_ms(0.99)).with_goal(P99_MS_MAX))?;
    report.add(&line("echo_max", &|round| round.percentile_ms(1.0)))?;
    let own_cpu = cpu_per_key_ms(&own_rounds, |round| round.typing_cpu, &other_rounds, |round| round.resting_cpu);
    let other_cpu = cpu_per_key_ms(&other_rounds, |round| round.typing_cpu, &own_rounds, |round| round.resting_cpu);
    report.add(&Line::new("support_echo", "cpu_per_key", own_cpu, "ms").beside(PEER, other_cpu))
}

/// What the processes of one side take while its keys are typed, less what they take while those of the other are: links that
/// are idle cost something, too.
fn cpu_per_key_ms(
    typing: &[Round],
    typing_cpu: impl Fn(&Round) -> Duration,
    resting: &[Round],
    resting_cpu: impl Fn(&Round) -> Duration,
) -> f64 {
    let spent = typing.iter().zip(resting).map(|(typing, resting)| {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let keys = typing.sorted.len() as f64;
        (typing_cpu(typing).as_secs_f64() - resting_cpu(resting).as_secs_f64()) * 1000.0 / keys
    });
    median(spent.collect())
}

/// Keys that were typed in one go at one terminal.
struct Round {
    /// From key to echo.
    sorted: Vec<Duration>,
    /// Of the processes of this side.
    typing_cpu: Duration,
    /// Of those of the other side meanwhile.
    resting_cpu: Duration,
}

impl Round {
    async fn run(typist: &mut Typist, resting: &Typist) -> Result<Self> {
        typist.type_keys(WARM_UP).await?;
        let (typing_cpu, resting_cpu) = (typist.parties.cpu()?, resting.parties.cpu()?);
        let mut sorted = typist.type_keys(KEYS).await?;
        let (typing_cpu, resting_cpu) =
            (typist.parties.cpu()?.saturating_sub(typing_cpu), resting.parties.cpu()?.saturating_sub(resting_cpu));
        sorted.sort_unstable();
        Ok(Self { sorted, typing_cpu, resting_cpu })
    }

    fn percentile_ms(&self, share: f64) -> f64 {
        percentile(&self.sorted, share).as_secs_f64() * 1000.0
    }
}

/// A client in a terminal of its own.
struct Typist {
    name: &'static str,
    /// Between keys nobody has it.
    terminal: Option<Terminal>,
    child: Box<dyn Child + Send + Sync>,
    /// Everybody on the way of a key.
    parties: Parties,
}

struct Terminal {
    _master: Box<dyn MasterPty + Send>,
    keys: Box<dyn std::io::Write + Send>,
    screen: Box<dyn std::io::Read + Send>,
}

impl Typist {
    async fn at_cloudlink(people: &mut People, device: &Device) -> Result<Self> {
        let mut command = CommandBuilder::new(binary("cloudlink")?);
        command.args(["shell", &device.name, "--reason", "benchmark"]);
        // What the developer has set is not to matter.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CLOUDLINK_")) {
            command.env_remove(name);
        }
        for (name, value) in people.cli(people.operator.token()).environment() {
            command.env(name, value);
        }
        let agent = Process::new(device.machine.agent_pid()?);
        let server = Process::new(people.server.program().pid());
        let parties = Parties { processes: vec![server, agent], parents: vec![agent] };
        let mut typist = Self::start("cloudlink", command, parties)?;
        typist.until_shown(PROMPT).await?;
        typist.enter(ECHO).await?;
        Ok(typist)
    }

    async fn at_openssh(sshd: &ssh::Server) -> Result<Self> {
        let mut command = CommandBuilder::new("ssh");
        command.args(sshd.client(&["-tt"], &[ECHO]));
        // The daemon itself waits for others.
        let parties = Parties { processes: Vec::new(), parents: vec![sshd.process()] };
        let mut typist = Self::start("ssh", command, parties)?;
        typist.until_shown(BEGUN).await?;
        Ok(typist)
    }

    /// `parties` beside the client itself.
    fn start(name: &'static str, mut command: CommandBuilder, mut parties: Parties) -> Result<Self> {
        let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
        let PtyPair { master, slave } = native_pty_system().openpty(size)?;
        command.env("TERM", "xterm");
        let child = slave.spawn_command(command)?;
        let (screen, keys) = (master.try_clone_reader()?, master.take_writer()?);
        let pid = child.process_id().context("it has no process")?;
        parties.processes.push(Process::new(Pid::from_raw(pid.cast_signed())));
        Ok(Self { name, terminal: Some(Terminal { _master: master, keys, screen }), child, parties })
    }

    async fn until_shown(&mut self, part: &'static str) -> Result<()> {
        self.with_terminal(READY_WITHIN, move |terminal| terminal.read_until(part)).await
    }

    /// Types a line that makes the terminal echo.
    async fn enter(&mut self, line: &'static str) -> Result<()> {
        self.with_terminal(READY_WITHIN, move |terminal| {
            terminal.keys.write_all(format!("{line}\r").as_bytes())?;
            terminal.read_until(BEGUN)
        })
        .await
    }

    async fn type_keys(&mut self, keys: usize) -> Result<Vec<Duration>> {
        self.with_terminal(ROUND_WITHIN, move |terminal| terminal.type_keys(keys)).await
    }

    /// In a thread of its own: nothing else is between a key and its time.
    async fn with_terminal<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Terminal) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut terminal = self.terminal.take().context("it is lost")?;
        let worked = timeout(limit, spawn_blocking(move || (work(&mut terminal), terminal))).await;
        let Ok(worked) = worked else {
            // Ends the thread as well, which would be waited for.
            self.child.kill()?;
            anyhow::bail!("{}: nothing is shown for {limit:?}", self.name);
        };
        let (done, terminal) = worked?;
        self.terminal = Some(terminal);
        done.with_context(|| format!("at the terminal of {}", self.name))
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Terminal {
    fn type_keys(&mut self, keys: usize) -> Result<Vec<Duration>> {
        let mut latencies = Vec::with_capacity(keys);
        let mut due = Instant::now();
        for key in (b'a'..=b'z').cycle().take(keys) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let pressed = Instant::now();
            self.keys.write_all(&[key])?;
            let mut shown = [0; 64];
            let count = self.screen.read(&mut shown)?;
            latencies.push(pressed.elapsed());
            let shown = &shown[..count];
            ensure!(shown == [key], "{:?} was typed, and {:?} shown", char::from(key), String::from_utf8_lossy(shown));
            due += KEY_EVERY;
        }
        Ok(latencies)
    }

    fn read_until(&mut self, part: &str) -> Result<()> {
        let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
        loop {
            let count = self.screen.read(&mut bytes)?;
            ensure!(count > 0, "it has ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&bytes[..count]);
            if seen.windows(part.len()).any(|window| window == part.as_bytes()) {
                return Ok(());
            }
        }
    }
}
