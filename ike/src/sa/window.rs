//! Message ids, retransmission and the response cache (RFC 7296 2.1 to 2.3), for a window of one.
//!
//! The only place that decides whether a request is new, and the only one that sends anything
//! twice: requests of ours are kept as the bytes that went out, and so is the last response, all
//! fragments included. A request is never executed twice.

use std::time::Duration;

use crate::config::Timers;
use crate::wire::{ExchangeType, Payloads};

/// What a received message id means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A request not seen before.
    New,
    /// The request being worked on; its response will come.
    Busy,
    /// The last request again: send the cached response.
    Again,
    /// Older, or ahead of the window: dropped silently.
    Outside,
}

/// A request of ours that waits for its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outstanding {
    pub(crate) message_id: u32,
    pub(crate) exchange: ExchangeType,
    /// The datagrams as sent: retransmissions are byte-identical.
    pub(crate) packets: Vec<Vec<u8>>,
    /// How often it was sent again.
    pub(crate) tries: u32,
    /// What they say, when it may have to be said again under another id (RFC 6311 5.1).
    pub(crate) payloads: Option<Box<Payloads>>,
}

/// The last response, kept for a request that comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) message_id: u32,
    pub(crate) packets: Vec<Vec<u8>>,
}

/// Both directions of one IKE SA. The two counters are independent (RFC 7296 2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Window {
    next_request: u32,
    outstanding: Option<Outstanding>,
    next_expected: u32,
    busy: bool,
    cached: Option<Cached>,
}

impl Window {
    /// A window whose counters stand at these values.
    pub(crate) fn at(next_request: u32, next_expected: u32) -> Self {
        Self { next_request, next_expected, ..Self::default() }
    }

    /// Puts back what a snapshot kept.
    pub(crate) fn restore(
        next_request: u32,
        next_expected: u32,
        outstanding: Option<Outstanding>,
        cached: Option<Cached>,
    ) -> Self {
        Self { next_request, outstanding, next_expected, busy: false, cached }
    }

    /// Records a request that is now on its way. Its id was [`Window::next_request`].
    pub(crate) fn sent(&mut self, exchange: ExchangeType, packets: Vec<Vec<u8>>) {
        let message_id = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        self.sent_aside(message_id, exchange, packets);
    }

    /// Records a request outside the sequence of ids.
    pub(crate) fn sent_aside(
        &mut self,
        message_id: u32,
        exchange: ExchangeType,
        packets: Vec<Vec<u8>>,
    ) {
        let outstanding = Outstanding { message_id, exchange, packets, tries: 0, payloads: None };
        self.outstanding = Some(outstanding);
    }

