//! A queue between threads with two lanes: one that is always taken, one that is bounded and
//! drops. Standard channels have neither priorities nor a bound per kind of message.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug)]
struct Lanes<T> {
    first: VecDeque<T>,
    droppable: VecDeque<T>,
    closed: bool,
    dropped: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Queue<T> {
    lanes: Mutex<Lanes<T>>,
    ready: Condvar,
    bound: usize,
}

impl<T> Queue<T> {
    /// A queue whose droppable lane holds `bound` items.
    pub fn new(bound: usize) -> Self {
        Self {
            lanes: Mutex::new(Lanes {
                first: VecDeque::new(),
                droppable: VecDeque::new(),
                closed: false,
                dropped: 0,
            }),
            ready: Condvar::new(),
            bound,
        }
    }

    /// Adds what must not be lost. Returned when the queue is closed.
    ///
    /// # Errors
    /// The item, when nobody will take it any more.
    pub fn push(&self, item: T) -> Result<(), T> {
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(item);
        }
        lanes.first.push_back(item);
        self.ready.notify_one();
        Ok(())
    }

    /// Adds what may be dropped under load; false when it was.
    pub fn offer(&self, item: T) -> bool {
        let mut lanes = self.lock();
        if lanes.closed || lanes.droppable.len() >= self.bound {
            lanes.dropped += 1;
            return false;
        }
        lanes.droppable.push_back(item);
        self.ready.notify_one();
        true
    }

    /// Takes one item, lane one before lane two; waits at most `patience`. `None` when the time is
    /// over, or when the queue is closed and empty.
    pub fn take(&self, patience: Duration) -> Option<T> {
        let mut lanes = self.wait(patience);
        let item = lanes.first.pop_front();
        item.or_else(|| lanes.droppable.pop_front())
    }

    /// Takes everything of lane one and at most `most` of lane two, after waiting at most
    /// `patience` for the first item.
    pub fn take_batch(
        &self,
        patience: Duration,
        most: usize,
        first: &mut Vec<T>,
        droppable: &mut Vec<T>,
    ) {
        let mut lanes = self.wait(patience);
        first.extend(lanes.first.drain(..));
        let count = lanes.droppable.len().min(most);
        droppable.extend(lanes.droppable.drain(..count));
    }

    /// Refuses new items; what is queued can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// Closed, and nothing left.
    pub fn is_finished(&self) -> bool {
        let lanes = self.lock();
        lanes.closed && lanes.first.is_empty() && lanes.droppable.is_empty()
    }

    /// How many items lane two dropped.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn wait(&self, patience: Duration) -> MutexGuard<'_, Lanes<T>> {
        let lanes = self.lock();
        let idle = |lanes: &mut Lanes<T>| {
            lanes.first.is_empty() && lanes.droppable.is_empty() && !lanes.closed
        };
        self.ready
            .wait_timeout_while(lanes, patience, idle)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn lock(&self) -> MutexGuard<'_, Lanes<T>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn the_first_lane_wins_and_only_the_second_drops() {
        let queue = Queue::new(2);
        for item in [10, 11, 12] {
            queue.offer(item);
        }
        for item in [1, 2, 3] {
            queue.push(item).unwrap();
        }
        assert_eq!(queue.dropped(), 1);
        let taken: Vec<_> = std::iter::from_fn(|| queue.take(NOW)).collect();
        assert_eq!(taken, [1, 2, 3, 10, 11]);
    }

    #[test]
    fn batches_take_all_commands_and_some_datagrams() {
        let queue = Queue::new(100);
        for item in 0..50 {
            queue.offer(item);
        }
        queue.push(99).unwrap();
        let (mut first, mut droppable) = (Vec::new(), Vec::new());
        queue.take_batch(NOW, 32, &mut first, &mut droppable);
        assert_eq!((first.len(), droppable.len()), (1, 32));
    }

    #[test]
    fn closing_wakes_the_taker_and_refuses_the_giver() {
        let queue: Arc<Queue<u8>> = Arc::new(Queue::new(1));
        let taker = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || queue.take(Duration::from_secs(60)))
        };
        queue.close();
        assert_eq!(taker.join().unwrap(), None);
        assert_eq!(queue.push(1), Err(1));
        assert!(queue.is_finished());
    }
}
