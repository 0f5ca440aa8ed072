//! What goes into the engine and what comes out: the whole contract between protocol and world.
//!
//! After every [`crate::Engine::handle`] the driver drains [`crate::Engine::poll_output`] to
//! `None`, executes the outputs in order, and arms one timer for
//! [`crate::Engine::poll_timeout`]. An [`Action`] is answered by exactly one
//! [`Input::Completion`] with its token; one that never comes is treated as failed after
//! [`crate::config::Timers::action`], and a completion for a token the engine no longer knows is
//! ignored. A [`Checkpoint`] must be stored before the [`Transmit`]s that follow it are sent.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::config::PeerConfig;
use crate::crypto::puzzle::Puzzle;
use crate::crypto::{EspSuite, KexRequest, KexResponse, SecretBytes, SignatureScheme};
use crate::event::{CloseReason, Event, Refusal};
use crate::snapshot::Snapshot;
use crate::time::{Timestamp, WallTime};
use crate::view::SaRole;
use crate::wire::{Identification, RedirectGateway, TrafficSelector};

/// Names one IKE SA for its whole life; never reused by an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSaId(pub u64);

/// Names one child SA for its whole life; never reused by an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildSaId(pub u64);

/// Ties a [`Completion`] to its [`Action`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The lease an SA lives under; opaque to the engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub String);

/// One local key pair with its certificate chain; the private key stays with the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId(pub u32);

/// Something the engine is told. The only way to change it.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// An IKE datagram arrived.
    Datagram(Datagram),
    /// The time of [`crate::Engine::poll_timeout`] has come, or a second has passed: only so is a
    /// wall clock that was set forward noticed (harmless when nothing is due).
    Timeout,
    /// The operator or the policy wants something.
    Command(Command),
    /// The answer to an [`Action`].
    Completion(Token, Completion),
    /// The data plane reports something.
    Dataplane(DataplaneEvent),
}

/// A received IKE datagram, the non-ESP marker already removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Our address and port it was sent to.
    pub local: SocketAddr,
    /// The sender.
    pub remote: SocketAddr,
    /// It came with a non-ESP marker, on UDP 4500 (RFC 3948 2.2).
    pub encap: bool,
    /// The IKE message.
    pub payload: Vec<u8>,
}

/// What an operator, the policy or a lease's end asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Establish an IKE SA and its first child as initiator.
    Initiate(Box<PeerConfig>),
    /// Close one IKE SA with all its children: DELETE to the peer, data plane first.
    CloseIkeSa(IkeSaId, CloseReason),
    /// Close every IKE SA of a lease, and refuse handshakes of it that are under way.
    CloseLease(LeaseId, CloseReason),
    /// Close one child SA.
    CloseChild(ChildSaId, CloseReason),
    /// Send peers that support it to another gateway (RFC 5685): new ones from now on, and with
    /// `existing` those that are connected. Without a gateway nobody is sent any more.
    Redirect {
        /// Where to.
        to: Option<RedirectGateway>,
        /// Also those that are connected.
        existing: bool,
    },
    /// As initiator: authenticate again, make-before-break (RFC 7296 2.8.3), because our own
    /// certificate is another, or the operator wants it.
    Reauthenticate(IkeSaId),
    /// As initiator: ask for a child SA with the selectors of the [`PeerConfig`], beside those there
    /// are (RFC 7296 1.3.1). One that is refused is asked for again after some seconds.
    CreateChild(IkeSaId),
    /// Rekey an IKE SA now (RFC 7296 1.3.2).
    RekeyIke(IkeSaId),
    /// Rekey a child SA now (RFC 7296 1.3.3).
    RekeyChild(ChildSaId),
    /// Our own address changed: tell the peer with MOBIKE, if it was agreed on, as the original
    /// initiator (RFC 4555 3.5).
    Move {
        /// The SA.
        ike: IkeSaId,
        /// Our new address and port.
        local: SocketAddr,
    },
    /// The lease's end moved (renewal proven by reauthentication) or its allow list changed.
    UpdateLease(LeaseId, Grant),
    /// Replace what future exchanges use: credentials, proposals, limits, timers.
    Reconfigure(Box<crate::config::EngineConfig>),
    /// Close everything; after the last tombstone [`crate::Engine::is_idle`] is true.
    Shutdown,
}

