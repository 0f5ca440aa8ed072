//! The facade: one open authority over one store.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ipnet::IpNet;

use crate::audit::{Actor, AuditEvent, AuditRecord};
use crate::ca::{Ca, CaStatus, ServerIdentity, ServerNames};
use crate::crl::Crl;
use crate::enrol::est::{EstReply, EstRequest};
use crate::enrol::token::{Token, TokenCreate, TokenSecret};
use crate::entropy::Entropy;
use crate::error::Error;
use crate::issue::CertRecord;
use crate::lease::pool::AddressBook;
use crate::lease::{Lease, LeaseChange, LeaseState};
use crate::profile::{Options, Settings};
use crate::revoke::{RevocationReason, RevokeOutcome, RevokeSelector};
use crate::seal::Sealer;
use crate::serial::Serial;
use crate::store::Store;
use crate::time::UnixTime;
use crate::validate::{IkeId, PeerError, VerifiedPeer};

/// What happened when the authority was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// The CA was created just now: this is the first start.
    pub created_ca: bool,
    /// The sealing key lies beside the state it seals; `status` should say so.
    pub seal_key_beside_state: bool,
    /// Leases that were active when the last process ended and are now lost.
    pub orphaned: usize,
}

/// A peer's access: what the gateway installs, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The lease found by the certificate's issuer and serial.
    pub lease: Lease,
    /// No SA lives past this instant: the earliest of certificate, chain and cap.
    pub deadline: UnixTime,
}

/// Why a verified peer gets no access. `Display` is the operator's sentence.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AccessError {
    /// No lease has this certificate.
    #[error(
        "certificate {serial} of {subject} belongs to no lease: enrol with this gateway, or add a \
         role that matches certificates of {issuer}"
    )]
    NoLease {
        /// The serial number.
        serial: Serial,
        /// The subject.
        subject: String,
        /// The issuer.
        issuer: String,
    },
    /// The certificate is revoked.
    #[error("certificate {serial} of lease {lease} was revoked at {at} ({reason}): enrol again")]
    Revoked {
        /// The serial number.
        serial: Serial,
        /// The lease.
        lease: String,
        /// Since when.
        at: UnixTime,
        /// Why.
        reason: RevocationReason,
    },
    /// The lease has ended or lapsed.
    #[error("lease {lease} is {state} since {since}: {advice}")]
    LeaseNotLive {
        /// The lease.
        lease: String,
        /// Its state.
        state: LeaseState,
        /// Since when.
        since: UnixTime,
        /// What to do.
        advice: &'static str,
    },
    /// The lease's role is not configured any more.
    #[error("role {role} of lease {lease} is not configured: add it or enrol with another role")]
    UnknownRole {
        /// The lease.
        lease: String,
        /// The role.
        role: String,
    },
    /// The store failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// The certificate authority with its leases, tokens and revocations.
///
/// Methods take `&self` and may be called from several threads; concurrent enrolments share
/// commits. None of them reads a clock.
#[derive(Debug)]
pub struct Authority {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sealer: Sealer,
    pub(crate) ca: RwLock<Arc<Ca>>,
    pub(crate) settings: RwLock<Arc<Settings>>,
    pub(crate) addresses: Mutex<AddressBook>,
    entropy: Mutex<Randomness>,
    startup: Startup,
    /// Held while the process lives: one process per state directory.
    _lock: Option<std::fs::File>,
}

struct Randomness(Box<dyn Entropy>);

impl std::fmt::Debug for Randomness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Randomness")
    }
}

impl Authority {
    /// Opens the state directory, creating it, its keys and the CA at the first start.
    ///
    /// Leases that were active when the last process ended become lost (their tunnels died with
    /// it); a gateway that restores tunnels calls [`connected`](Self::connected) for them.
    ///
    /// # Errors
    /// One sentence saying what is wrong and what to do; nothing half-created is left behind.
    pub fn open(state_dir: &Path, options: Options, now: UnixTime) -> Result<Self, Error> {
        let _ = (state_dir, options, now);
        Err(Error::Contended("opening"))
    }

