//! Runs key exchange operations outside the engine.
//!
//! The engine is deterministic and providers draw their key pairs from a sealed random source, so
//! the engine names each key exchange by a handle and emits requests; whoever drives the engine
//! owns a [`KexExecutor`], which keeps the private halves, and feeds the responses back.
//!
//! A driver that completes inline calls [`KexExecutor::execute`]. One that wants slow groups
//! (MODP) on another thread splits the call: [`prepare`](KexExecutor::prepare) here,
//! [`run`](KexJob::run) there, [`absorb`](KexExecutor::absorb) here again.

use std::collections::BTreeMap;
use std::fmt;

use super::{CryptoError, CryptoProvider, KexSecret, KeyExchangeGroup, KeyShare, SharedSecret};
use crate::wire::KeMethod;

/// A key exchange operation that the engine wants done. Handles are chosen by the engine and
/// unique among its pending key exchanges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KexRequest {
    /// Draw a key pair and keep the private half under `handle`.
    Generate {
        /// Name of the key exchange.
        handle: u64,
        /// Its group.
        group: KeMethod,
    },
    /// Compute the shared secret; the private half under `handle` is consumed, whatever happens.
    Agree {
        /// Name of the key exchange.
        handle: u64,
        /// The peer's public value (a KEM's ciphertext).
        peer_public: Vec<u8>,
    },
    /// Responder's half of a KEM; nothing is kept.
    Encapsulate {
        /// Name of the key exchange.
        handle: u64,
        /// Its KEM.
        group: KeMethod,
        /// The initiator's public value.
        peer_public: Vec<u8>,
    },
    /// Forget the private half; also ends a `Generate` that is still under way.
    Drop {
        /// Name of the key exchange.
        handle: u64,
    },
}

impl KexRequest {
    /// Name of the key exchange.
    #[must_use]
    pub const fn handle(&self) -> u64 {
        match self {
            Self::Generate { handle, .. }
            | Self::Agree { handle, .. }
            | Self::Encapsulate { handle, .. }
            | Self::Drop { handle } => *handle,
        }
    }
}

/// What became of a [`KexRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KexResponse {
    /// A key pair exists.
    Generated {
        /// Name of the key exchange.
        handle: u64,
        /// Public value for the KE payload.
        public: Vec<u8>,
    },
    /// The shared secret is known.
    Agreed {
        /// Name of the key exchange.
        handle: u64,
        /// g^ir, or what was decapsulated.
        secret: SharedSecret,
    },
    /// The responder's half of a KEM is done.
    Encapsulated {
        /// Name of the key exchange.
        handle: u64,
        /// Ciphertext for the KE payload.
        public: Vec<u8>,
        /// What was encapsulated.
        secret: SharedSecret,
    },
    /// Nothing is held under the handle any more.
    Dropped {
        /// Name of the key exchange.
        handle: u64,
    },
    /// The operation failed; nothing is held under the handle.
    Failed {
        /// Name of the key exchange.
        handle: u64,
        /// Why.
        error: CryptoError,
    },
}

impl KexResponse {
    /// Name of the key exchange.
    #[must_use]
    pub const fn handle(&self) -> u64 {
        match self {
            Self::Generated { handle, .. }
            | Self::Agreed { handle, .. }
            | Self::Encapsulated { handle, .. }
            | Self::Dropped { handle }
            | Self::Failed { handle, .. } => *handle,
        }
    }
}

enum Slot {
    /// A `Generate` job is out.
    Generating,
    /// The private half.
    Ready(Box<dyn KexSecret>),
}

/// Keeps private halves between requests.
pub struct KexExecutor {
    provider: &'static CryptoProvider,
    slots: BTreeMap<u64, Slot>,
}

impl KexExecutor {
    /// An executor with nothing pending.
    #[must_use]
    pub const fn new(provider: &'static CryptoProvider) -> Self {
        Self { provider, slots: BTreeMap::new() }
    }

    /// Does the whole operation now.
    pub fn execute(&mut self, request: KexRequest) -> KexResponse {
        let outcome = self.prepare(request).run();
        self.absorb(outcome)
    }

    /// Takes out of the executor what the operation needs.
    pub fn prepare(&mut self, request: KexRequest) -> KexJob {
        let handle = request.handle();
        let work = self.work(request).unwrap_or_else(Work::Refused);
        KexJob { handle, work }
    }

