//! How fast bytes get through a forwarded port: `cloudlink forward` beside `ssh -N -L`, with the same programs at both ends, in each
//! direction by itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::task::spawn_blocking;

use super::{PEER, Parties, progress, ssh};
use crate::bench::report::{Bound, Line, Report, median};
use crate::bench::usage::Process;
use crate::fleet::Fleet as People;
use crate::port;
use crate::support::Forwarding;

const ROUNDS: usize = 5;
/// Of transfers that are not counted: buffers of sockets have grown, and memory is there.
const WARM_UP_MIB: u64 = 64;
const MIB: u64 = 1024 * 1024;
/// What the programs at the ends write and read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Without a byte for so long it hangs.
const STALL: Duration = Duration::from_secs(60);
const THROUGHPUT_RATIO_MIN: f64 = 1.0;

/// What is measured, with the names of its figures.
struct Case {
    direction: Direction,
    throughput: &'static str,
    cpu_per_gib: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToDevice,
    FromDevice,
}

const CASES: [Case; 2] = [
    Case { direction: Direction::ToDevice, throughput: "throughput_to_device", cpu_per_gib: "cpu_per_gib_to_device" },
    Case {
        direction: Direction::FromDevice,
        throughput: "throughput_from_device",
        cpu_per_gib: "cpu_per_gib_from_device",
    },
];

/// Transfers of so many MiB.
pub async fn measure(mib: u64, report: &mut Report) -> Result<()> {
    progress("starting cloudlinkd and sshd");
    let mut people = People::start().await.context("cannot start cloudlinkd")?;
    let device = people.device("bench-forward").await?;
    people.support_grant(&device.id, 3600).await?;
    let target = target()?;
    let route = format!("0:{}:{}", target.ip(), target.port());
    let cli = people.cli(people.operator.token());
    let forwarding = Forwarding::start(&cli, &device.name, &[&route], &[]).await?;
    let own = Way {
        local: forwarding.local(0)?,
        parties: Parties {
            processes: [forwarding.pid()?, people.server.program().pid(), device.machine.agent_pid()?]
                .map(Process::new)
                .to_vec(),
            parents: Vec::new(),
        },
    };
    let sshd = ssh::Server::start().await?;
    let ssh = sshd.forward(target).await?;
    let parties = Parties { processes: vec![ssh.process()], parents: vec![sshd.process()] };
    let other = Way { local: ssh.local, parties };

    for Case { direction, throughput, cpu_per_gib } in &CASES {
        let (mut own_samples, mut other_samples) = (Vec::new(), Vec::new());
        for way in [&own, &other] {
            way.transfer(*direction, WARM_UP_MIB).await?;
        }
        for round in 1..=ROUNDS {
            progress(&format!("{mib} MiB through each, {direction:?}, round {round} of {ROUNDS}"));
            own_samples.push(own.transfer(*direction, mib).await?);
            other_samples.push(other.transfer(*direction, mib).await?);
        }
        let line = |name, unit, figure: fn(&Sample) -> f64| {
            let middle = |samples: &[Sample]| median(samples.iter().map(figure).collect());
            // Of each pair, and not of medians that may be of different rounds.
            let ratios = own_samples.iter().zip(&other_samples).map(|(own, other)| figure(own) / figure(other));
            Line::new("support_forward", name, middle(&own_samples), unit)
                .beside(PEER, middle(&other_samples))
                .with_ratio(median(ratios.collect()))
        };
        let goal = Bound::AtLeast(THROUGHPUT_RATIO_MIN);
        report.add(&line(throughput, "MiB/s", |sample| sample.mib_per_second).with_ratio_goal(goal))?;
        report.add(&line(cpu_per_gib, "s/GiB", |sample| sample.cpu_per_gib))?;
    }
    ensure!(forwarding.of("connection_failed").is_empty(), "{:?}", forwarding.of("connection_failed"));
    forwarding.signal(Signal::SIGINT)?;
    let (code, said) = forwarding.ends().await?;
    ensure!(code == Some(0), "cloudlink forward ended with {code:?}: {said}");
    Ok(())
}

/// What one transfer showed.
struct Sample {
    mib_per_second: f64,
    cpu_per_gib: f64,
}

