//! Events on their way from the engine's thread to whoever writes them down.

use std::sync::Arc;
use std::time::Duration;

use ike::event::Event;

use crate::sys::queue::{Bound, Queue};

/// Refusals waiting to be written at most. Strangers cause them; everything else is caused by
/// authenticated peers or ourselves and is never dropped.
const REFUSALS: usize = 2048;

/// A handle on the queue.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: Arc<Queue<Event>>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { queue: Arc::new(Queue::new(&[Bound::items(REFUSALS)])) }
    }
}

impl Journal {
    /// Adds an event.
    pub fn push(&self, event: Event) {
        if matches!(event, Event::Refused(_)) {
            self.queue.offer(0, event, 0);
        } else {
            // Closed only when the process is at its end and nobody reads any more.
            let _ = self.queue.push(event);
        }
    }

    /// The next event; `None` when none came in time.
    pub fn take(&self, patience: Duration) -> Option<Event> {
        self.queue.take(patience)
    }

    /// No more events will come.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Closed and read to the end.
    pub fn is_finished(&self) -> bool {
        self.queue.is_finished()
    }
}