    /// Keeps what the outstanding request says.
    pub(crate) fn keep(&mut self, payloads: &Payloads) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.payloads = Some(Box::new(payloads.clone()));
        }
    }

    /// Goes on from other ids, never lower ones (RFC 6311 5.1). Nothing from before counts.
    pub(crate) fn jump(&mut self, next_request: u32, next_expected: u32) {
        self.outstanding = None;
        self.request_from(next_request);
        self.expect(next_expected);
    }

    /// Takes [`Window::jump`] back as far as our own requests go.
    pub(crate) fn fall_back(&mut self, next_request: u32, outstanding: Option<Outstanding>) {
        self.next_request = next_request;
        self.outstanding = outstanding;
    }

    /// Our next request has this id, or a higher one.
    pub(crate) fn request_from(&mut self, next_request: u32) {
        self.next_request = self.next_request.max(next_request);
    }

    /// The peer's next request has this id, or a higher one.
    pub(crate) fn expect(&mut self, next_expected: u32) {
        self.next_expected = self.next_expected.max(next_expected);
        self.cached = None;
    }

    /// The peer's request is being worked on.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Replaces the bytes of the outstanding request without using up an id: IKE_SA_INIT with a
    /// cookie or another group is still message 0 (RFC 7296 2.6, 1.2).
    pub(crate) fn replace(&mut self, packets: Vec<Vec<u8>>) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.packets = packets;
            outstanding.tries = 0;
        }
    }

    /// Whether `message_id` and `exchange` answer the outstanding request.
    pub(crate) fn awaits(&self, message_id: u32, exchange: ExchangeType) -> bool {
        self.outstanding
            .as_ref()
            .is_some_and(|o| o.message_id == message_id && o.exchange == exchange)
    }

    /// The response has come and was authenticated.
    pub(crate) fn answered(&mut self) -> Option<Outstanding> {
        self.outstanding.take()
    }

    /// Counts one more transmission; the bytes to send, or `None` when the peer had its chances.
    pub(crate) fn retransmit(&mut self, tries: u32) -> Option<&[Vec<u8>]> {
        let outstanding = self.outstanding.as_mut()?;
        if outstanding.tries >= tries {
            return None;
        }
        outstanding.tries = outstanding.tries.saturating_add(1);
        Some(&outstanding.packets)
    }

    /// Judges a request's message id.
    pub(crate) fn classify(&self, message_id: u32) -> Incoming {
        if message_id == self.next_expected {
            return if self.busy { Incoming::Busy } else { Incoming::New };
        }
        match &self.cached {
            Some(cached) if cached.message_id == message_id => Incoming::Again,
            _ => Incoming::Outside,
        }
    }

    /// The authenticated request of the expected id is now worked on. The peer has the previous
    /// response, or it would not have sent this, so the cache is free (RFC 7296 2.3).
    pub(crate) fn accept(&mut self) {
        self.busy = true;
        self.cached = None;
    }

    /// The request in work is answered by these bytes.
    pub(crate) fn respond(&mut self, packets: Vec<Vec<u8>>) {
        self.cached = Some(Cached { message_id: self.next_expected, packets });
        self.next_expected = self.next_expected.wrapping_add(1);
        self.busy = false;
    }

    /// Id of our next request.
    pub(crate) fn next_request(&self) -> u32 {
        self.next_request
    }

    /// Id of the peer's next request.
    pub(crate) fn next_expected(&self) -> u32 {
        self.next_expected
    }

    /// A request of ours waits for its response: the next one must wait too.
    pub(crate) fn outstanding(&self) -> Option<&Outstanding> {
        self.outstanding.as_ref()
    }

    /// The response kept for a request that comes again.
    pub(crate) fn cached(&self) -> Option<&Cached> {
        self.cached.as_ref()
    }
}

/// Time until transmission number `tries + 1`: exponential with factor 1.8 (RFC 7296 2.1).
pub(crate) fn backoff(timers: &Timers, tries: u32) -> Duration {
    let mut delay = timers.retransmit;
    for _ in 0..tries.min(32) {
        delay = delay.saturating_mul(9).checked_div(5).unwrap_or(delay);
    }
    delay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_new_once_busy_until_answered_then_answered_from_the_cache() {
        let mut window = Window::at(0, 5);

        assert_eq!(window.classify(5), Incoming::New);
        window.accept();
        assert_eq!(window.classify(5), Incoming::Busy);
        window.respond(vec![vec![1], vec![2]]);
        assert_eq!(window.classify(5), Incoming::Again);
        assert_eq!(window.cached().unwrap().packets, [vec![1], vec![2]]);
        assert_eq!(window.classify(6), Incoming::New);
    }

    #[test]
    fn ids_outside_the_window_are_dropped() {
        let mut window = Window::at(0, 5);
        window.accept();
        window.respond(vec![]);

        assert_eq!(window.classify(4), Incoming::Outside);
        assert_eq!(window.classify(7), Incoming::Outside);
        // The next request shows that the response arrived.
        window.accept();
        assert_eq!(window.classify(5), Incoming::Outside);
    }

    #[test]
    fn retransmissions_are_byte_identical_and_end() {
        let mut window = Window::at(3, 0);
        window.sent(ExchangeType::Informational, vec![vec![9; 4]]);

        assert!(window.awaits(3, ExchangeType::Informational));
        assert!(!window.awaits(3, ExchangeType::CreateChildSa));
        assert_eq!(window.retransmit(2), Some(&[vec![9; 4]][..]));
        assert_eq!(window.retransmit(2), Some(&[vec![9; 4]][..]));
        assert_eq!(window.retransmit(2), None);
        assert_eq!(window.next_request(), 4);
    }

    #[test]
    fn delays_grow_by_1_8() {
        let timers = Timers::default();

        assert_eq!(backoff(&timers, 0), Duration::from_secs(1));
        assert_eq!(backoff(&timers, 2), Duration::from_millis(3240));
    }
}
