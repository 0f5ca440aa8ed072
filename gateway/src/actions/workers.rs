//! A few threads for work that blocks or takes long.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sys::queue::Queue;

/// Jobs waiting at most. The engine's own limit on half-open SAs is of the same size.
const WAITING: usize = 4096;

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
        let queue: Arc<Queue<Job>> = Arc::new(Queue::new(WAITING));
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

    /// Hands in a job; false when too many wait.
    pub fn submit(&self, job: Job) -> bool {
        self.queue.offer(job)
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
        assert!(workers.submit(Box::new(|| panic!("on purpose"))));
        for i in 0..10 {
            let done = done.clone();
            assert!(workers.submit(Box::new(move || done.send(i).unwrap())));
        }
        let mut got: Vec<i32> = results.iter().take(10).collect();
        got.sort_unstable();
        assert_eq!(got, (0..10).collect::<Vec<_>>());
    }
}
