//! IKE SAs: what is kept of each, from the first datagram to the tombstone.

pub(crate) mod child;
pub(crate) mod context;
pub(crate) mod leases;
pub(crate) mod lifecycle;
pub(crate) mod persist;
pub(crate) mod protect;
pub(crate) mod table;
pub(crate) mod timers;
pub(crate) mod window;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::config::PeerConfig;
use crate::crypto::suite::AdditionalKex;
use crate::event::CloseReason;
use crate::exchange::Task;
use crate::exchange::auth::AuthTask;
use crate::exchange::create_child::{Requesting, Responding};
use crate::exchange::init::{HalfOpenSa, InitSent};
use crate::exchange::intermediate::Intermediate;
use crate::exchange::sync::Sync;
use crate::io::{ChildSaId, Datagram, Grant, Hosts, IkeSaId, LeaseId, Transmit};
use crate::policy::narrowing;
use crate::rng::SaRng;
use crate::sa::child::Child;
use crate::sa::protect::{Inbox, Protection};
use crate::sa::window::{Outstanding, Window};
use crate::time::{Timestamp, WallTime};
use crate::view::{IkeSaView, SaRole, SaState};
use crate::wire::{
    ExchangeType, Flags, HashAlgorithm, Header, Identification, IkeSpi, KeMethod, TrafficSelector,
};

/// Addresses an SA's messages travel between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// IKE goes with a non-ESP marker, and ESP in UDP.
    pub(crate) encap: bool,
}

impl Path {
    /// The path back to a datagram's sender.
    pub(crate) fn of(datagram: &Datagram) -> Self {
        Self { local: datagram.local, remote: datagram.remote, encap: datagram.encap }
    }

    /// A datagram on this path.
    pub(crate) fn datagram(self, payload: Vec<u8>) -> Transmit {
        Transmit { local: self.local, remote: self.remote, encap: self.encap, payload }
    }
}

/// What IKE_SA_INIT told about the peer and the way to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PeerTraits {
    /// It asked for the status of our certificate (RFC 4806); used in IKE_AUTH only.
    pub(crate) wants_ocsp: bool,
    /// It reassembles fragments (RFC 7383).
    pub(crate) fragmentation: bool,
    /// Hashes it verifies (RFC 7427); empty when it did not say.
    pub(crate) hashes: Vec<HashAlgorithm>,
    /// Its address was changed on the way.
    pub(crate) peer_behind_nat: bool,
    /// Ours was.
    pub(crate) we_behind_nat: bool,
    /// It took part in NAT detection at all; without it there is no UDP encapsulation.
    pub(crate) nat_detection: bool,
    /// It can be sent to another gateway (RFC 5685 3).
    pub(crate) redirect: bool,
    /// MOBIKE was agreed on (RFC 4555 3.1).
    pub(crate) mobike: bool,
    /// It accepts an IKE SA without a child (RFC 6023).
    pub(crate) childless: bool,
    /// A post-quantum preshared key may be used in IKE_AUTH (RFC 8784). Forgotten afterwards.
    pub(crate) ppk: bool,
    /// We faked NAT detection, so that ESP always goes in UDP.
    pub(crate) force_encap: bool,
    /// Message ids may be synchronised (RFC 6311 3).
    pub(crate) message_id_sync: bool,
}

/// What a successful IKE_AUTH leaves behind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Authenticated {
    /// The peer's identity as text.
    pub(crate) name: String,
    /// The peer's identity.
    pub(crate) identity: Identification,
    /// What it was granted. As initiator: made from what we asked for and were given.
    pub(crate) grant: Arc<Grant>,
    /// When this IKE SA was, by IKE_AUTH or by a rekey.
    pub(crate) established_at: Timestamp,
    /// When the connection was, by IKE_AUTH: however often it was rekeyed since.
    pub(crate) connected_at: Timestamp,
}

/// Where an IKE SA is in its life, with what only that phase needs.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Initiator: IKE_SA_INIT is under way.
    InitSent(Box<InitSent>),
    /// Responder: IKE_SA_INIT is answered, or about to be.
    HalfOpen(Box<HalfOpenSa>),
    /// Initiator: an IKE_INTERMEDIATE is under way; as responder it belongs to `HalfOpen`.
    Intermediate(Box<Intermediate>),
    /// Both: IKE_AUTH is under way.
    Authenticating(Box<AuthTask>),
    /// Both sides are authenticated.
    Established,
    /// Its children live under a rekeyed IKE SA; it waits for its DELETE.
    Rekeyed,
    /// We are deleting it; the data plane is already clean.
    Closing,
    /// Only the response cache is left.
    Lingering,
}