    /// Keeps what the operation produced and makes the response.
    pub fn absorb(&mut self, outcome: KexOutcome) -> KexResponse {
        let KexOutcome { handle, result } = outcome;
        match result {
            Ok(Product::Share(share)) => match self.slots.get_mut(&handle) {
                Some(slot @ Slot::Generating) => {
                    *slot = Slot::Ready(share.secret);
                    KexResponse::Generated { handle, public: share.public }
                }
                // Dropped while the job was out: the private half ends here.
                _ => KexResponse::Failed { handle, error: CryptoError::UnknownHandle(handle) },
            },
            Ok(Product::Secret(secret)) => KexResponse::Agreed { handle, secret },
            Ok(Product::Encapsulation(public, secret)) => {
                KexResponse::Encapsulated { handle, public, secret }
            }
            Ok(Product::Nothing) => KexResponse::Dropped { handle },
            Err(error) => {
                // A request refused for reusing a handle must not cost the exchange that owns it.
                if matches!(self.slots.get(&handle), Some(Slot::Generating))
                    && !matches!(error, CryptoError::HandleInUse(_))
                {
                    self.slots.remove(&handle);
                }
                KexResponse::Failed { handle, error }
            }
        }
    }

    /// Number of private halves held or being generated: zero when no handshake is under way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.slots.len()
    }

    fn work(&mut self, request: KexRequest) -> Result<Work, CryptoError> {
        match request {
            KexRequest::Generate { handle, group } => {
                let group = self.group(group)?;
                if self.slots.contains_key(&handle) {
                    return Err(CryptoError::HandleInUse(handle));
                }
                self.slots.insert(handle, Slot::Generating);
                Ok(Work::Generate(group))
            }
            KexRequest::Agree { handle, peer_public } => match self.slots.remove(&handle) {
                Some(Slot::Ready(secret)) => Ok(Work::Agree(secret, peer_public)),
                _ => Err(CryptoError::UnknownHandle(handle)),
            },
            KexRequest::Encapsulate { group, peer_public, .. } => {
                Ok(Work::Encapsulate(self.group(group)?, peer_public))
            }
            KexRequest::Drop { handle } => {
                self.slots.remove(&handle);
                Ok(Work::Nothing)
            }
        }
    }

    fn group(&self, method: KeMethod) -> Result<&'static dyn KeyExchangeGroup, CryptoError> {
        self.provider.group(method).ok_or(CryptoError::Unsupported("the key exchange method"))
    }
}

impl fmt::Debug for KexExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KexExecutor")
            .field("provider", &self.provider.name)
            .field("pending", &self.slots.len())
            .finish()
    }
}

enum Work {
    Generate(&'static dyn KeyExchangeGroup),
    Agree(Box<dyn KexSecret>, Vec<u8>),
    Encapsulate(&'static dyn KeyExchangeGroup, Vec<u8>),
    Nothing,
    Refused(CryptoError),
}

/// An operation that can run on any thread.
#[must_use = "a job that is not run leaves its handle pending"]
pub struct KexJob {
    handle: u64,
    work: Work,
}

impl KexJob {
    /// Does the arithmetic.
    #[must_use]
    pub fn run(self) -> KexOutcome {
        let result = match self.work {
            Work::Generate(group) => group.generate().map(Product::Share),
            Work::Agree(secret, peer_public) => secret.agree(&peer_public).map(Product::Secret),
            Work::Encapsulate(group, peer_public) => group
                .encapsulate(&peer_public)
                .map(|(public, secret)| Product::Encapsulation(public, secret)),
            Work::Nothing => Ok(Product::Nothing),
            Work::Refused(error) => Err(error),
        };
        KexOutcome { handle: self.handle, result }
    }
}

impl fmt::Debug for KexJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KexJob").field("handle", &self.handle).finish_non_exhaustive()
    }
}

enum Product {
    Share(KeyShare),
    Secret(SharedSecret),
    Encapsulation(Vec<u8>, SharedSecret),
    Nothing,
}

/// What a [`KexJob`] produced, on its way back to the executor.
pub struct KexOutcome {
    handle: u64,
    result: Result<Product, CryptoError>,
}

impl fmt::Debug for KexOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KexOutcome").field("handle", &self.handle).finish_non_exhaustive()
    }
}
