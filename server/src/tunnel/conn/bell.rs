//! Waits for something rare beside something frequent, without asking about the rare each time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Knows whether a future was woken, so that it is polled only then: a task that runs for each packet has no time for the
/// locks of a stop that never comes.
#[derive(Debug, Default)]
pub(super) struct Bell {
    has_rung: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    /// Waits for `future`, which must not be waited for beside another one on the same bell. Can be dropped at any time.
    pub(super) async fn rung_by<T>(self: &Arc<Self>, future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::clone(self));
        let mut future = pin!(future);
        self.has_rung.store(true, Ordering::Release);
        poll_fn(|context| {
            self.task.register(context.waker());
            if self.has_rung.swap(false, Ordering::AcqRel) {
                future.as_mut().poll(&mut Context::from_waker(&waker))
            } else {
                Poll::Pending
            }
        })
        .await
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn what_is_rare_is_polled_only_when_it_was_woken() {
        let (bell, notify, polls) = (Arc::new(Bell::default()), Notify::new(), AtomicU32::new(0));
        let mut notified = pin!(notify.notified());
        let rare = poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            notified.as_mut().poll(context)
        });
        let frequent = async {
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(polls.load(Ordering::Relaxed), 1);
            notify.notify_one();
        };
        tokio::join!(bell.rung_by(rare), frequent);
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
