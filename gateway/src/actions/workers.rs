//! A few threads for work that blocks or takes long.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sys::queue::{Bound, Queue};

/// Jobs of peers that have come to IKE_AUTH, or are authenticated, waiting at most.
const WAITING: usize = 4096;

/// Key exchanges of strangers waiting at most: under 100 ms of work. More would only make them
/// wait in vain, since a peer says again what got no answer in time.
const STRANGERS: usize = 64;

/// Who a job is for; each runs when there is none for those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// A peer that is authenticated, or that answered at its address.
    Peer,
    /// One that claims an identity: anybody can make the gateway validate chains.
    Claimant,
    /// A peer of whom nothing is known but its address.
    Stranger,
}

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end when it is dropped.
pub struct Workers {
    queue: Arc<Queue<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let queue: Arc<Queue<Job>> =
            Arc::new(Queue::new(&[WAITING, WAITING, STRANGERS].map(Bound::items)));
        let mut threads = Vec::new();
        for index in 0..count.max(1) {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || work(&queue))?;
            threads.push(thread);
        }
        Ok(Self { queue, threads })
    }

    /// Hands in a job; false when too many of its rank wait.
    pub fn submit(&self, rank: Rank, job: Job) -> bool {
        let lane = match rank {
            Rank::Peer => 0,
            Rank::Claimant => 1,
            Rank::Stranger => 2,
        };
        self.queue.offer(lane, job, 0)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.close();
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last reference may be dropped by a job, on a worker.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

fn work(queue: &Queue<Job>) {
    while !queue.is_finished() {
        if let Some(job) = queue.take(Duration::from_secs(60)) {
            // One failed job must cost its own exchange, not the thread.
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            if caught.is_err() {
                tracing::error!("a worker's job panicked; its exchange will time out");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_and_a_panic_costs_only_itself() {
        let workers = Workers::start(2).unwrap();
        let (done, results) = mpsc::channel();
        assert!(workers.submit(Rank::Peer, Box::new(|| panic!("on purpose"))));
        for i in 0..10 {
            let done = done.clone();
            assert!(workers.submit(Rank::Peer, Box::new(move || done.send(i).unwrap())));
        }
        let mut got: Vec<i32> = results.iter().take(10).collect();
        got.sort_unstable();
        assert_eq!(got, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn strangers_wait_behind_peers_and_only_their_jobs_are_dropped() {
        let workers = Workers::start(1).unwrap();
        let (release, hold) = mpsc::channel::<()>();
        let (busy, is_busy) = mpsc::channel();
        let occupy = Box::new(move || {
            busy.send(()).unwrap();
            let _ = hold.recv();
        });
        assert!(workers.submit(Rank::Peer, occupy));
        is_busy.recv().unwrap();
        let (done, results) = mpsc::channel();
        let job = |what: &'static str| {
            let done = done.clone();
            Box::new(move || done.send(what).unwrap())
        };
        let accepted =
            (0..10 * STRANGERS).filter(|_| workers.submit(Rank::Stranger, job("stranger"))).count();
        assert_eq!(accepted, STRANGERS);
        assert!(workers.submit(Rank::Claimant, job("claimant")));
        assert!(workers.submit(Rank::Peer, job("peer")));
        release.send(()).unwrap();
        let order: Vec<_> = results.iter().take(STRANGERS + 2).collect();
        assert_eq!(order[..3], ["peer", "claimant", "stranger"]);
    }
}
