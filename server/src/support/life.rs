//! The life of one session: kept until something ends it, and accounted for afterwards.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cloudlink_proto::stream::Control;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Support;
use super::opening;
use super::session::{Ending, Session};
use crate::bus::Hint;
use crate::config::Warnings;
use crate::lifecycle::Shutdown;
use crate::model::support_session::EndReason;
use crate::recording::{Entry, Health};
use crate::store::support_session::{
    Closing, SessionFigures, server, support_session_account_in_txn, support_session_end_in_txn,
    support_session_lock_in_txn, support_session_tell_in_txn,
};
use crate::store::{StoreError, Visibility};

/// How long a session may wait for its first stream.
const CLIENT_WITHIN: Duration = Duration::from_secs(60);
/// Before the database is told again what it has not heard.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// How long the account may take when the node stops hard.
const ACCOUNT_AT_STOP_WITHIN: Duration = Duration::from_secs(2);

/// Serves a session to its end, and writes down what it came to, however long that takes.
pub(super) async fn keep(support: Support, session: Arc<Session>) {
    let metrics = &support.links().metrics;
    let kind = session.facts.target.kind().name();
    metrics.support_sessions_live.with_label_values(&[kind]).inc();
    watch_over(&support, &session).await;
    // The first reason has stayed, whoever else had one.
    let ending = session.ended().await;
    session.streams.close();
    session.streams.wait().await;
    let closed_at = Instant::now();
    let cut_off = ending.reason.is_cut().then(|| cut_off(ending, closed_at));
    metrics.support_sessions_live.with_label_values(&[kind]).dec();
    metrics.support_sessions.with_label_values(&[kind, ending.reason.name()]).inc();
    if let Some(cut_off) = cut_off {
        metrics.support_cut_off_seconds.observe(cut_off.as_secs_f64());
    }
    let (learned_after, closed_after) = (ending.at.saturating_duration_since(ending.over_at), closed_at - ending.at);
    tracing::info!(
        session = %session.facts.id, reason = ending.reason.name(), ?cut_off, ?learned_after, ?closed_after,
        "a support session has ended",
    );
    let account = account(&support, &session, ending, closed_at, cut_off);
    tokio::select! {
        // What is not written then is found by the next life of this node.
        () = support.0.shutdown.hard.cancelled() => {
            let account = account_once(&support, &session, ending, closed_at, cut_off);
            if !matches!(timeout(ACCOUNT_AT_STOP_WITHIN, account).await, Ok(Ok(()))) {
                tracing::warn!(session = %session.facts.id, "the end of a support session is not written");
            }
        }
        () = account => {}
    }
    support.forget(session.facts.id);
}

/// From when it had to be over to when nothing could pass any more. While the node knew too little to let anything pass, it did not.
fn cut_off(ending: Ending, closed_at: Instant) -> Duration {
    ending.passed_until.saturating_duration_since(ending.over_at) + closed_at.saturating_duration_since(ending.at)
}

/// Until the session has ended.
async fn watch_over(support: &Support, session: &Session) {
    let mut deadline = session.deadline();
    let mut health = None;
    let mut is_stopping = false;
    loop {
        let ends_at = *deadline.borrow_and_update();
        let now = Instant::now();
        if now >= ends_at {
            return session.end(EndReason::GrantEnded, ends_at);
        }
        if health.is_none() {
            health = session.health();
        }
        let warning = warning_due(&support.0.config.warn_before_seconds, now, ends_at);
        let idle_at = idle_at(support, session, health.is_some());
        let shutdown = &support.0.shutdown;
        tokio::select! {
            biased;
            _ = session.ended() => return,
            () = sleep_until(ends_at) => return session.end(EndReason::GrantEnded, ends_at),
            // A grant that is extended ends later, and one that is not in force any more has another reason.
            _ = deadline.changed() => {}
            () = shutdown.hard.cancelled() => return session.end(EndReason::NodeLost, Instant::now()),
            () = session.begun.notified() => {}
            () = failed(&mut health) => return session.end(EndReason::RecordingFailed, Instant::now()),
            () = shutdown.soft.cancelled(), if !is_stopping => {
                is_stopping = true;
                warn_of_stop(shutdown, session, ends_at);
            }
            () = sleep_until(warning.map_or(ends_at, |(at, _)| at)), if warning.is_some() => {
                if let Some((_, seconds_left)) = warning {
                    session.say(&Control::Warning { seconds_left, reason: None });
                }
            }
            () = sleep_until(idle_at) => {
                if self::idle_at(support, session, health.is_some()) <= Instant::now() {
                    return session.end(EndReason::Idle, Instant::now());
                }
            }
        }
    }
}

/// When to warn next, and of how many seconds. None: there is nothing more to be warned of.
fn warning_due(warnings: &Warnings, now: Instant, ends_at: Instant) -> Option<(Instant, u64)> {
    let left = ends_at.saturating_duration_since(now);
    warnings.before().find(|before| *before < left).map(|before| (ends_at - before, before.as_secs()))
}

