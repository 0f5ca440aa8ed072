//! A sans-IO IKEv2 engine (RFC 7296): bytes and answers in, bytes and wishes out.
//!
//! No sockets, clock, randomness, files or threads live here. [`Engine::handle`] is the only
//! method that changes anything; after each call the driver drains [`Engine::poll_output`] to
//! `None`, executes the outputs in order, and arms one timer for [`Engine::poll_timeout`]. The
//! same configuration, seed and list of (time, input) gives the same bytes, so a recorded run
//! replays exactly. The contract is in [`io`].
//!
//! Layers, each knowing only those before it: [`wire`] (bytes), [`crypto`] (a table of
//! algorithms), `policy` (what is acceptable), `sa` (what is kept), `exchange` (what is said),
//! and the engine that routes between them.
#![forbid(unsafe_code)]

pub mod config;
pub mod crypto;
pub mod eap;
mod engine;
mod error;
pub mod event;
mod exchange;
pub mod io;
pub mod policy;
mod rng;
mod sa;
pub mod snapshot;
pub mod time;
mod view;
pub mod wire;

pub use config::EngineConfig;
pub use engine::{Engine, shard_of};
pub use error::EngineError;
pub use event::Event;
pub use io::{Action, Command, Completion, Deadline, Input, Output, Token, Transmit};
pub use time::{Now, Timestamp, WallTime};
pub use view::{ChildView, EngineStats, IkeSaView, SaRole, SaState};
