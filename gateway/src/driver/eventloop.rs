//! The engine's thread: take messages, let the engine handle them, execute what it wants.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ike::Engine;
use ike::io::{Command, Completion, Input, LeaseId, Output};
use ike::time::Timestamp;

use super::{EngineHandle, IkeSockets, Message};
use crate::actions::{Dispatcher, Peers};
use crate::obs::Journal;
use crate::restart::Checkpoints;
use crate::sys::clock;

/// Datagrams handled before commands and completions are looked at again: those that name an SPI
/// of ours, and those of strangers, which so are never shut out and never in the way.
const BATCH: [usize; 2] = [32, 8];

/// Longest sleep; the timer is exact, this only bounds a mistake.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// See the module.
pub struct EventLoop {
    engine: Engine,
    inbox: EngineHandle,
    sockets: IkeSockets,
    dispatcher: Dispatcher,
    peers: Arc<Peers>,
    journal: Journal,
    checkpoints: Checkpoints,
    stop_by: Option<Instant>,
    /// What is kept is for the next process.
    leaves: bool,
    /// When the engine last saw the clocks without being given anything else.
    looked: Timestamp,
}

impl EventLoop {
    /// A loop around an engine; messages come through `inbox`.
    pub fn new(
        engine: Engine,
        inbox: EngineHandle,
        sockets: IkeSockets,
        dispatcher: Dispatcher,
        peers: Arc<Peers>,
        journal: Journal,
        checkpoints: Checkpoints,
    ) -> Self {
        Self {
            engine,
            inbox,
            sockets,
            dispatcher,
            peers,
            journal,
            checkpoints,
            stop_by: None,
            leaves: false,
            looked: clock::mono(),
        }
    }

    /// Runs until [`Message::Stop`] and the engine is idle, or its time is over.
    pub fn run(mut self) {
        let mut urgent = Vec::new();
        let mut datagrams = Vec::new();
        self.drain();
        self.dispatcher.adopted();
        while !self.is_over() {
            self.inbox.queue.take_batch(self.patience(), &BATCH, &mut urgent, &mut datagrams);
            for message in urgent.drain(..).chain(datagrams.drain(..)) {
                self.message(message);
            }
            self.timeout();
        }
        self.inbox.queue.close();
        if !self.leaves {
            self.checkpoints.end();
        }
    }

    fn is_over(&self) -> bool {
        self.stop_by.is_some_and(|by| self.engine.is_idle() || Instant::now() >= by)
    }

    fn patience(&self) -> Duration {
        let now = clock::mono();
        let timer = self.engine.poll_timeout().map(|deadline| until(deadline.at, now));
        let stop = self.stop_by.map(|by| by.saturating_duration_since(Instant::now()));
        [timer, stop].into_iter().flatten().fold(LONGEST_SLEEP, Duration::min)
    }

    fn timeout(&mut self) {
        let now = clock::now();
        let due = self.engine.poll_timeout().is_some_and(|deadline| deadline.at <= now.mono);
        // Leases and certificates end by the wall clock, which may be set forward while nothing
        // arrives; the engine notices only when it is called.
        if due || now.mono.since(self.looked) >= LONGEST_SLEEP {
            self.looked = now.mono;
            self.engine.handle(now, Input::Timeout);
            self.drain();
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Datagram(datagram) => self.handle(Input::Datagram(datagram)),
            Message::Completion(token, completion) => {
                self.handle(Input::Completion(token, completion));
            }
            Message::KeyExchanged(token, outcome) => {
                let completion = self.dispatcher.absorb(outcome);
                self.handle(Input::Completion(token, completion));
            }
            Message::Authorised { token, request, decision } => {
                let result = self.peers.confirm(&request, *decision);
                self.handle(Input::Completion(token, Completion::Authorise(result)));
            }
            Message::Dataplane(event) => self.handle(Input::Dataplane(event)),
            Message::Command(command) => self.handle(Input::Command(command)),
            Message::CloseLease(lease, reason, answer) => {
                let closed = self.established(&lease);
                self.handle(Input::Command(Command::CloseLease(lease, reason)));
                let _ = answer.send(closed);
            }
            Message::CloseSa(ike, reason, answer) => {
                let exists = self.engine.sa(ike).is_some();
                self.handle(Input::Command(Command::CloseIkeSa(ike, reason)));
                let _ = answer.send(exists);
            }
            Message::Look(look) => look(&self.engine),
            Message::Stop(patience) => {
                self.stop_by = Some(Instant::now() + patience);
                self.handle(Input::Command(Command::Shutdown));
            }
            // Every datagram that left had been written down before: there is nothing to save.
            Message::Leave => {
                self.leaves = true;
                self.stop_by = Some(Instant::now());
            }
        }
    }

    fn established(&self, lease: &LeaseId) -> usize {
        self.engine
            .sas()
            .filter(|sa| sa.state == ike::SaState::Established && sa.lease.as_ref() == Some(lease))
            .count()
    }

    fn handle(&mut self, input: Input) {
        self.engine.handle(clock::now(), input);
        self.drain();
    }

    /// Executes outputs in order until there are none. A completion that is ready at once goes
    /// back in only then: every change of the engine is followed by a full drain.
    fn drain(&mut self) {
        let mut ready = VecDeque::new();
        loop {
            while let Some(output) = self.engine.poll_output() {
                match output {
                    Output::Transmit(transmit) => self.sockets.send(&transmit),
                    Output::Action(token, action) => {
                        let stranger = self.engine.serves_stranger(token);
                        let completion = self.dispatcher.dispatch(token, action, stranger);
                        ready.extend(completion.map(|completion| (token, completion)));
                    }
                    Output::Event(event) => self.journal.push(event),
                    // Before any later datagram leaves: what a peer has seen, the next process
                    // knows.
                    Output::Checkpoint(checkpoint) => self.checkpoints.store(&checkpoint),
                }
            }
            let Some((token, completion)) = ready.pop_front() else { return };
            self.engine.handle(clock::now(), Input::Completion(token, completion));
        }
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.since(now)
}