    /// Opens over a given store and sealing key (32 bytes); used by tests and by other backends.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_store(
        store: Arc<dyn Store>,
        seal_key: &[u8; 32],
        options: Options,
        now: UnixTime,
    ) -> Result<Self, Error> {
        let _ = (store, seal_key, options, now);
        Err(Error::Contended("opening"))
    }

    /// What happened when the authority was opened.
    pub fn startup(&self) -> &Startup {
        &self.startup
    }

    /// Replaces the settings; leases keep their addresses, deadlines follow the new timers.
    ///
    /// # Errors
    /// When the settings cannot work; the old ones then stay.
    pub fn reconfigure(&self, settings: Settings) -> Result<(), Error> {
        let _ = settings;
        Err(Error::Contended("reconfiguring"))
    }

    // --- the CA ---

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> String {
        String::new()
    }

    /// The issuing certificate, PEM.
    pub fn issuing_pem(&self) -> String {
        String::new()
    }

    /// Root and issuing certificate, DER, root first.
    pub fn ca_certificates(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// The SHA-256 fingerprint of the root certificate's DER, lower-case hexadecimal.
    pub fn root_fingerprint(&self) -> String {
        String::new()
    }

    /// Names, fingerprints and validity of the CA certificates.
    pub fn ca_status(&self) -> CaStatus {
        CaStatus { certificates: Vec::new() }
    }

    /// The gateway's certificate for IKE and for the enrolment listener's TLS.
    ///
    /// Loads the stored one, or issues a new one when there is none, the names changed, a third
    /// of its life or less remains, or it was revoked. Call it at start and once a day.
    ///
    /// # Errors
    /// When the names cannot be put in a certificate or the store fails.
    pub fn server_identity(
        &self,
        names: &ServerNames,
        now: UnixTime,
    ) -> Result<ServerIdentity, Error> {
        let _ = (names, now);
        Err(Error::Contended("issuing"))
    }

    // --- enrolment ---

    /// Answers an EST request. Never fails: errors are answers.
    pub fn est(&self, request: &EstRequest<'_>, now: UnixTime) -> EstReply {
        let _ = (request, now);
        EstReply {
            status: 503,
            headers: Vec::new(),
            body: Vec::new(),
            outcome: crate::enrol::est::EstOutcome::CaCerts,
        }
    }

    /// Creates a one-time token. The secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// When the role does not exist or the limits make no sense.
    pub fn token_create(
        &self,
        create: &TokenCreate,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<(Token, TokenSecret), Error> {
        let _ = (create, actor, now);
        Err(Error::Contended("creating"))
    }

    /// All tokens, oldest name first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn tokens(&self) -> Result<Vec<Token>, Error> {
        Err(Error::Contended("listing"))
    }

    /// Revokes a token by its public name; repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none of that name.
    pub fn token_revoke(&self, id: &str, actor: &Actor, now: UnixTime) -> Result<Token, Error> {
        let _ = (id, actor, now);
        Err(Error::Contended("revoking"))
    }

    // --- peers ---

    /// Verifies a peer's chain and, when given, that its IKE identity is the certificate's.
    ///
    /// `chain` is as sent: the first certificate is the leaf (RFC 7296 3.6), the rest in any
    /// order. Says nothing about access; that is [`authorise`](Self::authorise).
    ///
    /// # Errors
    /// What differed and what to do.
    pub fn verify_peer(
        &self,
        chain: &[Vec<u8>],
        id: Option<IkeId<'_>>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let _ = (chain, id, now);
        Err(PeerError::NoCertificate)
    }

    /// Decides a verified peer's access by the lease its certificate belongs to.
    ///
    /// # Errors
    /// Why there is none.
    pub fn authorise(&self, peer: &VerifiedPeer, now: UnixTime) -> Result<Access, AccessError> {
        let _ = (peer, now);
        Err(AccessError::Failed(Error::Contended("authorising")))
    }

    // --- leases ---

    /// Records that the lease has a tunnel now; repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::LeaseState`] when the lease may not connect (any more).
    pub fn connected(&self, lease_id: &str, now: UnixTime) -> Result<LeaseChange, Error> {
        let _ = (lease_id, now);
        Err(Error::Contended("connecting"))
    }

    /// Records that the lease's last tunnel is gone (DELETE, dead peer, replaced nowhere).
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such lease.
    pub fn disconnected(
        &self,
        lease_id: &str,
        reason: &str,
        now: UnixTime,
    ) -> Result<LeaseChange, Error> {
        let _ = (lease_id, reason, now);
        Err(Error::Contended("disconnecting"))
    }

    /// Ends a lease: its certificates are revoked, its addresses rest. `cause` is one word:
    /// `client`, `admin`, `job`. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such lease.
    pub fn release(
        &self,
        lease_id: &str,
        cause: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<LeaseChange, Error> {
        let _ = (lease_id, cause, actor, now);
        Err(Error::Contended("releasing"))
    }

    /// Revokes certificates and ends their lease, durably, before it returns. The caller then
    /// ends the tunnels of the returned changes. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing matches.
    pub fn revoke(
        &self,
        selector: &RevokeSelector,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<RevokeOutcome, Error> {
        let _ = (selector, reason, actor, now);
        Err(Error::Contended("revoking"))
    }

    /// The next instant at which [`expire_due`](Self::expire_due) has something to do.
    ///
    /// # Errors
    /// When the store fails.
    pub fn next_deadline(&self) -> Result<Option<UnixTime>, Error> {
        Err(Error::Contended("reading"))
    }

    /// Moves every lease whose deadline has come; the caller ends the tunnels it is told to.
    ///
    /// # Errors
    /// When the store fails; what was moved before stays moved and is due no more.
    pub fn expire_due(&self, now: UnixTime) -> Result<Vec<LeaseChange>, Error> {
        let _ = now;
        Err(Error::Contended("expiring"))
    }

    /// A lease by id.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease(&self, id: &str) -> Result<Option<Lease>, Error> {
        let _ = id;
        Err(Error::Contended("reading"))
    }

    /// A lease by a certificate of it. Without an issuer the embedded CA's is meant.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease_by_serial(
        &self,
        issuer_id: Option<&str>,
        serial: &Serial,
    ) -> Result<Option<Lease>, Error> {
        let _ = (issuer_id, serial);
        Err(Error::Contended("reading"))
    }

    /// The leases a public key has or had.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leases_by_spki(&self, spki_sha256: &str) -> Result<Vec<Lease>, Error> {
        let _ = spki_sha256;
        Err(Error::Contended("reading"))
    }

    /// Leases; the live ones only, or all that are kept, in order of id.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leases(&self, include_ended: bool) -> Result<Vec<Lease>, Error> {
        let _ = include_ended;
        Err(Error::Contended("reading"))
    }

    // --- certificates, revocation list, audit ---

    /// The certificates on record.
    ///
    /// # Errors
    /// When the store fails.
    pub fn certificates(&self) -> Result<Vec<CertRecord>, Error> {
        Err(Error::Contended("reading"))
    }

    /// A certificate issued by the embedded CA.
    ///
    /// # Errors
    /// When the store fails.
    pub fn certificate(&self, serial: &Serial) -> Result<Option<CertRecord>, Error> {
        let _ = serial;
        Err(Error::Contended("reading"))
    }

    /// The current revocation list of the issuing CA, rebuilt when a revocation or its age
    /// makes it stale.
    ///
    /// # Errors
    /// When the store or the signer fails.
    pub fn crl(&self, now: UnixTime) -> Result<Crl, Error> {
        let _ = now;
        Err(Error::Contended("building"))
    }

    /// Audit events after a position, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditRecord>, Error> {
        let _ = (after, limit);
        Err(Error::Contended("reading"))
    }

    /// Appends an event of the caller's own (tunnel up and down, policy changes).
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_audit(&self, event: &AuditEvent) -> Result<(), Error> {
        let _ = event;
        Err(Error::Contended("writing"))
    }

    /// The gateway's own address in each network of a pool, with the network's prefix length.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such pool.
    pub fn gateway_addresses(&self, pool: &str) -> Result<Vec<IpNet>, Error> {
        let _ = pool;
        Err(Error::Contended("reading"))
    }

    pub(crate) fn with_entropy<T>(
        &self,
        draw: impl FnOnce(&mut dyn Entropy) -> Result<T, Error>,
    ) -> Result<T, Error> {
        draw(lock(&self.entropy).0.as_mut())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(dead_code)]
fn _unused(_: IpAddr) {}
