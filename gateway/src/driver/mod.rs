//! Drives the sans-IO engine: sockets, clock, timer, queue.
//!
//! One engine, one thread. Datagrams may be dropped when the engine is busy (IKE retransmits);
//! commands and completions never are. Requests of strangers wait in a small lane of their own,
//! behind those that name an SPI of ours: a flood of them cannot push out what tunnels say.

mod eventloop;
mod sockets;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use ike::Engine;
use ike::crypto::KexOutcome;
use ike::event::CloseReason;
use ike::io::{Authorise, Command, Completion, Datagram, DataplaneEvent, IkeSaId, LeaseId, Token};

pub use eventloop::EventLoop;
pub use sockets::{IKE_PORT, IkeSockets, NAT_PORT, Receiver};

use crate::actions::Decision;
use crate::sys::queue::{Bound, Queue};

/// Datagrams that name an SPI of ours and wait for the engine at most: some 50 ms of work.
const KNOWN: Bound = Bound { items: 1024, octets: 4 * 1024 * 1024 };

/// Datagrams of strangers (IKE_SA_INIT requests, and what is no IKE at all) that wait at most: as
/// many as a fleet of runners sends at once, since each of them says it again after a second.
const STRANGERS: Bound = Bound { items: 512, octets: 1024 * 1024 };

/// The lanes' ranks.
const KNOWN_LANE: usize = 0;
const STRANGERS_LANE: usize = 1;

/// What the engine's thread is sent.
pub enum Message {
    /// A datagram; droppable.
    Datagram(Datagram),
    /// The answer to an action.
    Completion(Token, Completion),
    /// A worker's half of a key exchange.
    KeyExchanged(Token, KexOutcome),
    /// The answer to an authorisation, to be checked again when it takes effect.
    Authorised {
        /// The action.
        token: Token,
        /// What was asked.
        request: Box<Authorise>,
        /// What was decided.
        decision: Box<Decision>,
    },
    /// Something happened in the data plane.
    Dataplane(DataplaneEvent),
    /// Something shall happen.
    Command(Command),
    /// Close a lease and report how many IKE SAs it had.
    CloseLease(LeaseId, CloseReason, mpsc::Sender<usize>),
    /// Close an IKE SA and report whether there was one.
    CloseSa(IkeSaId, CloseReason, mpsc::Sender<bool>),
    /// Look at the engine.
    Look(Box<dyn FnOnce(&Engine) + Send>),
    /// Close everything; the loop ends when the engine is idle or this time is over.
    Stop(Duration),
    /// Close nothing: the next process goes on with it. The loop ends at once.
    Leave,
}

/// What talks to the engine's thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    queue: Arc<Queue<Message>>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").finish_non_exhaustive()
    }
}

impl Default for EngineHandle {
    fn default() -> Self {
        Self { queue: Arc::new(Queue::new(&[KNOWN, STRANGERS])) }
    }
}

/// The answer to come of a lease whose IKE SAs are closed.
#[derive(Debug)]
pub struct Closing(mpsc::Receiver<usize>);

impl Closing {
    /// Waits for it.
    ///
    /// # Errors
    /// When the engine gives no answer in time.
    pub fn wait(self, patience: Duration) -> Result<usize, String> {
        wait(&self.0, patience)
    }
}

impl EngineHandle {
    /// Sends what must not be lost. After the engine's end nobody listens, and nothing is left
    /// that could need it.
    pub fn post(&self, message: Message) {
        let _ = self.queue.push(message);
    }

    /// Takes the next message as the engine's thread would.
    #[cfg(test)]
    pub(crate) fn next(&self, patience: Duration) -> Option<Message> {
        self.queue.take(patience)
    }

    /// Sends a datagram; false when it was dropped.
    pub fn datagram(&self, datagram: Datagram) -> bool {
        let lane = match ike::shard_of(&datagram.payload) {
            Some(_) => KNOWN_LANE,
            None => STRANGERS_LANE,
        };
        let octets = datagram.payload.len();
        self.queue.offer(lane, Message::Datagram(datagram), octets)
    }

    /// Datagrams dropped because the engine was busy.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// Closes a lease's IKE SAs; the answer says how many were established.
    pub fn closing_lease(&self, lease: LeaseId, reason: CloseReason) -> Closing {
        let (answer, answered) = mpsc::channel();
        self.post(Message::CloseLease(lease, reason, answer));
        Closing(answered)
    }

    /// Closes one IKE SA; false when there is none of that name.
    ///
    /// # Errors
    /// When the engine gives no answer in time.
    pub fn close_sa(
        &self,
        ike: IkeSaId,
        reason: CloseReason,
        patience: Duration,
    ) -> Result<bool, String> {
        let (answer, answered) = mpsc::channel();
        self.post(Message::CloseSa(ike, reason, answer));
        wait(&answered, patience)
    }

    /// Every IKE SA, in the order of their names.
    ///
    /// # Errors
    /// When the engine gives no answer in time.
    pub fn sas(&self, patience: Duration) -> Result<Vec<ike::IkeSaView>, String> {
        self.look(|engine| engine.sas().collect(), patience)
    }

    /// Looks at the engine from its own thread.
    ///
    /// # Errors
    /// When the engine gives no answer in time.
    pub fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Engine) -> T + Send + 'static,
        patience: Duration,
    ) -> Result<T, String> {
        let (answer, answered) = mpsc::channel();
        let look = move |engine: &Engine| {
            let _ = answer.send(look(engine));
        };
        self.post(Message::Look(Box::new(look)));
        wait(&answered, patience)
    }
}

fn wait<T>(answered: &mpsc::Receiver<T>, patience: Duration) -> Result<T, String> {
    answered.recv_timeout(patience).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => {
            format!("the IKE engine gave no answer within {} s", patience.as_secs())
        }
        mpsc::RecvTimeoutError::Disconnected => "the IKE engine has stopped".to_owned(),
    })
}
