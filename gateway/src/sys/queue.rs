//! A queue between threads with lanes in order of rank: the first is always taken, the others are
//! bounded, in items and in octets, and drop. Standard channels have neither priorities nor a
//! bound per kind of message.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What one droppable lane holds at most.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Items.
    pub items: usize,
    /// Octets of them all, as their givers count them.
    pub octets: usize,
}

impl Bound {
    /// So many items, whatever their size.
    pub const fn items(items: usize) -> Self {
        Self { items, octets: usize::MAX }
    }
}

#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<(T, usize)>,
    octets: usize,
    bound: Bound,
}

impl<T> Lane<T> {
    fn pop(&mut self) -> Option<T> {
        let (item, octets) = self.items.pop_front()?;
        self.octets = self.octets.saturating_sub(octets);
        Some(item)
    }
}

#[derive(Debug)]
struct Lanes<T> {
    first: VecDeque<T>,
    droppable: Vec<Lane<T>>,
    closed: bool,
    dropped: u64,
}

impl<T> Lanes<T> {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.droppable.iter().all(|lane| lane.items.is_empty())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Queue<T> {
    lanes: Mutex<Lanes<T>>,
    ready: Condvar,
}

impl<T> Queue<T> {
    /// A queue with these droppable lanes behind the first, the highest rank in front.
    pub fn new(bounds: &[Bound]) -> Self {
        let lane = |bound: &Bound| Lane { items: VecDeque::new(), octets: 0, bound: *bound };
        Self {
            lanes: Mutex::new(Lanes {
                first: VecDeque::new(),
                droppable: bounds.iter().map(lane).collect(),
                closed: false,
                dropped: 0,
            }),
            ready: Condvar::new(),
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

    /// Adds what may be dropped under load to the droppable lane of this rank, counted as so many
    /// octets; false when it was dropped.
    pub fn offer(&self, rank: usize, item: T, octets: usize) -> bool {
        let mut lanes = self.lock();
        let closed = lanes.closed;
        let accepted = lanes.droppable.get_mut(rank).is_some_and(|lane| {
            let fits = !closed
                && lane.items.len() < lane.bound.items
                && lane.octets.saturating_add(octets) <= lane.bound.octets;
            if fits {
                lane.items.push_back((item, octets));
                lane.octets += octets;
            }
            fits
        });
        if accepted {
            self.ready.notify_one();
        } else {
            lanes.dropped += 1;
        }
        accepted
    }

    /// Takes one item, by rank; waits at most `patience`. `None` when the time is over, or when
    /// the queue is closed and empty.
    pub fn take(&self, patience: Duration) -> Option<T> {
        let mut lanes = self.wait(patience);
        let item = lanes.first.pop_front();
        item.or_else(|| lanes.droppable.iter_mut().find_map(Lane::pop))
    }

    /// Takes everything of the first lane and, of each droppable lane, at most as many items as
    /// `most` says for it, after waiting at most `patience` for the first item. So no lane, however
    /// full, keeps another from being served.
    pub fn take_batch(
        &self,
        patience: Duration,
        most: &[usize],
        first: &mut Vec<T>,
        droppable: &mut Vec<T>,
    ) {
        let mut lanes = self.wait(patience);
        first.extend(lanes.first.drain(..));
        for (lane, most) in lanes.droppable.iter_mut().zip(most) {
            droppable.extend(std::iter::from_fn(|| lane.pop()).take(*most));
        }
    }

    /// Refuses new items; what is queued can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// Closed, and nothing left.
    pub fn is_finished(&self) -> bool {
        let lanes = self.lock();
        lanes.closed && lanes.is_empty()
    }

    /// How many items the droppable lanes dropped.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn wait(&self, patience: Duration) -> MutexGuard<'_, Lanes<T>> {
        let lanes = self.lock();
        let idle = |lanes: &mut Lanes<T>| lanes.is_empty() && !lanes.closed;
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
    fn the_first_lane_wins_and_only_the_others_drop() {
        let queue = Queue::new(&[Bound::items(2), Bound::items(1)]);
        for item in [20, 21] {
            queue.offer(1, item, 0);
        }
        for item in [10, 11, 12] {
            queue.offer(0, item, 0);
        }
        for item in [1, 2, 3] {
            queue.push(item).unwrap();
        }
        assert_eq!(queue.dropped(), 2);
        let taken: Vec<_> = std::iter::from_fn(|| queue.take(NOW)).collect();
        assert_eq!(taken, [1, 2, 3, 10, 11, 20]);
    }

    #[test]
    fn a_lane_is_bounded_in_octets_and_has_room_again_when_they_are_taken() {
        let queue = Queue::new(&[Bound { items: 100, octets: 1000 }]);
        assert!(queue.offer(0, 1, 600));
        assert!(!queue.offer(0, 2, 600));
        assert!(queue.offer(0, 3, 400));
        assert_eq!(queue.take(NOW), Some(1));
        assert!(queue.offer(0, 4, 600));
    }

    #[test]
    fn batches_take_all_commands_and_some_of_each_lane() {
        let queue = Queue::new(&[Bound::items(100), Bound::items(100)]);
        for item in 0..50 {
            queue.offer(0, item, 0);
            queue.offer(1, 1000 + item, 0);
        }
        queue.push(99).unwrap();
        let (mut first, mut droppable) = (Vec::new(), Vec::new());
        queue.take_batch(NOW, &[32, 4], &mut first, &mut droppable);
        assert_eq!(first, [99]);
        assert_eq!(droppable.iter().filter(|item| **item < 1000).count(), 32);
        assert_eq!(droppable.iter().filter(|item| **item >= 1000).count(), 4);
    }

    #[test]
    fn closing_wakes_the_taker_and_refuses_the_giver() {
        let queue: Arc<Queue<u8>> = Arc::new(Queue::new(&[Bound::items(1)]));
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
