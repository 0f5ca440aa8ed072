//! An IKE SA at an exchange boundary as plain, versioned data: everything needed to go on after a
//! restart or on another machine. It holds keys: it belongs on a tmpfs or sealed, never on a disk.
//!
//! Times are kept as what is left of them (monotonic clocks end with the machine) except the
//! grant's deadline, which is wall-clock time. IVs are not kept: a restored SA draws from a new
//! seed, so a snapshot restored twice repeats none.

mod codec;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::crypto::{EspSuite, IkeKeys, IkeSuite};
use crate::io::{ChildKeys, ChildSaId, Grant, Hosts, IkeSaId};
use crate::wire::{
    ExchangeType, HashAlgorithm, Identification, IkeSpi, MessageIdSync, TrafficSelector,
};

/// See the module. `Debug` prints no key.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its name.
    pub ike: IkeSaId,
    /// We were the original initiator of this IKE SA.
    pub initiator: bool,
    /// We began the connection; the IKE SA may have been rekeyed by the other side since.
    pub client: bool,
    /// The original initiator's SPI.
    pub spi_i: IkeSpi,
    /// The original responder's SPI.
    pub spi_r: IkeSpi,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// IKE travels with a non-ESP marker.
    pub encap: bool,
    /// Negotiated algorithms.
    pub suite: IkeSuite,
    /// SK_d and the rest.
    pub keys: Arc<IkeKeys>,
    /// Id of our next request.
    pub next_request: u32,
    /// Id of the peer's next request.
    pub next_expected: u32,
    /// Our request that is not answered yet.
    pub outstanding: Option<SavedRequest>,
    /// The response to the peer's last request, as sent.
    pub cached: Option<SavedResponse>,
    /// What the peer told about itself.
    pub peer: SavedTraits,
    /// The peer's identity as text.
    pub name: String,
    /// The peer's identity.
    pub identity: Identification,
    /// What it was granted.
    pub grant: Arc<Grant>,
    /// Time since it was established.
    pub age: Duration,
    /// Time since the connection was, before any rekey.
    pub connected_for: Duration,
    /// Time until it is to be rekeyed.
    pub rekey_in: Option<Duration>,
    /// Its children.
    pub children: Vec<SavedChild>,
}

impl Snapshot {
    /// The same after `time` in which nothing happened: a tunnel that carries packets has no
    /// exchange between its rekeys, so the last snapshot may be as old as its keys.
    #[must_use]
    pub fn aged(mut self, time: Duration) -> Self {
        let later = |age: &mut Duration| *age = age.saturating_add(time);
        let sooner =
            |left: &mut Option<Duration>| *left = left.map(|left| left.saturating_sub(time));
        later(&mut self.age);
        later(&mut self.connected_for);
        sooner(&mut self.rekey_in);
        for child in &mut self.children {
            later(&mut child.age);
            sooner(&mut child.rekey_in);
        }
        self
    }
}

/// A request of ours that is sent again after a restart: the peer may have it or not, and another
/// request of the same id would be taken for it.
#[derive(Clone, PartialEq, Eq)]
pub struct SavedRequest {
    /// Its id.
    pub message_id: u32,
    /// Its exchange.
    pub exchange: ExchangeType,
    /// Its datagrams; none when it is not sent again, and only what it asked for is to be undone.
    pub packets: Vec<Vec<u8>>,
    /// The SPI it proposes for a child SA: when the peer made the child meanwhile, it is deleted.
    pub child_spi: Option<u32>,
}

/// A response that is sent again when its request comes again.
#[derive(Clone, PartialEq, Eq)]
pub struct SavedResponse {
    /// Its id.
    pub message_id: u32,
    /// Its datagrams.
    pub packets: Vec<Vec<u8>>,
}

/// What the peer told about itself and the way to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedTraits {
    /// It reassembles fragments.
    pub fragmentation: bool,
    /// A NAT is in front of it.
    pub peer_behind_nat: bool,
    /// A NAT is in front of us.
    pub we_behind_nat: bool,
    /// It took part in NAT detection.
    pub nat_detection: bool,
    /// MOBIKE was agreed on.
    pub mobike: bool,
    /// It can be sent to another gateway (RFC 5685).
    pub redirect: bool,
    /// We faked NAT detection.
    pub force_encap: bool,
    /// Hashes it verifies.
    pub hashes: Vec<HashAlgorithm>,
    /// Message ids may be synchronised (RFC 6311).
    pub message_id_sync: bool,
    /// Its crash token (RFC 6290).
    pub token: Option<Vec<u8>>,
    /// The message ids it told last (RFC 6311): they are not taken a second time.
    pub synchronised: Option<MessageIdSync>,
}

/// A child SA.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedChild {
    /// Its name.
    pub id: ChildSaId,
    /// SPI of packets to us.
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Negotiated transforms.
    pub suite: EspSuite,
    /// Keys of packets to us.
    pub keys_in: ChildKeys,
    /// Keys of packets to the peer.
    pub keys_out: ChildKeys,
    /// Transport instead of tunnel mode.
    pub transport: bool,
    /// Our side's selectors.
    pub ts_local: Vec<TrafficSelector>,
    /// The peer's side's selectors.
    pub ts_remote: Vec<TrafficSelector>,
    /// Outer addresses.
    pub hosts: Hosts,
    /// Packets leave through it.
    pub outbound_active: bool,
    /// What has replaced it; it only waits for its DELETE.
    pub replaced_by: Option<ChildSaId>,
    /// A rekey of the peer's made it.
    pub by_peer: bool,
    /// Its DELETE is queued or on its way: it is not installed again, only deleted.
    pub closing: bool,
    /// Time since it was installed.
    pub age: Duration,
    /// Time until it is to be rekeyed.
    pub rekey_in: Option<Duration>,
}

/// Why octets are not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// A version wrote it that is not read here.
    #[error("version {0} is not read here: a newer release wrote it, or one long ago")]
    Version(u8),
    /// The octets end too early.
    #[error("it is cut off")]
    Truncated,
    /// Octets follow its end.
    #[error("{0} octets follow its end")]
    Trailing(usize),
    /// A field has a value that cannot be.
    #[error("its {0} cannot be read")]
    Field(&'static str),
    /// The provider lacks an algorithm it runs with.
    #[error("the crypto provider lacks an algorithm it runs with")]
    Unsupported,
}

impl fmt::Debug for SavedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SavedRequest({} {}, {} datagrams)",
            self.exchange,
            self.message_id,
            self.packets.len()
        )
    }
}

impl fmt::Debug for SavedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SavedResponse({}, {} datagrams)", self.message_id, self.packets.len())
    }
}
