//! Who a peer is: the certificate authority, enrolment, leases, revocation and the store.
//!
//! Everything is synchronous request → decision: time is an argument ([`UnixTime`]), randomness
//! enters through [`Entropy`], nothing here opens a socket. [`Authority`] is the way in.
//!
//! ```text
//! let authority = Authority::open(state_dir, Options::new(settings), now)?;
//! let reply     = authority.est(&request, now);                 // HTTP answer as a value
//! let peer      = authority.verify_peer(&chain, Some(ike_id), now)?;
//! let access    = authority.authorise(&peer, now)?;             // lease, addresses, deadline
//! let change    = authority.connected(&access.lease.id, now)?;
//! let change    = authority.release(&lease_id, "admin", &Actor::Uid(0), now)?;
//! ```
//!
//! A method that returns `Ok` has made its effect durable.
#![forbid(unsafe_code)]

pub mod audit;
mod authority;
mod backup;
mod bar;
mod ca;
mod crl;
mod csr;
pub mod ecdsa;
pub mod enrol;
mod entropy;
mod error;
pub mod failpoint;
pub mod hook;
mod issue;
mod journal;
mod lease;
mod ocsp;
mod page;
mod profile;
mod record;
mod revoke;
mod rollback;
mod seal;
mod select;
mod serial;
pub mod signer;
pub mod store;
mod time;
pub mod validate;

pub use audit::chain::{ChainFault, ChainReport, FaultKind};
pub use audit::checkpoint::CheckpointVerifier;
pub use audit::{Actor, AuditEvent, AuditOutcome, AuditRecord, Carried, TunnelFacts};
pub use authority::{Access, AccessError, Authority, Startup};
pub use backup::{BackupHead, BackupKey, restore};
pub use bar::{Bar, Barred, RunName};
pub use ca::{
    CaCertificate, CaChange, CaSetup, CaStatus, Imported, ServerIdentity, ServerNames,
    certificates_of, issuer_id,
};
pub use crl::Crl;
pub use csr::{Csr, CsrError, CsrKey, challenge_password};
pub use enrol::approval::{Decision, PendingLease};
pub use enrol::est::{EstOutcome, EstReply, EstRequest};
pub use enrol::exchange::Exchanged;
pub use enrol::jwt::{JwtAlgorithm, KeysWanted};
pub use enrol::keygen::MadeKey;
pub use enrol::token::{Token, TokenCreate, TokenSecret, TokenSpend, TokenState};
pub use enrol::{Enrolled, KeyHolder, LimitKind, Limits, OpenRate, Refusal, RefusalCode};
pub use entropy::{Entropy, SystemEntropy, random_text};
pub use error::Error;
pub use issue::CertRecord;
pub use lease::{
    CiRef, Lease, LeaseCert, LeaseChange, LeaseEnd, LeaseEvent, LeaseState, LeaseTimers, SITE_ROLE,
    SitePeer, Transition, transition,
};
pub use ocsp::{OcspReply, OcspStatus};
pub use page::Page;
pub use profile::{Options, PoolConfig, RoleProfile, Settings};
pub use revoke::{Revocation, RevocationReason, RevokeOutcome};
pub use select::RevokeSelector;
pub use serial::Serial;
pub use time::UnixTime;
pub use validate::{IkeId, PeerError, San, VerifiedPeer};