/// Tells both sides that the node stops, if that comes before the end of access. Where they can connect again, it is for them to
/// say: the device is sent to another node meanwhile.
fn warn_of_stop(shutdown: &Shutdown, session: &Session, ends_at: Instant) {
    let Some(stops_at) = shutdown.hard_at().filter(|stops_at| *stops_at < ends_at) else { return };
    let seconds_left = stops_at.saturating_duration_since(Instant::now()).as_secs_f64().round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "ten minutes at most, and never below zero"
    )]
    let seconds_left = seconds_left as u64;
    let reason = Some(EndReason::NodeLost.name().to_owned());
    session.say(&Control::Warning { seconds_left, reason });
}

/// When it has been idle for too long, as far as can be told now.
fn idle_at(support: &Support, session: &Session, has_begun: bool) -> Instant {
    if !has_begun && session.streams_ever() == 0 {
        return session.opened_at + CLIENT_WITHIN;
    }
    session.moved_at() + support.0.config.idle_timeout_seconds.duration()
}

/// Until recording has failed. Never, where nothing is recorded yet.
async fn failed(health: &mut Option<watch::Receiver<Health>>) {
    let Some(health) = health else { return std::future::pending().await };
    if health.wait_for(|health| *health == Health::Failed).await.is_err() {
        // It was finished.
        std::future::pending::<()>().await;
    }
}

/// Everything that is to be written, until it is.
async fn account(
    support: &Support,
    session: &Arc<Session>,
    ending: Ending,
    closed_at: Instant,
    cut_off: Option<Duration>,
) {
    loop {
        match account_once(support, session, ending, closed_at, cut_off).await {
            Ok(()) => return,
            Err(error) if error.is_retryable() => sleep(STORE_RETRY).await,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                return tracing::error!(session = %session.facts.id, error, "cannot write the end of a support session");
            }
        }
    }
}

async fn account_once(
    support: &Support,
    session: &Arc<Session>,
    ending: Ending,
    closed_at: Instant,
    cut_off: Option<Duration>,
) -> Result<(), StoreError> {
    let store = &support.links().store;
    let id = session.facts.id;
    // The end first: that of its recording may take longer.
    let ended = async {
        let mut transaction = store.begin(Visibility::All).await?;
        let live = support_session_lock_in_txn(&mut transaction, Closing::One(id)).await?;
        let over = if cut_off.is_some() { ending.over_at.elapsed() } else { closed_at.elapsed() };
        let ended = support_session_end_in_txn(&mut transaction, &live, server(), ending.reason, over).await?;
        let is_told = support_session_tell_in_txn(&mut transaction, &ended).await?;
        store.commit(transaction).await?;
        Ok(is_told)
    };
    if store.within(ended).await? {
        support.links().bus.send(Hint::NoticesDue);
    }
    finish_recording(session, ending).await;
    opening::close(support, session).await?;
    let mut result = session.result();
    result.insert("streams".to_owned(), json!(session.streams_ever()));
    let figures = SessionFigures {
        cut_off,
        bytes_to_device: session.to_device.load(Ordering::Relaxed),
        bytes_from_device: session.from_device.load(Ordering::Relaxed),
        result: Value::Object(result),
    };
    let accounted = async {
        let mut transaction = store.begin(Visibility::All).await?;
        support_session_account_in_txn(&mut transaction, id, &figures).await?;
        store.commit(transaction).await
    };
    store.within(accounted).await
}

/// Closes the recording, if there is one that is not closed yet.
async fn finish_recording(session: &Session, ending: Ending) {
    // Nobody else has it any more.
    let Some(recorder) = session.recorder.lock().await.take().and_then(Arc::into_inner) else { return };
    let elapsed = session.elapsed();
    // One that has failed is cut short, and says so.
    let _ = recorder.note(elapsed, &Entry::Closed { reason: ending.reason.name().to_owned() });
    match recorder.finish(elapsed).await {
        Ok(recorded) => session.note_result("recording_sha256", json!(HEXLOWER.encode(&recorded.digest))),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(session = %session.facts.id, error, "the recording of a support session is cut short");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn warns_ten_and_two_minutes_before_the_end_and_again_when_it_is_moved() {
        let (now, warnings) = (Instant::now(), config::Support::default().warn_before_seconds);
        let in_seconds = |seconds| now + Duration::from_secs(seconds);
        let due = |left| warning_due(&warnings, now, in_seconds(left));
        assert_eq!(due(3600), Some((in_seconds(3000), 600)));
        assert_eq!(due(600), Some((in_seconds(480), 120)), "once it was told");
        assert_eq!(due(121), Some((in_seconds(1), 120)));
        assert_eq!(due(120), None);
        assert_eq!(due(1), None);
    }
}
