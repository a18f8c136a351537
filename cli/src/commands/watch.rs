//! Following a command to its end. The stream of events is for speed; what counts is the command as the API gives it, so
//! a broken stream costs a moment and never a fact.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::client::{Answer, Client, backoff};
use crate::failure::Failure;
use crate::model::Command;
use crate::output::{Here, Output, note, plain};

/// Streams that may break one after the other without a single event; from then on the command is read again and again.
const BARREN_STREAMS_MAX: u32 = 3;
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The server may restart meanwhile: the command goes on, and so does watching it.
const UNREACHABLE_MAX: Duration = Duration::from_secs(120);

/// Follows the command until nothing more will happen to it. `changed` hears of each change.
pub(crate) async fn follow(
    client: &Client,
    command: Answer<Command>,
    mut changed: impl FnMut(&Answer<Command>) -> Result<(), Failure>,
) -> Result<Answer<Command>, Failure> {
    let mut latest = command;
    let mut barren_streams = 0;
    let mut attempt = 0;
    let mut heard_at = Instant::now();
    changed(&latest)?;
    while !latest.value.is_final() {
        if barren_streams < BARREN_STREAMS_MAX {
            let events = listen(client, &mut latest, &mut changed).await?;
            barren_streams = if events == 0 { barren_streams + 1 } else { 0 };
            if latest.value.is_final() {
                break;
            }
            attempt += 1;
            tokio::time::sleep(backoff(attempt)).await;
        } else {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        match client.command(latest.value.id).await {
            Ok(command) => {
                heard_at = Instant::now();
                attempt = 0;
                note_change(&mut latest, command, &mut changed)?;
            }
            Err(failure) if failure.is_transient() && heard_at.elapsed() < UNREACHABLE_MAX => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(latest)
}

/// Follows one stream of events for as long as it lasts; gives the number of events.
async fn listen(
    client: &Client,
    latest: &mut Answer<Command>,
    changed: &mut impl FnMut(&Answer<Command>) -> Result<(), Failure>,
) -> Result<u32, Failure> {
    let mut count = 0;
    // That a stream cannot be had or breaks is no failure: the command is read again.
    let Ok(mut events) = client.command_events(latest.value.id).await else { return Ok(0) };
    while let Ok(Some(command)) = events.next_change().await {
        count += 1;
        note_change(latest, command, changed)?;
        if latest.value.is_final() {
            break;
        }
    }
    Ok(count)
}

fn note_change(
    latest: &mut Answer<Command>,
    command: Answer<Command>,
    changed: &mut impl FnMut(&Answer<Command>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let is_news = command.json != latest.json;
    *latest = command;
    if is_news { changed(latest) } else { Ok(()) }
}

/// Follows the command with a display for whoever looks on. Interrupted, it says how to go on.
pub(crate) async fn follow_visibly(
    client: &Client,
    output: &Output,
    command: Answer<Command>,
    label: &str,
) -> Result<Answer<Command>, Failure> {
    let id = command.value.id;
    let display = Display::new(output, label);
    let follow = Box::pin(follow(client, command, |command| {
        display.show(&command.value);
        Ok(())
    }));
    let result = tokio::select! {
        result = follow => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::Other(anyhow::anyhow!("you stopped waiting for it"))),
    };
    display.clear();
    result.inspect_err(|_| note(&format!("The command goes on without you. See it with: cloudlink command watch {id}")))
}

/// One line that moves on a terminal; else a line for each new state.
#[derive(Debug)]
enum Display {
    Live { bar: ProgressBar, label: String, here: Here },
    Lines { label: String, last: std::cell::RefCell<String>, here: Here },
    Silent,
}

impl Display {
    fn new(output: &Output, label: &str) -> Self {
        let label = plain(label).into_owned();
        if output.json {
            return Self::Silent;
        }
        if !output.live {
            return Self::Lines { label, last: std::cell::RefCell::default(), here: output.here() };
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>4}")
                .expect("the template is a constant and right"),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Live { bar, label, here: output.here() }
    }

    fn show(&self, command: &Command) {
        let state = match self {
            Self::Live { here, .. } | Self::Lines { here, .. } => plain(&state_here(command, here)).into_owned(),
            Self::Silent => return,
        };
        match self {
            Self::Live { bar, label, .. } => bar.set_message(format!("{label}: {state}")),
            Self::Lines { label, last, .. } => {
                if *last.borrow() != state {
                    note(&format!("{label}: {state}"));
                    last.replace(state);
                }
            }
            Self::Silent => {}
        }
    }

    fn clear(&self) {
        match self {
            Self::Live { bar, .. } => bar.finish_and_clear(),
            Self::Lines { .. } | Self::Silent => {}
        }
    }
}

/// As [`state`], and `queued, will run by 14:12` for what waits for a poll.
#[must_use]
pub(crate) fn state_here(command: &Command, here: &Here) -> String {
    match command.runs_by {
        // To the minute, and not before it.
        Some(by) => format!("queued, will run by {}", here.short(by + jiff::SignedDuration::from_secs(59))),
        None => state(command),
    }
}

/// `running, 40 %`
#[must_use]
pub(crate) fn state(command: &Command) -> String {
    let words = match command.state.as_str() {
        "queued" => "queued, waits for the device",
        "sent" => "sent to the device",
        "accepted" => "accepted by the device",
        other => other,
    };
    match command.percent {
        Some(percent) if !command.is_final() => format!("{words}, {percent} %"),
        _ => words.to_owned(),
    }
}
