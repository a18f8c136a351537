//! Time that passes only when everybody waits, and one thread that runs everybody in an order that the seed gives.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// SplitMix64: small, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(Cell<u64>);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub(super) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to just below `high`.
    pub(super) fn within(&self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub(super) fn index(&self, len: usize) -> usize {
        usize::try_from(self.within(0, len as u64)).expect("fits as len does")
    }

    pub(super) fn percent(&self, chance: u64) -> bool {
        self.within(0, 100) < chance
    }
}

/// Whose task it is: who is stopped, or dies, takes it along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    World,
    Node(usize),
    Device(usize),
}

/// What a step was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ran(Owner),
    Passed,
    /// It is as late as it may get.
    Ended,
}

type TaskId = u64;
type Running = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    owner: Owner,
    waker: Waker,
    /// Taken while it is polled.
    running: Option<Running>,
}

/// When it is due, and which it is.
type Timer = (u64, u64);

type Ready = Arc<Mutex<BTreeSet<TaskId>>>;

struct Knock {
    task: TaskId,
    ready: Ready,
}

impl Wake for Knock {
    fn wake(self: Arc<Self>) {
        // A set, so that it does not matter in which order a hash table woke them.
        self.ready.lock().unwrap().insert(self.task);
    }
}

pub(super) struct Executor {
    now_ms: Cell<u64>,
    pub(super) random: Random,
    numbers: Cell<u64>,
    timers: RefCell<BTreeMap<Timer, Waker>>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    ready: Ready,
    stopped: RefCell<BTreeSet<Owner>>,
}

impl Executor {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now_ms: Cell::new(0),
            random: Random::new(seed),
            numbers: Cell::new(0),
            timers: RefCell::default(),
            tasks: RefCell::default(),
            ready: Ready::default(),
            stopped: RefCell::default(),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    pub(super) fn spawn(&self, owner: Owner, running: impl Future<Output = ()> + 'static) {
        let id = self.number();
        let waker = Waker::from(Arc::new(Knock { task: id, ready: Arc::clone(&self.ready) }));
        self.tasks.borrow_mut().insert(id, Task { owner, waker, running: Some(Box::pin(running)) });
        self.ready.lock().unwrap().insert(id);
    }

    /// Nothing of it runs until it goes on.
    pub(super) fn stop(&self, owner: Owner) {
        self.stopped.borrow_mut().insert(owner);
    }

    pub(super) fn go_on(&self, owner: Owner) {
        self.stopped.borrow_mut().remove(&owner);
    }

    pub(super) fn is_stopped(&self, owner: Owner) -> bool {
        self.stopped.borrow().contains(&owner)
    }

    /// Nothing of it ever runs again.
    pub(super) fn kill(&self, owner: Owner) {
        self.stopped.borrow_mut().remove(&owner);
        let mut tasks = self.tasks.borrow_mut();
        let ids: Vec<TaskId> = tasks.iter().filter(|(_, task)| task.owner == owner).map(|(id, _)| *id).collect();
        let killed: Vec<Option<Task>> = ids.iter().map(|id| tasks.remove(id)).collect();
        // What they drop may look at the tasks.
        drop(tasks);
        drop(killed);
    }

    /// Nothing ever runs again.
    pub(super) fn forget(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        let timers = std::mem::take(&mut *self.timers.borrow_mut());
        drop((tasks, timers));
    }

    pub(super) fn sleep(self: &Rc<Self>, ms: u64) -> Sleep {
        Sleep { executor: Rc::clone(self), at_ms: self.now_ms() + ms, set: None }
    }

    /// `None` when time is up.
    pub(super) async fn timeout<T>(self: &Rc<Self>, ms: u64, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut sleep) = (std::pin::pin!(work), self.sleep(ms));
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            Pin::new(&mut sleep).poll(context).map(|()| None)
        })
        .await
    }

    /// Lets one task run until it waits, or time pass until one need not wait any more.
    pub(super) fn step(&self, end_ms: u64) -> Step {
        match self.choose() {
            Some((id, owner)) => {
                self.poll(id);
                Step::Ran(owner)
            }
            None if self.pass(end_ms) => Step::Passed,
            None => Step::Ended,
        }
    }

    fn choose(&self) -> Option<(TaskId, Owner)> {
        let (tasks, stopped) = (self.tasks.borrow(), self.stopped.borrow());
        let mut ready = self.ready.lock().unwrap();
        // Whose task is over may have been woken all the same.
        let is_runnable = |id: &&TaskId| tasks.get(id).is_some_and(|task| !stopped.contains(&task.owner));
        let runnable = || ready.iter().filter(is_runnable);
        let index = match runnable().count() {
            0 => return None,
            1 => 0,
            len => self.random.index(len),
        };
        let chosen = *runnable().nth(index).expect("there are more");
        ready.remove(&chosen);
        Some((chosen, tasks[&chosen].owner))
    }

    fn poll(&self, id: TaskId) {
        let taken =
            self.tasks.borrow_mut().get_mut(&id).and_then(|task| Some((task.running.take()?, task.waker.clone())));
        let Some((mut running, waker)) = taken else { return };
        let polled = running.as_mut().poll(&mut Context::from_waker(&waker));
        let mut tasks = self.tasks.borrow_mut();
        match (polled, tasks.get_mut(&id)) {
            (Poll::Pending, Some(task)) => {
                task.running = Some(running);
                return;
            }
            (Poll::Ready(()), Some(_)) => {
                tasks.remove(&id);
            }
            // It has killed itself.
            (_, None) => {}
        }
        drop(tasks);
        drop(running);
    }

    fn pass(&self, end_ms: u64) -> bool {
        let mut timers = self.timers.borrow_mut();
        let Some((at_ms, _)) = timers.keys().next().copied().filter(|(at_ms, _)| *at_ms < end_ms) else {
            self.now_ms.set(end_ms);
            return false;
        };
        self.now_ms.set(at_ms);
        while let Some(due) = timers.first_entry().filter(|timer| timer.key().0 <= at_ms) {
            due.remove().wake();
        }
        true
    }

    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }
}

/// Until a time. Each waits in one task only.
pub(super) struct Sleep {
    executor: Rc<Executor>,
    at_ms: u64,
    set: Option<Timer>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now_ms() >= self.at_ms {
            return Poll::Ready(());
        }
        if self.set.is_none() {
            let timer = (self.at_ms, self.executor.number());
            self.executor.timers.borrow_mut().insert(timer, context.waker().clone());
            self.set = Some(timer);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.set {
            self.executor.timers.borrow_mut().remove(&timer);
        }
    }
}