/// Reports of the data plane that matter to the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataplaneEvent {
    /// A byte or packet limit was reached; `hard` means it has stopped.
    Expire {
        /// The child SA.
        child: ChildSaId,
        /// Hard limit.
        hard: bool,
    },
    /// Authenticated ESP of this child comes from another outer address.
    Mapping {
        /// The child SA.
        child: ChildSaId,
        /// New outer address of the peer.
        remote: SocketAddr,
    },
    /// ESP for an SPI that is not installed (RFC 7296 2.21.4).
    NoSa {
        /// The SPI.
        spi: u32,
        /// The sender.
        remote: SocketAddr,
    },
}

/// Something the engine wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this datagram.
    Transmit(Transmit),
    /// Do this and answer with a [`Completion`].
    Action(Token, Action),
    /// For the log, the audit trail and the lease.
    Event(Event),
    /// Store this before any later [`Transmit`].
    Checkpoint(Checkpoint),
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Our address and port to send from.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// Prepend the non-ESP marker (RFC 3948 2.2).
    pub encap: bool,
    /// The IKE message, or the single byte `ff` of a NAT keepalive (then no marker).
    pub payload: Vec<u8>,
}

/// The state of one IKE SA at an exchange boundary; `None` when it is gone.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Which SA.
    pub ike: IkeSaId,
    /// Everything needed to rebuild it, or `None` to forget it.
    pub snapshot: Option<Box<Snapshot>>,
}

/// Slow or privileged work. Each is answered by the [`Completion`] of the same name.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Key pairs and shared secrets: draws OS randomness and costs time.
    KeyExchange(KexRequest),
    /// Sign the AUTH octets with a local key (RFC 7296 2.15).
    Sign {
        /// Which local key.
        credential: CredentialId,
        /// How. ECDSA results are DER; the engine converts where the RFC wants `r || s`.
        scheme: SignatureScheme,
        /// The octets to be signed.
        message: Vec<u8>,
    },
    /// Validate the peer's certificate chain, match its identity, and verify its AUTH signature.
    VerifyPeer(Box<VerifyPeer>),
    /// Find the key that a peer shares with us (RFC 7296 2.15).
    SharedKey(Box<SharedKeyRequest>),
    /// Find the post-quantum preshared key of a name (RFC 8784).
    Ppk(Box<PpkRequest>),
    /// Give a peer's TLS messages to the TLS of its EAP-TLS conversation (RFC 5216), of which we are
    /// the server as responder and the client as initiator (then the first ones are empty). The
    /// first one of an IKE SA begins the conversation; no word comes when one is given up, so the
    /// driver forgets those older than [`crate::config::Timers::half_open`].
    EapTls(Box<EapTlsRequest>),
    /// Decide what an authenticated peer may have: lease, addresses, selectors.
    Authorise(Box<Authorise>),
    /// Reserve an inbound ESP SPI. A reservation that no [`Action::InstallChild`] follows within
    /// [`crate::config::Timers::half_open`] lapses by itself.
    AllocSpi,
    /// Install a child SA. The IKE_AUTH response waits for the answer. When it fails, or is not
    /// answered in time, [`Action::RemoveChild`] follows, which must then do no harm.
    InstallChild(Box<InstallChild>),
    /// Start sending on this child (as responder of a rekey, RFC 7296 2.8).
    ActivateChild(ChildSaId),
    /// Move child SAs to other outer addresses (MOBIKE, NAT rebinding).
    UpdateHosts {
        /// The child SA.
        child: ChildSaId,
        /// New outer addresses.
        hosts: Hosts,
    },
    /// Remove both halves of a child SA; outbound first.
    RemoveChild {
        /// The child SA.
        child: ChildSaId,
        /// No other child of this IKE SA or its lease remains: the filter goes too, first.
        last: bool,
    },
    /// Ask when a child last received traffic (before a liveness check is sent).
    QueryUse(ChildSaId),
    /// As initiator: solve a responder's puzzle, with [`Puzzle::solve`] (RFC 8019). It takes up to
    /// seconds.
    SolvePuzzle(Puzzle),
}

