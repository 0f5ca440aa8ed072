//! The plain-data model of the data planes. Knows nothing of IKE or certificates.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// An ESP security parameter index, host order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Names one child SA (a pair of ESP SAs) for its whole life; never reused in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub u64);

/// Which data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaneKind {
    /// XFRM in the Linux kernel.
    Kernel,
    /// ESP in userspace over TUN.
    Userspace,
    /// Records operations.
    Mock,
}

impl PlaneKind {
    /// The configuration's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
            Self::Mock => "mock",
        }
    }
}

/// What a plane can do; the control plane stays within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// ESP without UDP encapsulation. When false, NAT detection must be faked (RFC 3948).
    pub plain_esp: bool,
    /// Transport mode besides tunnel mode.
    pub transport_mode: bool,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// Largest anti-replay window in packets.
    pub max_replay_window: u32,
    /// Outer addresses can change without a new SA.
    pub update_hosts: bool,
    /// Suites it can encrypt.
    pub suites: Vec<EspSuite>,
}

/// ESP transform of a child SA (RFC 8221).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EspSuite {
    /// AES-GCM with a 16-byte tag, 128-bit key (RFC 4106).
    Aes128Gcm16,
    /// AES-GCM with a 16-byte tag, 256-bit key (RFC 4106).
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-CBC 128 with HMAC-SHA2-256-128 (RFC 3602, RFC 4868).
    Aes128CbcSha256,
    /// AES-CBC 256 with HMAC-SHA2-256-128 (RFC 3602, RFC 4868).
    Aes256CbcSha256,
    /// AES-CBC 256 with HMAC-SHA2-384-192.
    Aes256CbcSha384,
    /// AES-CBC 256 with HMAC-SHA2-512-256.
    Aes256CbcSha512,
}

impl EspSuite {
    /// All of them, best first.
    pub const ALL: [Self; 7] = [
        Self::Aes256Gcm16,
        Self::Aes128Gcm16,
        Self::ChaCha20Poly1305,
        Self::Aes256CbcSha256,
        Self::Aes128CbcSha256,
        Self::Aes256CbcSha384,
        Self::Aes256CbcSha512,
    ];

    /// `(encryption key incl. 4-byte salt for AEADs, integrity key)` lengths in bytes.
    pub fn key_lengths(self) -> (usize, usize) {
        match self {
            Self::Aes128Gcm16 => (20, 0),
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => (36, 0),
            Self::Aes128CbcSha256 => (16, 32),
            Self::Aes256CbcSha256 => (32, 32),
            Self::Aes256CbcSha384 => (32, 48),
            Self::Aes256CbcSha512 => (32, 64),
        }
    }

    /// `(IV, ICV, cipher block)` lengths on the wire in bytes; AEADs pad to 4 (RFC 4303 2.4).
    pub fn wire_lengths(self) -> (usize, usize, usize) {
        match self {
            Self::Aes128Gcm16 | Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => (8, 16, 4),
            Self::Aes128CbcSha256 | Self::Aes256CbcSha256 => (16, 16, 16),
            Self::Aes256CbcSha384 => (16, 24, 16),
            Self::Aes256CbcSha512 => (16, 32, 16),
        }
    }

    /// The field's usual short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes128CbcSha256 => "aes128-sha256",
            Self::Aes256CbcSha256 => "aes256-sha256",
            Self::Aes256CbcSha384 => "aes256-sha384",
            Self::Aes256CbcSha512 => "aes256-sha512",
        }
    }
}

/// Keys of one direction: encryption key (with salt for AEADs) and integrity key. Zeroized.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SaKeys {
    /// Encryption key; for AEADs followed by the 4-byte salt (RFC 4106 8.1).
    pub encr: Vec<u8>,
    /// Integrity key; empty for AEADs.
    pub integ: Vec<u8>,
}

impl fmt::Debug for SaKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SaKeys({}+{} bytes)", self.encr.len(), self.integ.len())
    }
}

/// Outer addresses of a child SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hosts {
    /// Our address; the port is the UDP port when encapsulated.
    pub local: SocketAddr,
    /// The peer's address; the port is the UDP port when encapsulated.
    pub remote: SocketAddr,
    /// ESP in UDP (RFC 3948).
    pub encap: bool,
}

/// A range of inner traffic on one side (RFC 4301 4.4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selector {
    /// First address.
    pub start: IpAddr,
    /// Last address, same family.
    pub end: IpAddr,
    /// IP protocol; 0 is any.
    pub protocol: u8,
    /// First port; ICMP type/code packed as in RFC 7296 3.13.1.
    pub start_port: u16,
    /// Last port.
    pub end_port: u16,
}

impl Selector {
    /// Every protocol and port of a network.
    pub fn network(net: IpNet) -> Self {
        Self {
            start: net.network(),
            end: net.broadcast(),
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
        }
    }
}

/// IPsec mode of a child SA (RFC 4301 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Inner IP packet inside ESP.
    Tunnel,
    /// Upper-layer payload inside ESP.
    Transport,
}

/// What a network device does of the work on a child's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Offload {
    /// Nothing.
    #[default]
    None,
    /// It encrypts and decrypts.
    Crypto,
    /// It does all of ESP.
    Packet,
}

impl Offload {
    /// The configuration's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Crypto => "crypto",
            Self::Packet => "packet",
        }
    }
}

/// Limits of a child SA; `None` is unlimited. Soft limits raise an event, hard limits stop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes of inner packets until the soft event.
    pub soft_bytes: Option<u64>,
    /// Bytes of inner packets until it stops.
    pub hard_bytes: Option<u64>,
    /// Packets until the soft event.
    pub soft_packets: Option<u64>,
    /// Packets until it stops.
    pub hard_packets: Option<u64>,
    /// Until when it works (to the second after) in a plane that goes on when its process is killed:
    /// nobody else would end it then. A plane that ends with its process takes no notice.
    pub ends: Option<Instant>,
}