/// One IKE SA.
#[derive(Debug)]
pub(crate) struct IkeSa {
    pub(crate) id: IkeSaId,
    /// Of this SA: of a rekeyed one who rekeyed is the initiator (RFC 7296 2.18).
    pub(crate) role: SaRole,
    /// Of the connection: in the first exchange, whoever rekeyed since.
    pub(crate) connected_as: SaRole,
    pub(crate) spi_i: IkeSpi,
    pub(crate) spi_r: IkeSpi,
    pub(crate) path: Path,
    /// Where the request in work came from: its response goes back there (RFC 7296 2.11).
    pub(crate) reply: Path,
    /// Its exchange.
    pub(crate) answering: ExchangeType,
    pub(crate) rng: SaRng,
    pub(crate) window: Window,
    pub(crate) inbox: Inbox,
    pub(crate) phase: Phase,
    pub(crate) protection: Option<Box<Protection>>,
    /// The keys of the request that was answered last, when the answer itself changed them.
    pub(crate) earlier: Option<Box<Protection>>,
    pub(crate) traits: PeerTraits,
    pub(crate) auth: Option<Box<Authenticated>>,
    /// Boxed, because a map makes room for eleven at once.
    pub(crate) children: BTreeMap<ChildSaId, Box<Child>>,
    /// What we want to tell the peer, in order; one exchange at a time.
    pub(crate) tasks: VecDeque<Task>,
    /// The task whose request is out.
    pub(crate) active: Option<Task>,
    /// A CREATE_CHILD_SA of ours that is being built or answered.
    pub(crate) requesting: Option<Box<Requesting>>,
    /// A CREATE_CHILD_SA of the peer's that is being worked on.
    pub(crate) responding: Option<Box<Responding>>,
    /// As initiator: what we were told to establish.
    pub(crate) peer: Option<Box<PeerConfig>>,
    pub(crate) last_heard: Timestamp,
    /// Answers of the data plane about traffic still to come.
    pub(crate) use_queries: u32,
    /// The freshest of those that came.
    pub(crate) use_idle: Option<Duration>,
    /// A rekey that crossed ours made it; it has no children unless ours fails.
    pub(crate) redundant: bool,
    /// It counts as one of its lease's established SAs.
    pub(crate) counted: bool,
    /// As initiator: the SA this one is to replace when it is complete.
    pub(crate) replaces: Option<IkeSaId>,
    /// As initiator: when the peer wants us to have authenticated again (RFC 4478).
    pub(crate) reauth_by: Option<Timestamp>,
    /// MOBIKE: the peer has moved, and whether it is there is not known yet.
    pub(crate) unproven: bool,
    /// After a restart: a CREATE_CHILD_SA of before is still out, with the SPI it proposed.
    pub(crate) orphan: Option<Option<u32>>,
    /// The key exchanges that the next rekey of a child, or request for a new one, begins with, as
    /// the peer asked.
    pub(crate) regroup: Option<(Option<ChildSaId>, KeMethod, Vec<AdditionalKex>)>,
    /// Our last request for a new SA, kept until what its answer made is in place: a restart in
    /// between asks again.
    pub(crate) unfinished: Option<Outstanding>,
    /// Synchronisations of message ids.
    pub(crate) sync: Option<Box<Sync>>,
    /// The peer's crash token (RFC 6290).
    pub(crate) peer_token: Option<Box<[u8]>>,
    /// When a repeated response last went to where the peer was never seen.
    pub(crate) strayed: Option<Timestamp>,
    /// Why it is closing.
    pub(crate) close_reason: Option<CloseReason>,
    /// Messages that were not authentic while nobody was authenticated.
    pub(crate) forgeries: u32,
}