/// A port that leads to the target.
struct Way {
    local: SocketAddr,
    parties: Parties,
}

impl Way {
    async fn transfer(&self, direction: Direction, mib: u64) -> Result<Sample> {
        let local = self.local;
        let before = self.parties.cpu()?;
        let lasted = spawn_blocking(move || exchange(local, direction, mib * MIB)).await?;
        let lasted = lasted.with_context(|| format!("{direction:?}, through {local}"))?;
        let cpu = self.parties.cpu()?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let mib = mib as f64;
        Ok(Sample { mib_per_second: mib / lasted.as_secs_f64(), cpu_per_gib: cpu.as_secs_f64() * 1024.0 / mib })
    }
}

/// Has so many bytes sent, from when both ends are there until the last byte is.
fn exchange(address: SocketAddr, direction: Direction, bytes: u64) -> Result<Duration> {
    let mut stream = connected(TcpStream::connect(address)?)?;
    let order = Order { direction, bytes };
    stream.write_all(&order.encode())?;
    stream.read_exact(&mut [0]).context("the target does not answer")?;
    let begin = Instant::now();
    match direction {
        Direction::ToDevice => {
            pour(&mut stream, bytes)?;
            stream.read_exact(&mut [0]).context("the target does not say that it has all")?;
        }
        Direction::FromDevice => drain(&mut stream, bytes)?,
    }
    let lasted = begin.elapsed();
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "more comes than was asked for");
    Ok(lasted)
}

/// What the target is to do, which says a byte when it begins, and one when it has received all.
struct Order {
    direction: Direction,
    bytes: u64,
}

impl Order {
    const BYTES: usize = 9;

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = u8::from(self.direction == Direction::FromDevice);
        bytes[1..].copy_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    fn decode([direction, bytes @ ..]: [u8; Self::BYTES]) -> Self {
        let direction = if direction == 0 { Direction::ToDevice } else { Direction::FromDevice };
        Self { direction, bytes: u64::from_be_bytes(bytes) }
    }
}

/// The program that the forwarded port leads to. Threads that go with this process: a runtime shared with others would be part of
/// what is measured.
fn target() -> Result<SocketAddr> {
    let address = port::free()?;
    let listener = TcpListener::bind(address)?;
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // A client that has gone is noticed by the one who waits for its figure.
            thread::spawn(move || obey(stream));
        }
    });
    Ok(address)
}

fn obey(stream: TcpStream) -> Result<()> {
    let mut stream = connected(stream)?;
    let mut order = [0; Order::BYTES];
    stream.read_exact(&mut order)?;
    stream.write_all(b"!")?;
    let Order { direction, bytes } = Order::decode(order);
    match direction {
        Direction::ToDevice => {
            drain(&mut stream, bytes)?;
            stream.write_all(b"!")?;
        }
        Direction::FromDevice => pour(&mut stream, bytes)?,
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "more comes than was announced");
    Ok(())
}

fn connected(stream: TcpStream) -> Result<TcpStream> {
    debug_assert_eq!(stream.peer_addr().map(|peer| peer.ip()).ok(), Some(Ipv4Addr::LOCALHOST.into()));
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(stream)
}

fn pour(stream: &mut impl Write, mut bytes: u64) -> Result<()> {
    let chunk: Vec<u8> = (0..=u8::MAX).cycle().take(CHUNK_BYTES).collect();
    while bytes > 0 {
        let most = usize::try_from(bytes).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        stream.write_all(&chunk[..most])?;
        bytes -= most as u64;
    }
    Ok(())
}

fn drain(stream: &mut impl Read, mut bytes: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while bytes > 0 {
        let most = usize::try_from(bytes).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let count = stream.read(&mut chunk[..most])?;
        ensure!(count > 0, "{bytes} bytes do not come");
        bytes -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_takes_and_gives_what_it_is_asked_for() {
        let address = target().unwrap();
        for direction in [Direction::ToDevice, Direction::FromDevice] {
            for bytes in [0, 1, CHUNK_BYTES as u64, 3 * MIB + 7] {
                exchange(address, direction, bytes).unwrap();
            }
        }
    }
}
