//! What the engine is configured with. Plain data; the gateway builds it from its files.

use std::net::SocketAddr;
use std::time::Duration;

use crate::crypto::{EspSuite, IkeSuite, KeMethod, SecretBytes, SignatureScheme};
use crate::io::CredentialId;
use crate::wire::{Identification, RedirectGateway, TrafficSelector};

/// The engine's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Shard number, encoded into our SPIs so that a datagram finds its shard without a lock.
    pub shard: u8,
    /// Our identity (IDr as responder, IDi as initiator).
    pub identity: Identification,
    /// Local keys with certificates, preferred first.
    pub credentials: Vec<Credential>,
    /// SHA-1 of each trust anchor's SubjectPublicKeyInfo, for CERTREQ (RFC 7296 3.7).
    pub trust_anchor_hashes: Vec<[u8; 20]>,
    /// Ask peers for OCSP answers about their certificates (RFC 4806).
    pub request_ocsp: bool,
    /// Accepted IKE suites, preferred first.
    pub ike_suites: Vec<IkeSuite>,
    /// Accepted ESP suites, preferred first.
    pub esp_suites: Vec<EspSuite>,
    /// The data plane can only do ESP in UDP: NAT detection is faked (RFC 3948, RFC 7296 2.23).
    pub force_encap: bool,
    /// Largest IKE datagram we send, UDP payload bytes; larger ones are fragmented (RFC 7383).
    pub fragment_size: usize,
    /// As responder: offer EAP-TLS to peers that ask for EAP (RFC 5216, 5998).
    pub eap_tls: bool,
    /// With EAP-TLS: omit our signature when the peer lets us (RFC 5998). Peers say so whether or
    /// not they expect one.
    pub eap_only: bool,
    /// As responder: there are post-quantum preshared keys (RFC 8784).
    pub ppk: bool,
    /// Timers.
    pub timers: Timers,
    /// How much a child SA carries before it is rekeyed.
    pub volume: Volume,
    /// Bounds on unauthenticated peers.
    pub limits: Limits,
    /// Going on after a crash.
    pub continuity: Continuity,
}

/// What helps both sides over a crash of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuity {
    /// Offer to synchronise message ids (RFC 6311).
    pub message_id_sync: bool,
    /// Synchronise them after a restart. Needed when the snapshots that are restored may be behind
    /// what was sent, as on another machine. Where none is, the ids are right, and it is better left
    /// out: strongSwan to 6.1 gives an SA up when the question is repeated.
    pub sync_after_restart: bool,
    /// Makes crash tokens (RFC 6290); must be the same after a restart, and random. `None` makes
    /// none.
    pub crash_secret: Option<SecretBytes>,
}

impl Default for Continuity {
    fn default() -> Self {
        Self { message_id_sync: true, sync_after_restart: true, crash_secret: None }
    }
}

/// A local credential: everything but the private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its name in [`crate::io::Action::Sign`].
    pub id: CredentialId,
    /// DER certificates, end entity first, then intermediates; no root.
    pub chain: Vec<Vec<u8>>,
    /// What its key can sign, preferred first.
    pub schemes: Vec<SignatureScheme>,
    /// SHA-1 of the SubjectPublicKeyInfo of each authority above the end entity, the root
    /// included: a CERTREQ that names one of them asks for this credential (RFC 7296 3.7).
    pub authorities: Vec<[u8; 20]>,
    /// OCSP answers about the chain (DER), for peers that ask for them (RFC 4806). The driver keeps
    /// them fresh.
    pub ocsp: Vec<Vec<u8>>,
}

/// Timers, all durations of monotonic time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// First retransmission; doubles (factor 1.8) each time (RFC 7296 2.1).
    pub retransmit: Duration,
    /// Retransmissions before the peer counts as dead.
    pub retransmit_tries: u32,
    /// A responder's handshake must be finished in this time.
    pub half_open: Duration,
    /// An action must be answered in this time.
    pub action: Duration,
    /// So must be, after a restart, that a child is taken back: the data plane takes back thousands,
    /// one after the other.
    pub adoption: Duration,
    /// Silence before a liveness check; zero turns it off.
    pub dpd: Duration,
    /// Rekey an IKE SA after this long.
    pub rekey_ike: Duration,
    /// Rekey a child SA after this long.
    pub rekey_child: Duration,
    /// How long DELETE of a closed SA is retransmitted.
    pub tombstone: Duration,
    /// NAT keepalive interval when we are behind a NAT.
    pub keepalive: Duration,
    /// Life of a cookie secret.
    pub cookie_secret: Duration,
    /// Fragments of one message must arrive in this time.
    pub reassembly: Duration,
    /// Grants that end sooner are not announced to the peer (AUTH_LIFETIME, RFC 4478); zero
    /// announces every one. strongSwan authenticates again at once, and over and over, when what is
    /// announced is shorter than its `over_time` (by default a tenth of its rekey time of four
    /// hours), so lower it only where clients are configured for it.
    pub min_auth_lifetime: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            retransmit: s(1),
            retransmit_tries: 5,
            half_open: s(30),
            action: s(15),
            adoption: s(600),
            dpd: s(10),
            rekey_ike: s(3600),
            rekey_child: s(25 * 60),
            tombstone: s(30),
            keepalive: s(20),
            cookie_secret: s(120),
            reassembly: s(15),
            min_auth_lifetime: s(30 * 60),
        }
    }
}

