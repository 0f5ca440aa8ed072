//! Which HTTP request the records of a thread belong to.
//!
//! A request is answered by one thread, which waits for all that the request changes; what it writes
//! into the trail names the request, so that an answer, the log and the trail are found by one word.

use std::cell::RefCell;

thread_local! {
    static CURRENT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does work for a request: every event that is made meanwhile by this thread carries its id.
pub fn for_request<T>(id: &str, work: impl FnOnce() -> T) -> T {
    let before = CURRENT.with(|current| current.replace(Some(id.to_owned())));
    // Also when the work panics: the thread does other work later.
    let _restored = Restore(before);
    work()
}

/// The request that this thread works for.
pub(super) fn current() -> Option<String> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Puts back what was there before.
struct Restore(Option<String>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Actor, AuditEvent};
    use crate::time::UnixTime;

    fn of_event() -> Option<String> {
        AuditEvent::new("test", &Actor::System, UnixTime::from_secs(0)).request
    }

    #[test]
    fn events_of_a_request_carry_its_id_and_others_do_not() {
        assert_eq!(of_event(), None);
        let seen = for_request("a", || {
            let inner = for_request("b", of_event);
            (of_event(), inner, std::thread::spawn(of_event).join().unwrap())
        });
        assert_eq!(seen, (Some("a".to_owned()), Some("b".to_owned()), None));
        assert_eq!(of_event(), None);
        let panicked = std::panic::catch_unwind(|| for_request("c", || panic!("on purpose")));
        assert!(panicked.is_err() && of_event().is_none());
    }
}
