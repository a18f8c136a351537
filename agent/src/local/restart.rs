//! Restarts that an application does by itself: it waits to hear of one, and says what came of it.
//!
//! Each is handed out once. Who has heard of one and says nothing more has not restarted, as far as anybody knows.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use uuid::Uuid;

use crate::config::ServiceName;

/// The services that are restarted so. Nobody can add one.
#[derive(Debug)]
pub struct Restarts(HashMap<String, Mutex<Seat>>);

#[derive(Debug, Default)]
struct Seat {
    asked: Option<Asked>,
    /// The application that waits; a newer one takes its place.
    waiter: Option<oneshot::Sender<Uuid>>,
}

#[derive(Debug)]
struct Asked {
    id: Uuid,
    is_told: bool,
    answer: oneshot::Sender<Result<(), String>>,
}

/// Why an application has not restarted, as far as is known.
#[derive(Debug, PartialEq, Eq)]
pub enum NotRestarted {
    /// No application has asked whether it is to.
    Unheard,
    /// One was told, and said nothing more.
    Unconfirmed,
    /// It says that it did not, and why.
    Refused(String),
}

impl Restarts {
    #[must_use]
    pub fn new(services: &[ServiceName]) -> Self {
        Self(services.iter().map(|service| (service.as_str().to_owned(), Mutex::default())).collect())
    }

    /// Whether this service is restarted so.
    #[must_use]
    pub fn has(&self, service: &str) -> bool {
        self.0.contains_key(service)
    }

    /// Asks the application of this service to restart. One at a time: the desk runs no two.
    ///
    /// # Errors
    /// When it does not say in time that it has.
    pub async fn ask(&self, service: &str, within: Duration) -> Result<(), NotRestarted> {
        let Some((id, answered)) = self.begin(service) else { return Err(NotRestarted::Unheard) };
        let outcome = timeout(within, answered).await;
        let asked = self.seat(service).and_then(|mut seat| seat.asked.take_if(|asked| asked.id == id));
        let is_unheard = asked.is_some_and(|asked| !asked.is_told);
        match outcome {
            Ok(Ok(said)) => said.map_err(NotRestarted::Refused),
            Ok(Err(_)) | Err(_) if is_unheard => Err(NotRestarted::Unheard),
            Ok(Err(_)) | Err(_) => Err(NotRestarted::Unconfirmed),
        }
    }

    /// Tells the application that waits, or leaves the order for the next one.
    fn begin(&self, service: &str) -> Option<(Uuid, oneshot::Receiver<Result<(), String>>)> {
        let mut seat = self.seat(service)?;
        let (answer, answered) = oneshot::channel();
        let id = Uuid::new_v4();
        let is_told = seat.waiter.take().is_some_and(|waiter| waiter.send(id).is_ok());
        seat.asked = Some(Asked { id, is_told, answer });
        Some((id, answered))
    }

    /// Waits until the service is to be restarted; `None` if it is not, meanwhile.
    pub async fn wait(&self, service: &str, within: Duration) -> Option<Uuid> {
        let mut heard = {
            let mut seat = self.seat(service)?;
            if let Some(asked) = seat.asked.as_mut().filter(|asked| !asked.is_told) {
                asked.is_told = true;
                return Some(asked.id);
            }
            let (waiter, heard) = oneshot::channel();
            seat.waiter = Some(waiter);
            heard
        };
        let until = Instant::now() + within;
        match timeout_at(until, &mut heard).await {
            Ok(Ok(id)) => Some(id),
            Ok(Err(_)) => {
                // A newer one waits in its place. It would take that back at once, and the newer one as well, without end.
                sleep_until(until).await;
                None
            }
            Err(_) => {
                heard.close();
                // It may have come at the last moment.
                heard.try_recv().ok()
            }
        }
    }

    /// The application says what came of it. Gives whether anybody had asked for that.
    pub fn confirm(&self, service: &str, id: Uuid, outcome: Result<(), String>) -> bool {
        let asked = self.seat(service).and_then(|mut seat| seat.asked.take_if(|asked| asked.id == id && asked.is_told));
        asked.is_some_and(|asked| asked.answer.send(outcome).is_ok())
    }

    fn seat(&self, service: &str) -> Option<MutexGuard<'_, Seat>> {
        // What is changed in it, is changed in one step.
        Some(self.0.get(service)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    fn restarts() -> Restarts {
        Restarts::new(&[ServiceName::parse("meter").unwrap()])
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_restart_and_says_what_came_of_it() {
        for outcome in [Ok(()), Err("in the midst of a reading".to_owned())] {
            let restarts = restarts();
            let application = async {
                let id = restarts.wait("meter", LONG).await.unwrap();
                assert!(!restarts.confirm("meter", Uuid::nil(), Ok(())));
                assert!(restarts.confirm("meter", id, outcome.clone()));
                assert!(!restarts.confirm("meter", id, Ok(())), "once");
            };
            let (asked, ()) = tokio::join!(restarts.ask("meter", LONG), application);
            assert_eq!(asked, outcome.map_err(NotRestarted::Refused));
        }
    }

    #[tokio::test]
    async fn who_comes_late_hears_of_it_too_but_only_one_does() {
        let restarts = restarts();
        let application = async {
            let id = restarts.wait("meter", LONG).await.unwrap();
            assert_eq!(restarts.wait("meter", SHORT).await, None);
            assert!(restarts.confirm("meter", id, Ok(())));
        };
        // The one who asks comes first here.
        let (asked, ()) = tokio::join!(biased; restarts.ask("meter", LONG), application);
        assert_eq!(asked, Ok(()));
    }

    #[tokio::test]
    async fn a_newer_application_takes_the_place_of_the_one_that_waits() {
        let restarts = restarts();
        let newer = async {
            let id = restarts.wait("meter", LONG).await.unwrap();
            assert!(restarts.confirm("meter", id, Ok(())));
        };
        let (older, (), asked) =
            tokio::join!(biased; restarts.wait("meter", SHORT), newer, restarts.ask("meter", LONG));
        assert_eq!((older, asked), (None, Ok(())));
    }

    #[tokio::test]
    async fn applications_that_take_each_others_place_do_so_slowly() {
        let restarts = restarts();
        let ask_again = async || {
            for _ in 0..3 {
                assert_eq!(restarts.wait("meter", SHORT).await, None);
            }
        };
        let begun = Instant::now();
        tokio::join!(ask_again(), ask_again());
        assert!(begun.elapsed() >= SHORT * 3, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn silence_is_told_apart_from_absence_and_leaves_nothing_behind() {
        let restarts = restarts();
        assert_eq!(restarts.ask("meter", SHORT).await, Err(NotRestarted::Unheard));
        assert_eq!(restarts.wait("meter", SHORT).await, None);
        // The application that waited is gone.
        let (asked, _) = tokio::join!(biased; restarts.ask("meter", SHORT), restarts.wait("meter", SHORT));
        assert_eq!(asked, Err(NotRestarted::Unconfirmed));
        assert_eq!(restarts.wait("meter", SHORT).await, None);
        assert_eq!(restarts.ask("other", LONG).await, Err(NotRestarted::Unheard));
        assert_eq!(restarts.wait("other", LONG).await, None);
    }
}
