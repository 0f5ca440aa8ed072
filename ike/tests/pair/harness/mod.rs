//! Two engines, a virtual clock and a wire between them that tests hold in their hands.
//!
//! Outputs are executed at once: key exchanges, signatures and their verification with a real
//! provider, the data plane as a table. Only the certificate chain is taken on trust: a
//! "certificate" here is a bare public key. Nothing moves on the wire until a test says so.

mod key;
mod pair;
mod peer;
mod setup;

use ike::io::Datagram;
use ike::wire::{ExchangeType, Header};

pub use key::Key;
pub use pair::{Nat, Pair};
pub use peer::Peer;
pub use setup::{Setup, address, esp, ike, net};

pub const CLIENT_IP: &str = "192.0.2.10";
pub const SERVER_IP: &str = "198.51.100.1";
pub const LEASE: &str = "lease-1";
/// The key that the harness's EAP-TLS agrees on.
pub const MSK: &[u8] = &[0x3a; 64];

/// Wall clock at the start of every test, in microseconds since the epoch.
pub const START: i64 = 1_800_000_000_000_000;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A datagram on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    pub to: Side,
    pub datagram: Datagram,
}

impl Flight {
    pub fn exchange(&self) -> ExchangeType {
        Header::peek(&self.datagram.payload).unwrap().exchange
    }
}
