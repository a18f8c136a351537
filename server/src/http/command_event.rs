//! Who waits for which command. One task hears the bus and wakes the streams of the commands that may have changed; each
//! stream then looks at the database itself, with the rights of its caller. A stream that is woken for nothing sends nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, PersonId, TenantId};
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
    /// And of all people of each tenant.
    tenants: HashMap<TenantId, usize>,
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
    #[error("the people of this tenant have as many streams as they may have")]
    TenantFull,
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
        tenant: Option<TenantId>,
    ) -> Result<Subscription, SubscribeError> {
        let place = self.place(person, tenant)?;
        let mut state = self.lock();
        let watched =
            state.watched.entry(command).or_insert_with(|| Watched { changed: watch::Sender::new(()), streams: 0 });
        watched.streams += 1;
        let changed = watched.changed.subscribe();
        let recheck_every = self.settings.stream_recheck_every;
        Ok(Subscription { place, command, changed, recheck_every })
    }

    /// A place for a stream of events, of whatever kind.
    pub(crate) fn place(self: &Arc<Self>, person: PersonId, tenant: Option<TenantId>) -> Result<Place, SubscribeError> {
        let mut state = self.lock();
        let state = &mut *state;
        let of_tenant = tenant.and_then(|tenant| state.tenants.get(&tenant)).copied().unwrap_or(0);
        if state.streams >= self.settings.streams_max {
            return Err(SubscribeError::Full);
        }
        if of_tenant >= self.settings.streams_per_tenant_max {
            return Err(SubscribeError::TenantFull);
        }
        if state.people.get(&person).copied().unwrap_or(0) >= self.settings.streams_per_person_max {
            return Err(SubscribeError::PersonFull);
        }
        *state.people.entry(person).or_insert(0) += 1;
        if let Some(tenant) = tenant {
            *state.tenants.entry(tenant).or_insert(0) += 1;
        }
        state.streams += 1;
        Ok(Place { hub: Arc::clone(self), person, tenant })
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

    fn give_back(&self, person: PersonId, tenant: Option<TenantId>) {
        let mut state = self.lock();
        state.streams -= 1;
        one_less(&mut state.people, person);
        if let Some(tenant) = tenant {
            one_less(&mut state.tenants, tenant);
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

fn one_less<Id: Eq + Hash>(counts: &mut HashMap<Id, usize>, id: Id) {
    if let Entry::Occupied(mut count) = counts.entry(id) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// A place among the streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    hub: Arc<Hub>,
    person: PersonId,
    tenant: Option<TenantId>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hub.give_back(self.person, self.tenant);
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
        let mut of_one = hub.subscribe(one, person, None).unwrap();
        let mut of_other = hub.subscribe(other, person, None).unwrap();
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
        let mut of_one = hub.subscribe(one, person, None).unwrap();
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
        hub.subscribe(command, person, None).unwrap().wait().await;
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let hub = hub(3, 2);
        let ((command, person), (_, other)) = (ids(), ids());
        let first = hub.subscribe(command, person, None).unwrap();
        let _second = hub.subscribe(command, person, None).unwrap();
        assert_eq!(hub.subscribe(command, person, None).unwrap_err(), SubscribeError::PersonFull);
        let third = hub.subscribe(command, other, None).unwrap();
        assert_eq!(hub.subscribe(command, other, None).unwrap_err(), SubscribeError::Full);
        drop(first);
        drop(third);
        assert!(hub.subscribe(command, other, None).is_ok());
        assert_eq!(hub.lock().people.len(), 1);
    }

    #[test]
    fn no_tenant_takes_the_places_of_all() {
        let settings = Settings { streams_max: 3, streams_per_tenant_max: 2, ..Settings::default() };
        let hub = Arc::new(Hub::new(settings));
        let somebody = || PersonId::from_uuid(new_id());
        let (tenant, other) = (Some(TenantId::from_uuid(new_id())), Some(TenantId::from_uuid(new_id())));
        let first = hub.place(somebody(), tenant).unwrap();
        let _second = hub.place(somebody(), tenant).unwrap();
        assert_eq!(hub.place(somebody(), tenant).unwrap_err(), SubscribeError::TenantFull);
        let third = hub.place(somebody(), other).unwrap();
        assert_eq!(hub.place(somebody(), None).unwrap_err(), SubscribeError::Full);
        drop(third);
        let _vendors = hub.place(somebody(), None).unwrap();
        drop(first);
        assert!(hub.place(somebody(), tenant).is_ok());
        assert_eq!(hub.lock().tenants.len(), 1);
    }
}