/// One child SA, both halves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildSpec {
    /// Its name.
    pub id: ChildId,
    /// The lease's own request id: ties SAs, policy and filter together; unique per lease.
    pub reqid: u32,
    /// SPI of packets to us (from [`crate::Dataplane::alloc_spi`]).
    pub spi_in: Spi,
    /// SPI of packets to the peer.
    pub spi_out: Spi,
    /// Transform.
    pub suite: EspSuite,
    /// Keys of packets to us.
    pub keys_in: SaKeys,
    /// Keys of packets to the peer.
    pub keys_out: SaKeys,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Outer addresses.
    pub hosts: Hosts,
    /// Inner addresses on our side that the peer may reach (TSr for a responder).
    pub local_selectors: Vec<Selector>,
    /// Inner addresses of the peer (its virtual addresses; TSi for a responder).
    pub remote_selectors: Vec<Selector>,
    /// Extended sequence numbers negotiated.
    pub esn: bool,
    /// Anti-replay window in packets; 0 turns it off.
    pub replay_window: u32,
    /// Sequence number the outbound half starts after (0 for a new SA; a jump after a restart).
    pub first_seq_out: u64,
    /// Byte and packet limits, and the end that needs nobody.
    pub limits: Limits,
    /// Whether the outbound half sends at once (see [`crate::Dataplane::install`]).
    pub outbound_active: bool,
}

impl ChildSpec {
    /// Whether it carries what is between the two outer addresses themselves and nothing else, as
    /// transport mode needs (RFC 7296 1.3.1).
    pub fn is_between_hosts(&self) -> bool {
        let is_host = |selectors: &[Selector], host: SocketAddr| {
            let host = host.ip().to_canonical();
            matches!(selectors, [one] if one.start == host && one.end == host)
        };
        is_host(&self.local_selectors, self.hosts.local)
            && is_host(&self.remote_selectors, self.hosts.remote)
    }
}

/// Counters of one child SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Inner bytes received and accepted.
    pub bytes_in: u64,
    /// Inner bytes sent.
    pub bytes_out: u64,
    /// Packets received and accepted.
    pub packets_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Microseconds since the last accepted inbound packet; `None` when there was none.
    pub idle_in_micros: Option<u64>,
    /// Last outbound sequence number used.
    pub seq_out: u64,
    /// Packets dropped: replayed or too old.
    pub drops_replay: u64,
    /// Packets dropped: integrity check failed.
    pub drops_auth: u64,
    /// Packets dropped: inner address or selector not of this SA.
    pub drops_selector: u64,
    /// What a network device does of the work, in both directions.
    pub offload: Offload,
}

/// Counters of the whole plane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlaneStats {
    /// Dropped packets by reason (`replay`, `auth`, `policy`, `no_sa`, `ts`, `malformed`, ...).
    pub drops: Vec<(&'static str, u64)>,
    /// What the kernel itself counted behind them, by its own names (`XfrmInNoStates`, ...), where
    /// it is not zero. They are of the whole network namespace.
    pub counters: Vec<(String, u64)>,
}

/// Address ranges handed to peers and the gateway's own address inside each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelNetwork {
    /// The pool's network, routed to the tunnel interface.
    pub network: IpNet,
    /// The gateway's own address on the tunnel interface.
    pub gateway: IpAddr,
    /// Source-NAT what leaves towards networks that have no route back.
    pub masquerade: bool,
}

/// One allowed destination of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowRule {
    /// Destination network.
    pub destination: IpNet,
    /// IP protocol (6 TCP, 17 UDP, ...); `None` is any.
    pub protocol: Option<u8>,
    /// Inclusive port range; `None` is any. Only with TCP, UDP or SCTP.
    pub ports: Option<(u16, u16)>,
}

/// A role's packet filter: everything else is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleFilter {
    /// The role's name (`[A-Za-z0-9_-]+`).
    pub role: String,
    /// Allowed destinations, pool DNS servers included.
    pub allow: Vec<AllowRule>,
    /// TCP ports of the gateway itself that stay reachable at its addresses inside an allowed
    /// network: what a client needs to check certificates, which it sends into the tunnel when the
    /// network holds the gateway's own address. No other port is opened by a network.
    pub own_ports: Vec<u16>,
}

/// The packet filter of a site: networks behind another gateway. What is not named is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFilter {
    /// The site's name (`[A-Za-z0-9_-]+`).
    pub site: String,
    /// Networks on our side whose hosts may open connections to the site.
    pub local: Vec<IpNet>,
    /// Networks behind the site.
    pub remote: Vec<IpNet>,
    /// What hosts of the site may open connections to.
    pub allow: Vec<AllowRule>,
    /// Set for a site in transport mode: `local` and `remote` are then one address each, those of
    /// the two machines themselves.
    pub hosts: Option<HostSite>,
}

/// What the filter of a site in transport mode needs besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSite {
    /// TCP ports of ours that the other machine also reaches unprotected: what it needs to check
    /// certificates before there is a tunnel.
    pub own_ports: Vec<u16>,
}

/// A network behind a site, routed to the tunnel interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteRoute {
    /// The network.
    pub network: IpNet,
    /// This machine's own address in the networks the site may speak to, for what it sends itself.
    pub source: Option<IpAddr>,
}

/// Binds a lease's inner addresses to its role's filter chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseFilter {
    /// The lease's request id, as in [`ChildSpec::reqid`].
    pub reqid: u32,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks behind a site, which `role` then names; empty for a client.
    pub networks: Vec<IpNet>,
    /// Its role.
    pub role: String,
}
