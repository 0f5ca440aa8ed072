//! The simulation world: engines, a bad network, a virtual clock, and what must always hold.
//!
//! A world is decided by its seed. Nothing here sleeps, opens a socket or reads a clock, so a
//! failing seed fails again, and thousands of walks run in the time of one real handshake timeout.

pub mod crypto;
pub mod link;
pub mod mangle;
pub mod node;
pub mod ops;
pub mod pool;
pub mod proof;
pub mod rng;
pub mod scene;
pub mod settle;
pub mod setup;
pub mod tls;
pub mod walk;
pub mod world;
