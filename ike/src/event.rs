//! Events: what happened, for the log, the audit trail and the lease. Values, not sentences with
//! values in them; `Display` gives the operator's sentence.

use std::fmt;
use std::net::SocketAddr;

use crate::crypto::{EspSuite, IkeSuite};
use crate::io::{ChildSaId, ChildUse, IkeSaId, LeaseId};
use crate::wire::{Identification, NotifyType, RedirectGateway, TrafficSelector};

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An IKE SA is established.
    IkeUp {
        /// The SA.
        ike: IkeSaId,
        /// Its SPIs, initiator's first.
        spis: (u64, u64),
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        remote: SocketAddr,
        /// A NAT is in front of the peer (RFC 7296 2.23): the address is the NAT's.
        nat: bool,
        /// Who it is.
        identity: String,
        /// Its lease.
        lease: LeaseId,
        /// Its role.
        role: String,
        /// Negotiated IKE suite, as text like `aes256gcm16-prfsha384-ecp384`.
        suite: IkeSuite,
        /// Virtual addresses handed out.
        addresses: Vec<std::net::IpAddr>,
        /// As initiator: the name of the connection.
        connection: Option<String>,
    },
    /// An IKE SA is gone. It comes after [`Event::ChildDown`] of its last child, unless the SA was
    /// rekeyed: its children live on then.
    IkeDown {
        /// The SA.
        ike: IkeSaId,
        /// Its lease.
        lease: Option<LeaseId>,
        /// Why.
        reason: CloseReason,
        /// As initiator: the name of the connection.
        connection: Option<String>,
    },
    /// A child SA is installed.
    ChildUp {
        /// The child.
        child: ChildSaId,
        /// Its IKE SA.
        ike: IkeSaId,
        /// Its lease.
        lease: LeaseId,
        /// SPI of packets to us.
        spi_in: u32,
        /// SPI of packets to the peer.
        spi_out: u32,
        /// Negotiated ESP suite.
        suite: EspSuite,
        /// Our side's selectors.
        ts_local: Selectors,
        /// The peer's selectors.
        ts_remote: Selectors,
        /// The child it replaces.
        rekeys: Option<ChildSaId>,
    },
    /// A child SA is gone that was installed.
    ChildDown {
        /// The child.
        child: ChildSaId,
        /// Its IKE SA.
        ike: IkeSaId,
        /// Its lease.
        lease: LeaseId,
        /// Why.
        reason: CloseReason,
        /// Final counters, when the data plane gave them.
        usage: Option<ChildUse>,
    },
    /// An exchange was refused or failed; the structured explanation.
    Refused(Refusal),
    /// The peer's outer address changed.
    Moved {
        /// The SA.
        ike: IkeSaId,
        /// Before.
        from: SocketAddr,
        /// After.
        to: SocketAddr,
        /// A NAT is in front of the peer there.
        nat: bool,
    },
    /// As initiator: the peer sent us to another gateway, and the SA is closed.
    Redirected {
        /// The SA.
        ike: IkeSaId,
        /// The name of the connection.
        connection: String,
        /// Where to.
        to: RedirectGateway,
    },
    /// Half-open IKE SAs crossed the cookie threshold, upwards (`true`) or downwards.
    CookieMode(bool),
}

/// Traffic selectors, which `Display` lists for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selectors(pub Vec<TrafficSelector>);

impl fmt::Display for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else {
            return f.write_str("nothing");
        };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|selector| write!(f, ", {selector}"))
    }
}

/// Why an SA ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer sent DELETE.
    PeerDeleted,
    /// The peer does not answer.
    PeerDead,
    /// The lease was released.
    Released,
    /// The certificate or lease was revoked.
    Revoked,
    /// The lease or certificate ended.
    Expired,
    /// A newer SA of the same lease replaced it.
    Replaced,
    /// Rekeyed; the successor lives.
    Rekeyed,
    /// The peer was sent to another gateway, or sent us.
    Redirected,
    /// The operator closed it.
    Operator,
    /// The gateway stops.
    Shutdown,
    /// The handshake was not finished.
    Failed(String),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerDeleted => f.write_str("peer deleted it"),
            Self::PeerDead => f.write_str("peer does not answer"),
            Self::Released => f.write_str("lease released"),
            Self::Revoked => f.write_str("revoked"),
            Self::Expired => f.write_str("certificate or lease expired"),
            Self::Replaced => f.write_str("replaced by a newer connection of the same lease"),
            Self::Rekeyed => f.write_str("rekeyed"),
            Self::Redirected => f.write_str("redirected to another gateway"),
            Self::Operator => f.write_str("closed by the operator"),
            Self::Shutdown => f.write_str("gateway stops"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Whose fault an error is (decides log level and notify).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The bytes were not a valid message.
    Malformed,
    /// A valid message broke the protocol.
    Misbehaved,
    /// No common ground: proposals, identities, selectors, certificates.
    Incompatible,
    /// Our own mistake or a failing part of ours.
    Internal,
}

/// One refused or failed exchange, explained.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The SA, when there was one.
    pub ike: Option<IkeSaId>,
    /// The peer's address, when known.
    pub remote: Option<SocketAddr>,
    /// The identity it claimed, when it got that far.
    pub identity: Option<Identification>,
    /// Whose fault.
    pub blame: Blame,
    /// What the peer is told; `None` is silence.
    pub notify: Option<NotifyType>,
    /// A stable machine-readable code, like `no_proposal_chosen`, `certificate_expired`,
    /// `unknown_issuer`, `identity_mismatch`, `revoked`.
    pub code: &'static str,
    /// What differed, in one sentence, both sides' values included.
    pub what: String,
    /// What to change, in one sentence.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.fix)
    }
}
