//! Processor time, of a piece of work and of the whole process.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

/// Runs `work`, and tells what it took of the processor, in user and kernel mode. What it has others do is not in it.
pub(crate) async fn metered<T>(mut work: Pin<&mut impl Future<Output = T>>) -> (T, Duration) {
    let mut spent = Duration::ZERO;
    let done = poll_fn(|context| {
        // A task may be polled by another thread each time, but never by two at once.
        let before = of_thread();
        let poll = work.as_mut().poll(context);
        spent += of_thread().saturating_sub(before);
        poll
    });
    let done = done.await;
    (done, spent)
}

/// Of this process since it began.
pub(crate) fn of_process() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| of(usage.user_time()) + of(usage.system_time()))
}

fn of_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn of(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::sleep;

    use super::*;

    fn burn(time: Duration) {
        let begun = of_thread();
        while of_thread() - begun < time {
            std::hint::black_box(1);
        }
    }

    #[tokio::test]
    async fn work_is_counted_and_waiting_is_not() {
        let process = of_process();
        let work = async {
            burn(Duration::from_millis(20));
            sleep(Duration::from_millis(200)).await;
            burn(Duration::from_millis(20));
            7
        };
        let (done, spent) = metered(pin!(work)).await;
        assert_eq!(done, 7);
        assert!((Duration::from_millis(40)..Duration::from_millis(100)).contains(&spent), "{spent:?}");
        assert!(of_process() - process >= Duration::from_millis(38), "{:?}", of_process() - process);
    }
}
