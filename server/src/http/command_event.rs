//! Who waits for which command. One task hears the bus and wakes the streams of the commands that may have changed; each
//! stream then looks at the database itself, with the rights of its caller. A stream that is woken for nothing sends nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, PersonId};
use tokio::sync::watch;

use super::Settings;
use crate::bus::{Heard, Hint, Listener};

#[derive(Debug)]
pub(crate) struct Hub {
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<CommandId, Watched>,
    /// Streams of each person who has any.
    people: HashMap<PersonId, usize>,
    streams: usize,
}

#[derive(Debug)]
struct Watched {
    changed: watch::Sender<()>,
    streams: usize,
}

/// Why there is no further stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubscribeError {
    #[error("there are as many streams as the server allows")]
    Full,
    #[error("this person has as many streams as one may have")]
    PersonFull,
}

impl Hub {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// Wakes streams until the bus is closed.
    pub(crate) async fn follow(&self, mut hints: Listener) {
        loop {
            match hints.hear().await {
                Heard::Hint(Hint::CommandChanged(command)) => self.wake(command),
                Heard::Hint(
                    Hint::CommandsDue(_)
                    | Hint::DeviceChanged(_)
                    | Hint::DeviceLinked(_)
                    | Hint::OpeningsDue(_)
                    | Hint::SupportDue(_)
                    | Hint::PersonChanged(_)
                    | Hint::ConfigurationDue(_)
                    | Hint::NoticesDue,
                ) => {}
                Heard::Everything => self.wake_all(),
                Heard::Closed => return,
            }
        }
    }

    pub(crate) fn subscribe(
        self: &Arc<Self>,
        command: CommandId,
        person: PersonId,
    ) -> Result<Subscription, SubscribeError> {
        let place = self.place(person)?;
        let mut state = self.lock();
        let watched =
            state.watched.entry(command).or_insert_with(|| Watched { changed: watch::Sender::new(()), streams: 0 });
        watched.streams += 1;
        let changed = watched.changed.subscribe();
        let recheck_every = self.settings.stream_recheck_every;
        Ok(Subscription { place, command, changed, recheck_every })
    }

    /// A place for a stream of events, of whatever kind.
    pub(crate) fn place(self: &Arc<Self>, person: PersonId) -> Result<Place, SubscribeError> {
        let mut state = self.lock();
        if state.streams >= self.settings.streams_max {
            return Err(SubscribeError::Full);
        }
        let of_person = state.people.entry(person).or_insert(0);
        if *of_person >= self.settings.streams_per_person_max {
            return Err(SubscribeError::PersonFull);
        }
        *of_person += 1;
        state.streams += 1;
        Ok(Place { hub: Arc::clone(self), person })
    }

    fn wake(&self, command: CommandId) {
        if let Some(watched) = self.lock().watched.get(&command) {
            watched.changed.send_replace(());
        }
    }

    fn wake_all(&self) {
        for watched in self.lock().watched.values() {
            watched.changed.send_replace(());
        }
    }

    fn give_back(&self, person: PersonId) {
        let mut state = self.lock();
        state.streams -= 1;
        if let Some(of_person) = state.people.get_mut(&person) {
            *of_person -= 1;
            if *of_person == 0 {
                state.people.remove(&person);
            }
        }
    }

    fn unsubscribe(&self, command: CommandId) {
        let mut state = self.lock();
        if let Some(watched) = state.watched.get_mut(&command) {
            watched.streams -= 1;
            if watched.streams == 0 {
                state.watched.remove(&command);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    hub: Arc<Hub>,
    person: PersonId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hub.give_back(self.person);
    }
}

/// A stream that follows a command.
#[derive(Debug)]
pub(crate) struct Subscription {
    place: Place,
    command: CommandId,
    changed: watch::Receiver<()>,
    recheck_every: Duration,
}

impl Subscription {
    /// Waits until the command may have changed since the last call, or it is time to look anyway.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            // The sender lives as long as this subscription.
            _ = self.changed.changed() => {}
            () = tokio::time::sleep(self.recheck_every) => {}
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.place.hub.unsubscribe(self.command);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::model::new_id;

    fn hub(streams_max: usize, streams_per_person_max: usize) -> Arc<Hub> {
        Arc::new(Hub::new(Settings { streams_max, streams_per_person_max, ..Settings::default() }))
    }

    fn ids() -> (CommandId, PersonId) {
        (CommandId::from_uuid(new_id()), PersonId::from_uuid(new_id()))
    }

    /// Longer than any test takes.
    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_hint_wakes_its_command_only() {
        let hub = Arc::new(Hub::new(Settings { stream_recheck_every: NEVER, ..Settings::default() }));
        let ((one, person), (other, _), bus) = (ids(), ids(), Bus::new());
        let mut of_one = hub.subscribe(one, person).unwrap();
        let mut of_other = hub.subscribe(other, person).unwrap();
        let listener = bus.listen();
        bus.send(Hint::CommandChanged(one));
        drop(bus);
        hub.follow(listener).await;
        of_one.wait().await;
        assert!(tokio::time::timeout(Duration::from_millis(50), of_other.wait()).await.is_err());
    }

    #[tokio::test]
    async fn lost_hints_wake_everything() {
        let hub = Arc::new(Hub::new(Settings { stream_recheck_every: NEVER, ..Settings::default() }));
        let ((one, person), (other, _), bus) = (ids(), ids(), Bus::new());
        let mut of_one = hub.subscribe(one, person).unwrap();
        let listener = bus.listen();
        for _ in 0..100_000 {
            bus.send(Hint::CommandChanged(other));
        }
        drop(bus);
        hub.follow(listener).await;
        of_one.wait().await;
    }

    #[tokio::test]
    async fn without_a_hint_it_is_time_to_look_anyway() {
        let soon = Duration::from_millis(10);
        let hub = Arc::new(Hub::new(Settings { stream_recheck_every: soon, ..Settings::default() }));
        let (command, person) = ids();
        hub.subscribe(command, person).unwrap().wait().await;
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let hub = hub(3, 2);
        let ((command, person), (_, other)) = (ids(), ids());
        let first = hub.subscribe(command, person).unwrap();
        let _second = hub.subscribe(command, person).unwrap();
        assert_eq!(hub.subscribe(command, person).unwrap_err(), SubscribeError::PersonFull);
        let third = hub.subscribe(command, other).unwrap();
        assert_eq!(hub.subscribe(command, other).unwrap_err(), SubscribeError::Full);
        drop(first);
        drop(third);
        assert!(hub.subscribe(command, other).is_ok());
        assert_eq!(hub.lock().people.len(), 1);
    }
}