impl IkeSa {
    pub(crate) fn new(
        id: IkeSaId,
        role: SaRole,
        spis: (IkeSpi, IkeSpi),
        path: Path,
        rng: SaRng,
        phase: Phase,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            role,
            connected_as: role,
            spi_i: spis.0,
            spi_r: spis.1,
            path,
            reply: path,
            answering: ExchangeType::IkeSaInit,
            rng,
            window: Window::default(),
            inbox: Inbox::default(),
            phase,
            protection: None,
            earlier: None,
            traits: PeerTraits::default(),
            auth: None,
            children: BTreeMap::new(),
            tasks: VecDeque::new(),
            active: None,
            requesting: None,
            responding: None,
            peer: None,
            last_heard: now,
            use_queries: 0,
            use_idle: None,
            redundant: false,
            counted: false,
            replaces: None,
            reauth_by: None,
            unproven: false,
            orphan: None,
            regroup: None,
            unfinished: None,
            sync: None,
            peer_token: None,
            strayed: None,
            close_reason: None,
            forgeries: 0,
        }
    }

    /// Our SPI, by which datagrams find this SA.
    pub(crate) fn own_spi(&self) -> IkeSpi {
        match self.role {
            SaRole::Initiator => self.spi_i,
            SaRole::Responder => self.spi_r,
        }
    }

    /// Whether we are the original initiator of this SA.
    pub(crate) fn is_initiator(&self) -> bool {
        self.role == SaRole::Initiator
    }

    /// Whether we began the connection: with MOBIKE, redirection and leases it does not matter who
    /// rekeyed the IKE SA (RFC 4555 1.3, RFC 5685 3).
    pub(crate) fn is_client(&self) -> bool {
        self.connected_as == SaRole::Initiator
    }

    /// The header of our next message of this kind.
    pub(crate) fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        let flags = Flags::new(self.is_initiator(), response);
        Header::new(self.spi_i, self.spi_r, exchange, flags, message_id)
    }

    pub(crate) fn lease_id(&self) -> Option<LeaseId> {
        self.auth.as_ref().map(|auth| auth.grant.lease.clone())
    }

    /// As initiator: the name of what we were told to establish.
    pub(crate) fn connection(&self) -> Option<String> {
        self.peer.as_ref().map(|peer| peer.name.clone())
    }

    /// What the peer may speak for.
    pub(crate) fn peer_side(&self, grant: &Grant) -> Vec<TrafficSelector> {
        if !grant.networks.is_empty() {
            grant.networks.clone()
        } else if grant.addresses.is_empty() {
            // Without a virtual address the peer speaks for its own address only.
            narrowing::hosts(&[self.path.remote.ip().to_canonical()])
        } else {
            narrowing::hosts(&grant.addresses)
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Established)
    }

    /// Whether packets can go through it.
    pub(crate) fn carries(&self) -> bool {
        self.children.values().any(|child| child.is_up())
    }

    /// Outer addresses for child SAs.
    pub(crate) fn hosts(&self) -> Hosts {
        // RFC 7296 2.23: ESP goes in UDP when a NAT was found; being on port 4500 alone (as MOBIKE
        // peers are) does not say so.
        let nat =
            self.traits.peer_behind_nat || self.traits.we_behind_nat || self.traits.force_encap;
        Hosts { local: self.path.local, remote: self.path.remote, encap: self.path.encap && nat }
    }

    pub(crate) fn state(&self) -> SaState {
        match self.phase {
            Phase::InitSent(_) | Phase::HalfOpen(_) | Phase::Intermediate(_) => SaState::HalfOpen,
            Phase::Authenticating(_) => SaState::Authenticating,
            Phase::Established => SaState::Established,
            Phase::Rekeyed => SaState::Rekeyed,
            Phase::Closing => SaState::Closing,
            Phase::Lingering => SaState::Lingering,
        }
    }

    pub(crate) fn view(&self, now: Timestamp) -> IkeSaView {
        let auth = self.auth.as_deref();
        let addresses: Vec<IpAddr> =
            auth.map(|auth| auth.grant.addresses.clone()).unwrap_or_default();
        let deadline: Option<WallTime> = auth.map(|auth| auth.grant.deadline);
        IkeSaView {
            id: self.id,
            spis: (self.spi_i.0, self.spi_r.0),
            state: self.state(),
            role: self.connected_as,
            local: self.path.local,
            remote: self.path.remote,
            encap: self.path.encap,
            identity: auth.map(|auth| auth.name.clone()),
            lease: self.lease_id(),
            lease_role: auth.map(|auth| auth.grant.role.clone()),
            suite: self.protection.as_ref().map(|protection| protection.suite().to_string()),
            addresses,
            established_at: auth.map(|auth| auth.established_at),
            age: auth.map(|auth| now.since(auth.established_at)),
            deadline,
            nat: (self.traits.peer_behind_nat, self.traits.we_behind_nat),
            children: self
                .children
                .values()
                .filter(|child| !child.removed)
                .map(|child| child.view(now))
                .collect(),
        }
    }

    /// Queues a task unless the same one waits already.
    pub(crate) fn enqueue(&mut self, task: Task) {
        if !self.tasks.contains(&task) && self.active.as_ref() != Some(&task) {
            self.tasks.push_back(task);
        }
    }
}

/// A time up to a tenth shorter, so that SAs made together are not rekeyed together.
pub(crate) fn jittered(rng: &mut SaRng, after: Duration) -> Duration {
    let tenth = u64::try_from(after.as_micros()).unwrap_or(u64::MAX).checked_div(10).unwrap_or(0);
    after.saturating_sub(Duration::from_micros(rng.below(tenth)))
}
