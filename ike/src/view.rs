//! What can be seen of the engine from outside, for listings and tests.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::crypto::EspSuite;
use crate::io::{ChildSaId, Hosts, IkeSaId, LeaseId};
use crate::time::{Timestamp, WallTime};
use crate::wire::TrafficSelector;

/// Which side of the first exchange we were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaRole {
    /// We sent the first IKE_SA_INIT request.
    Initiator,
    /// The peer did.
    Responder,
}

/// Where an IKE SA is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaState {
    /// IKE_SA_INIT is under way or answered; nobody is authenticated.
    HalfOpen,
    /// IKE_AUTH is under way.
    Authenticating,
    /// Both sides are authenticated.
    Established,
    /// Replaced by a rekeyed IKE SA, waiting for its DELETE.
    Rekeyed,
    /// DELETE was sent and is retransmitted.
    Closing,
    /// Gone but for the cached response, which answers retransmitted requests.
    Lingering,
}

/// One IKE SA.
#[derive(Debug, Clone, PartialEq)]
pub struct IkeSaView {
    /// Its name.
    pub id: IkeSaId,
    /// Its SPIs, the original initiator's first.
    pub spis: (u64, u64),
    /// Where it is in its life.
    pub state: SaState,
    /// Our side in the first exchange.
    pub role: SaRole,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// ESP and IKE travel in UDP 4500.
    pub encap: bool,
    /// Who the peer is, once authenticated.
    pub identity: Option<String>,
    /// Its lease, once authorised.
    pub lease: Option<LeaseId>,
    /// The lease's role.
    pub lease_role: Option<String>,
    /// Negotiated IKE suite.
    pub suite: Option<String>,
    /// Virtual addresses handed out (or received, as initiator).
    pub addresses: Vec<IpAddr>,
    /// When it was established.
    pub established_at: Option<Timestamp>,
    /// How long it has been established.
    pub age: Option<Duration>,
    /// It ends at this time at the latest.
    pub deadline: Option<WallTime>,
    /// A NAT was seen between us (the peer's side, our side).
    pub nat: (bool, bool),
    /// Its children.
    pub children: Vec<ChildView>,
}

/// One child SA.
#[derive(Debug, Clone, PartialEq)]
pub struct ChildView {
    /// Its name.
    pub id: ChildSaId,
    /// SPI of packets to us.
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Negotiated transforms.
    pub suite: EspSuite,
    /// Our side's selectors.
    pub ts_local: Vec<TrafficSelector>,
    /// The peer's side's selectors.
    pub ts_remote: Vec<TrafficSelector>,
    /// Outer addresses.
    pub hosts: Hosts,
    /// Transport instead of tunnel mode.
    pub transport: bool,
    /// When it was installed.
    pub installed_at: Timestamp,
    /// How long it has been installed.
    pub age: Duration,
    /// Packets leave through it (not yet so as responder of a rekey).
    pub outbound_active: bool,
}

/// Counters since the engine was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// IKE SAs held, in whatever state.
    pub ike_sas: usize,
    /// Of these, as responder and not yet established.
    pub half_open: usize,
    /// Child SAs installed.
    pub children: usize,
    /// Actions not yet answered.
    pub actions: usize,
    /// Datagrams given to the engine.
    pub datagrams: u64,
    /// Datagrams dropped before authentication: not IKE, unknown SPI, bad checksum, over a limit.
    pub dropped: u64,
    /// Of these, messages whose integrity check failed.
    pub bad_icv: u64,
    /// Requests seen again and answered from the response cache.
    pub replayed_responses: u64,
    /// Our requests sent again.
    pub retransmissions: u64,
    /// Peers sent to another gateway at their first request.
    pub redirected: u64,
    /// Cookies asked for.
    pub cookies: u64,
    /// IKE SAs established.
    pub established: u64,
    /// Exchanges refused or failed.
    pub refused: u64,
}