/// How much a child SA carries in one direction before it is rekeyed (RFC 7296 2.8); up to a tenth
/// less, so that SAs made together are not rekeyed together. At twice as much it ends, whatever
/// became of the rekey. Without extended sequence numbers a child is rekeyed before these run out,
/// too (RFC 4303 3.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volume {
    /// Bytes of inner packets; `None`: as many as come.
    pub bytes: Option<u64>,
    /// Packets; `None`: as many as come.
    pub packets: Option<u64>,
}

/// Bounds on what strangers can make us hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Half-open IKE SAs at which every new peer must return a cookie first.
    pub cookie_threshold: usize,
    /// Half-open IKE SAs at most, cookie or not.
    pub max_half_open: usize,
    /// Established IKE SAs at most.
    pub max_ike_sas: usize,
    /// Largest IKE message accepted, reassembled, bytes.
    pub max_message: usize,
    /// Fragments of one message at most.
    pub max_fragments: u16,
    /// Certificates of a peer at most.
    pub max_certificates: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cookie_threshold: 64,
            max_half_open: 2048,
            max_ike_sas: 100_000,
            max_message: 64 * 1024,
            max_fragments: 128,
            max_certificates: 8,
        }
    }
}

/// How an initiator authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAuth {
    /// With the key of a certificate.
    Certificate(CredentialId),
    /// With the key shared with the peer ([`crate::io::Action::SharedKey`]).
    SharedKey,
    /// With the certificate of a TLS client ([`crate::io::Action::EapTls`], RFC 5216).
    EapTls,
}

/// How a responder must authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteAuth {
    /// With a certificate ([`crate::io::Action::VerifyPeer`]).
    Certificate,
    /// With the key shared with us.
    SharedKey,
    /// With the certificate of the TLS server alone (RFC 5998), when we authenticate with
    /// [`LocalAuth::EapTls`].
    EapTls,
}

/// An initiator's post-quantum preshared key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PpkUse {
    /// Its name, which the responder must know too.
    pub id: Vec<u8>,
    /// Without it there is no connection.
    pub required: bool,
}

/// How an initiator comes to its first child SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstChild {
    /// With IKE_AUTH (RFC 7296 1.2): it shares the IKE SA's key exchange.
    #[default]
    WithIkeAuth,
    /// With a CREATE_CHILD_SA right after an IKE_AUTH without one (RFC 6023), and so with the key
    /// exchanges that its suite names. A peer that does not announce that it can is refused.
    Separately,
    /// The same, but only at [`crate::Command::CreateChild`].
    Later,
}

/// What an initiator needs to know of a peer (sites, tests, the simulation's clients).
#[derive(Debug, Clone, PartialEq)]
pub struct PeerConfig {
    /// A name for logs.
    pub name: String,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port, normally 500.
    pub remote: SocketAddr,
    /// The identity we present.
    pub identity: Identification,
    /// The identity the peer must prove.
    pub expected: Option<Identification>,
    /// How we authenticate.
    pub local_auth: LocalAuth,
    /// How the peer must authenticate.
    pub remote_auth: RemoteAuth,
    /// The post-quantum preshared key to use, if any (RFC 8784).
    pub ppk: Option<PpkUse>,
    /// Offered IKE suites; each is one proposal.
    pub ike_suites: Vec<IkeSuite>,
    /// Offered ESP suites.
    pub esp_suites: Vec<EspSuite>,
    /// The first key exchange payload's method; must be one of the offered.
    pub first_ke: KeMethod,
    /// Ask for an IPv4 virtual address.
    pub request_ipv4: bool,
    /// Ask for an IPv6 virtual address.
    pub request_ipv6: bool,
    /// Our side's selectors; replaced by the virtual addresses when they were asked for.
    pub ts_local: Vec<TrafficSelector>,
    /// The peer's side's selectors.
    pub ts_remote: Vec<TrafficSelector>,
    /// When the first child SA is made.
    pub first_child: FirstChild,
    /// Ask for transport mode (RFC 7296 1.3.1), for the child of IKE_AUTH: the selectors are then narrowed to the two outer
    /// addresses. Behind a NAT tunnel mode is asked for instead, and MOBIKE is not offered beside
    /// it. A peer that declines makes it tunnel mode, which is reported.
    pub transport: bool,
    /// Offer MOBIKE (RFC 4555): the connection then survives a change of our address.
    pub mobike: bool,
    /// Say that no other SA with the peer is known (RFC 7296 2.4): the peer lets go of what an
    /// earlier run of ours left with it. Never when another SA with it is to live on.
    pub initial_contact: bool,
    /// Go to another gateway when the peer says so (RFC 5685). The driver is told by
    /// [`crate::Event::Redirected`], connects, and sees to it that this comes to an end.
    pub follow_redirects: bool,
    /// The gateway that sent us to this one.
    pub redirected_from: Option<RedirectGateway>,
}