/// Answers to [`Action`]s.
#[derive(Debug, Clone, PartialEq)]
pub enum Completion {
    /// Answer to [`Action::KeyExchange`].
    KeyExchange(Result<KexResponse, String>),
    /// Answer to [`Action::Sign`].
    Sign(Result<Vec<u8>, String>),
    /// Answer to [`Action::VerifyPeer`].
    VerifyPeer(Result<Box<VerifiedPeer>, Refusal>),
    /// Answer to [`Action::SharedKey`]. The refusal of an unknown peer reaches the operator; the
    /// peer cannot tell it from a wrong key.
    SharedKey(Result<Box<SharedKey>, Refusal>),
    /// Answer to [`Action::Ppk`]; the refusal is used when the peer insists on the key.
    Ppk(Result<SecretBytes, Refusal>),
    /// Answer to [`Action::EapTls`].
    EapTls(Result<Box<EapTlsAnswer>, Refusal>),
    /// Answer to [`Action::Authorise`].
    Authorise(Result<Box<Grant>, Refusal>),
    /// Answer to [`Action::AllocSpi`].
    AllocSpi(Result<u32, String>),
    /// Answer to [`Action::InstallChild`].
    InstallChild(Result<(), String>),
    /// Answer to [`Action::ActivateChild`].
    ActivateChild(Result<(), String>),
    /// Answer to [`Action::UpdateHosts`].
    UpdateHosts(Result<(), String>),
    /// Answer to [`Action::RemoveChild`], with the final counters.
    RemoveChild(Result<ChildUse, String>),
    /// Answer to [`Action::QueryUse`].
    QueryUse(Result<ChildUse, String>),
    /// Answer to [`Action::SolvePuzzle`].
    SolvePuzzle(Result<Vec<u8>, String>),
}

/// What to verify about a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyPeer {
    /// The IKE SA, for the log.
    pub ike: IkeSaId,
    /// The peer's outer address, for the log.
    pub remote: SocketAddr,
    /// The identity it claims (IDi or IDr).
    pub identity: Identification,
    /// Its certificates as received (DER), the end-entity certificate first (RFC 7296 3.6).
    pub certificates: Vec<Vec<u8>>,
    /// Signature scheme of AUTH; ECDSA signatures are DER here.
    pub scheme: SignatureScheme,
    /// The peer used authentication method 1, which names no hash: `scheme` is then only its
    /// family, and any SHA-2 hash is to be accepted
    /// ([`crate::crypto::CryptoProvider::verify_rsa_classic`], RFC 7296 3.8).
    pub rsa_classic: bool,
    /// The octets it signed (RFC 7296 2.15).
    pub message: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
    /// As initiator: the identity the responder must prove.
    pub expected: Option<Identification>,
    /// As initiator: the name of the connection ([`PeerConfig::name`]).
    pub connection: Option<String>,
    /// OCSP answers it brought along (DER, RFC 4806); nothing in them is verified yet.
    pub ocsp: Vec<Vec<u8>>,
}

/// What is known of a verified peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// The identity as text, for people.
    pub identity: String,
    /// How it proved it.
    pub proof: PeerProof,
}

/// How a peer proved its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerProof {
    /// With the key of a certificate.
    Certificate {
        /// DER of the end-entity certificate's issuer name.
        issuer: Vec<u8>,
        /// The end-entity certificate's serial number, big endian, no leading zero.
        serial: Vec<u8>,
        /// The earliest notAfter of the validated chain.
        not_after: WallTime,
    },
    /// With the key it shares with us.
    SharedKey,
}

/// Whose shared key is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedKeyRequest {
    /// The IKE SA, for the log.
    pub ike: IkeSaId,
    /// The peer's outer address.
    pub remote: SocketAddr,
    /// Our part in the handshake.
    pub role: SaRole,
    /// Our identity.
    pub local: Identification,
    /// The peer's: as responder the one it claims, which nothing proves yet; as initiator the one
    /// expected, if any.
    pub peer: Option<Identification>,
}

/// Which post-quantum preshared key is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct PpkRequest {
    /// The IKE SA, for the log.
    pub ike: IkeSaId,
    /// The peer's outer address.
    pub remote: SocketAddr,
    /// Our part in the handshake.
    pub role: SaRole,
    /// The peer's identity: as responder the one it claims, as initiator the one expected.
    pub peer: Option<Identification>,
    /// The key's name (PPK_ID without its type).
    pub id: Vec<u8>,
}

/// What the peer's TLS said.
#[derive(Clone, PartialEq)]
pub struct EapTlsRequest {
    /// The IKE SA, which names the conversation.
    pub ike: IkeSaId,
    /// The peer's outer address.
    pub remote: SocketAddr,
    /// Our part in the handshake.
    pub role: SaRole,
    /// The identity it claims, which its certificate must prove.
    pub identity: Identification,
    /// TLS records.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for EapTlsRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EapTlsRequest")
            .field("ike", &self.ike)
            .field("remote", &self.remote)
            .field("role", &self.role)
            .field("identity", &self.identity)
            .field("octets", &self.data.len())
            .finish()
    }
}

/// What ours answers.
#[derive(Debug, Clone, PartialEq)]
pub struct EapTlsAnswer {
    /// TLS records for the peer; may be empty only when the handshake is complete.
    pub send: Vec<u8>,
    /// The handshake is complete: the peer proved its identity. As TLS client of version 1.3 not
    /// before the server's protected success indication has come, one octet 0x00 of application
    /// data (RFC 9190 2.5): EAP-Success, which anybody on the way can make, is taken only after this.
    pub done: Option<EapTlsDone>,
}

/// A complete EAP-TLS handshake.
#[derive(Debug, Clone, PartialEq)]
pub struct EapTlsDone {
    /// The master session key (RFC 5216 2.3, RFC 9190 2.3).
    pub msk: SecretBytes,
    /// Who the peer is.
    pub peer: Box<VerifiedPeer>,
}

/// A key shared with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedKey {
    /// The key; must not be empty.
    pub key: SecretBytes,
    /// As responder: how we prove who we are. An initiator has this in its [`PeerConfig`].
    pub own: OwnProof,
}

/// How a responder proves its identity to a peer that has a shared key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnProof {
    /// With the same key.
    SharedKey,
    /// With a certificate (RFC 7296 2.15: each side has its own method).
    Certificate,
}

/// What an authenticated peer asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorise {
    /// The IKE SA.
    pub ike: IkeSaId,
    /// The peer's outer address.
    pub remote: SocketAddr,
    /// Who it is.
    pub peer: VerifiedPeer,
    /// The identity payload it was found under.
    pub identity: Identification,
    /// It asked for an IPv4 virtual address.
    pub wants_ipv4: bool,
    /// It asked for an IPv6 virtual address.
    pub wants_ipv6: bool,
    /// It sent INITIAL_CONTACT (RFC 7296 2.4).
    pub initial_contact: bool,
    /// A post-quantum preshared key is part of the SA's keys (RFC 8784).
    pub ppk: bool,
    /// Its side's selectors (TSi).
    pub ts_remote: Vec<TrafficSelector>,
    /// Our side's selectors (TSr).
    pub ts_local: Vec<TrafficSelector>,
    /// As initiator: the name of the connection ([`PeerConfig::name`]).
    pub connection: Option<String>,
}

/// What a peer is granted. An SA never outlives `deadline`.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// The lease.
    pub lease: LeaseId,
    /// The lease's role, for logs.
    pub role: String,
    /// Ties SAs, policies and filter together; unique per lease.
    pub reqid: u32,
    /// Virtual addresses handed out in the configuration payload.
    pub addresses: Vec<IpAddr>,
    /// DNS servers of the pool.
    pub dns: Vec<IpAddr>,
    /// What it may reach: at most 32 selectors (RFC 7296 2.9); TSr is narrowed to these.
    pub allowed: Vec<TrafficSelector>,
    /// The networks behind a peer that is a gateway itself: TSi is narrowed to these. Empty for a
    /// peer that speaks for its virtual addresses, or without any for its own address.
    pub networks: Vec<TrafficSelector>,
    /// Children between the two outer addresses may be in transport mode when the peer asks for it
    /// (RFC 7296 1.3.1); the data plane must be able to. As initiator the engine takes this from
    /// [`PeerConfig::transport`].
    pub transport: bool,
    /// The earlier of the lease's end and the chain's notAfter.
    pub deadline: WallTime,
    /// What becomes of the lease's other IKE SAs.
    pub unique: UniquePolicy,
}

/// What becomes of older IKE SAs of the same lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniquePolicy {
    /// They are closed when the new one is established.
    Replace,
    /// They stay.
    Keep,
    /// The new one is refused while an old one lives.
    Reject,
}

/// Outer addresses of a child SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hosts {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// ESP in UDP (RFC 3948).
    pub encap: bool,
}

/// Keys of one direction of a child SA; zeroized.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ChildKeys {
    /// Encryption key, with the salt for AEADs.
    pub encr: Vec<u8>,
    /// Integrity key; empty for AEADs.
    pub integ: Vec<u8>,
}

impl std::fmt::Debug for ChildKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChildKeys({}+{} bytes)", self.encr.len(), self.integ.len())
    }
}

/// When the data plane reports that a child SA has carried much ([`DataplaneEvent::Expire`]):
/// at the soft limit it goes on, at the hard one it stops. Each direction counts for itself;
/// `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChildLimits {
    /// Bytes of inner packets until it is rekeyed.
    pub soft_bytes: Option<u64>,
    /// Bytes until it stops.
    pub hard_bytes: Option<u64>,
    /// Packets until it is rekeyed.
    pub soft_packets: Option<u64>,
    /// Packets until it stops.
    pub hard_packets: Option<u64>,
}

/// A child SA to install.
#[derive(Debug, Clone, PartialEq)]
pub struct InstallChild {
    /// Its IKE SA.
    pub ike: IkeSaId,
    /// Its name.
    pub child: ChildSaId,
    /// The lease it lives under.
    pub lease: LeaseId,
    /// The lease's role.
    pub role: String,
    /// The lease's request id.
    pub reqid: u32,
    /// Virtual addresses of the peer (for the filter).
    pub addresses: Vec<IpAddr>,
    /// Networks behind the peer (for the filter).
    pub networks: Vec<TrafficSelector>,
    /// SPI of packets to us.
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Negotiated transforms, ESN included.
    pub suite: EspSuite,
    /// Keys of packets to us.
    pub keys_in: ChildKeys,
    /// Keys of packets to the peer.
    pub keys_out: ChildKeys,
    /// Transport instead of tunnel mode.
    pub transport: bool,
    /// How much it may carry.
    pub limits: ChildLimits,
    /// When its lease or certificate ends: nothing of it may pass after, whoever looks after it then.
    pub deadline: WallTime,
    /// Outer addresses.
    pub hosts: Hosts,
    /// Our side's selectors.
    pub ts_local: Vec<TrafficSelector>,
    /// The peer's selectors.
    pub ts_remote: Vec<TrafficSelector>,
    /// Send on it at once; `false` as responder of a rekey until it is activated.
    pub outbound_active: bool,
    /// The child this one replaces.
    pub rekeys: Option<ChildSaId>,
    /// It was in use before a restart, under the same keys: outbound sequence numbers must go on
    /// above all that may have been used, or (key, IV) pairs repeat (RFC 4106 3.1).
    pub restored: bool,
}

/// Counters of a child SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChildUse {
    /// Inner bytes from the peer.
    pub bytes_in: u64,
    /// Inner bytes to the peer.
    pub bytes_out: u64,
    /// Packets from the peer.
    pub packets_in: u64,
    /// Packets to the peer.
    pub packets_out: u64,
    /// Time since the last packet from the peer.
    pub idle_in: Option<Duration>,
}

/// When the engine wants [`Input::Timeout`], and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// Monotonic time.
    pub at: Timestamp,
    /// What it is for, for logs and tests.
    pub reason: TimerKind,
}

/// The engine's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// Send a request again (RFC 7296 2.1).
    Retransmit,
    /// A handshake took too long.
    HalfOpen,
    /// An action was not answered.
    Action,
    /// Check that the peer lives (RFC 7296 2.4).
    Dpd,
    /// Rekey the IKE SA.
    RekeyIke,
    /// Rekey a child SA.
    RekeyChild,
    /// As initiator: ask for a child SA again.
    CreateChild,
    /// The grant's deadline: certificate or lease ends.
    Deadline,
    /// As responder of a child's rekey: send on the new child even without the old one's DELETE
    /// (RFC 7296 2.8).
    Activate,
    /// As initiator: authenticate again before something ends (RFC 4478, RFC 7296 2.8.3).
    Reauth,
    /// A newer SA of the same lease was given time to take over.
    Overlap,
    /// As responder of a rekey with several key exchanges: the next one does not come
    /// (RFC 9370 2.2.4).
    FollowupKe,
    /// Keep a NAT mapping alive (RFC 3948 4).
    Keepalive,
    /// A closed SA's DELETE is answered or given up.
    Tombstone,
    /// New cookie secret (RFC 7296 2.6).
    CookieSecret,
    /// Reassembly of fragments ends (RFC 7383 2.6).
    Reassembly,
}
