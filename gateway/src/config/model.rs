//! The configuration as plain data, after every check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ike::crypto::SecretBytes;
use ike::wire::Identification;
use ipnet::IpNet;
use pki::signer::{KeyKind, TokenUri};
use xfrm::model::Offload;

/// Everything `runnel up` needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[ike]`
    pub ike: Ike,
    /// `[pki]`
    pub pki: Pki,
    /// `[enrol]`
    pub enrol: Enrol,
    /// `[limits]`
    pub limits: pki::Limits,
    /// `[lease]`
    pub lease: pki::LeaseTimers,
    /// `[hooks]`; `None`: no webhooks are taken.
    pub hooks: Option<super::Hooks>,
    /// `[audit]`
    pub audit: super::Audit,
    /// `[[pool]]`
    pub pools: Vec<Pool>,
    /// `[[role]]`
    pub roles: Vec<Role>,
    /// `[[site]]`
    pub sites: Vec<Site>,
    /// `[[psk]]`
    pub psks: Vec<Psk>,
    /// `[[ca]]`
    pub cas: Vec<ExternalCa>,
    /// `[[issuer]]`
    pub issuers: Vec<pki::enrol::jwt::Issuer>,
    /// `[[ppk]]`
    pub ppks: Vec<Ppk>,
    /// Where it came from; `None` for the built-in configuration.
    pub source: Option<PathBuf>,
    /// What is odd but not wrong, as `FILE:LINE: sentence`.
    pub warnings: Vec<String>,
}

impl Config {
    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// The site of that name.
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.sites.iter().find(|site| site.name == name)
    }

    /// The site that has this identity.
    pub fn site_of(&self, id: &Identification) -> Option<&Site> {
        let theirs = PeerId::of(id)?;
        self.sites.iter().find(|site| site.peer_id().is_some_and(|ours| ours.is(&theirs)))
    }

    /// The role of that name.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|role| role.name == name)
    }
}

/// Identity, sockets and data plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// IKE identity and certificate SAN; `None`: the host's name.
    pub id: Option<String>,
    /// Addresses to listen on with UDP 500 and 4500.
    pub listen: Vec<IpAddr>,
    /// Which data plane.
    pub dataplane: DataplaneChoice,
    /// What network devices are asked to do of the work, in the kernel plane.
    pub offload: Offload,
    /// Name of the tunnel interface.
    pub interface: String,
    /// Tunnels outlive the process.
    pub keep_tunnels: bool,
    /// Where live tunnels are kept for the next start; on a tmpfs.
    pub runtime: PathBuf,
    /// Send new clients to this gateway, those that can be (RFC 5685).
    pub redirect_to: Option<String>,
}

/// `dataplane = ...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataplaneChoice {
    /// Kernel where it has ESP, else userspace.
    Auto,
    /// Kernel or refuse.
    Kernel,
    /// Userspace or refuse.
    Userspace,
}

/// Timers and proposals of IKE and its child SAs.
#[derive(Debug, Clone, PartialEq)]
pub struct Ike {
    /// Life of an IKE SA before it is rekeyed.
    pub rekey: Duration,
    /// Life of a child SA before it is rekeyed.
    pub child: Duration,
    /// Bytes a child SA carries in one direction before it is rekeyed; `None`: no limit.
    pub child_bytes: Option<u64>,
    /// Packets likewise.
    pub child_packets: Option<u64>,
    /// Silence before a liveness check; zero turns it off.
    pub dpd: Duration,
    /// Grants that end sooner are not announced to clients (AUTH_LIFETIME, RFC 4478).
    pub announce_lifetime: Duration,
    /// IKE suites like `aes256gcm16-prfsha384-ecp384`, preferred first; empty: the default list.
    pub proposals: Vec<String>,
    /// ESP suites like `aes256gcm16`, preferred first; empty: the default list.
    pub esp_proposals: Vec<String>,
    /// Largest IKE datagram sent, in bytes of UDP payload.
    pub fragment_size: usize,
    /// Half-open IKE SAs at which strangers must return a cookie.
    pub cookie_threshold: usize,
    /// Half-open IKE SAs at most.
    pub max_half_open: usize,
    /// Clients may prove their certificate with EAP-TLS.
    pub eap_tls: bool,
    /// Then the gateway proves itself with EAP-TLS alone to clients that allow it.
    pub eap_only: bool,
}

/// The certificate authority.
#[derive(Debug, Clone, PartialEq)]
pub struct Pki {
    /// Domain of SPIFFE identities and certificate names; `None`: the gateway's id.
    pub trust_domain: Option<String>,
    /// CA certificates, revocation lists and OCSP over plain HTTP.
    pub status_listen: SocketAddr,
    /// How long ended leases and tokens are remembered.
    pub keep_ended: Duration,
    /// What kind of keys CAs get that are made from now on.
    pub ca_key: KeyKind,
    /// The token that CA keys are made in and reached in; `None`: the state directory.
    pub ca_token: Option<TokenUri>,
    /// A second place of the revocation journal.
    pub journal: Option<std::path::PathBuf>,
}

/// The enrolment service.
#[derive(Debug, Clone, PartialEq)]
pub struct Enrol {
    /// EST over TLS.
    pub listen: SocketAddr,
    /// The URL clients use; `None`: made from the gateway's id and the port.
    pub url: Option<String>,
    /// How often one source may ask.
    pub rate: crate::http::Rate,
    /// Chain and key, PEM, of a public certificate for those who ask for one of its names.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// A range of virtual addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// At most one IPv4 and one IPv6 network.
    pub addresses: Vec<IpNet>,
    /// DNS servers handed to clients; reachable by every role of the pool.
    pub dns: Vec<IpAddr>,
    /// Source-NAT towards networks that have no route back.
    pub masquerade: bool,
    /// How long a released address rests before it is handed out again.
    pub quarantine: Duration,
}

impl Pool {
    /// The gateway's own address in a network of a pool: the first usable one.
    pub fn gateway_address(net: IpNet) -> IpAddr {
        match net {
            IpNet::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4.network()).saturating_add(1))),
            IpNet::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6.network()).saturating_add(1))),
        }
    }
}

/// Who may reach what, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// The pool its addresses come from.
    pub pool: String,
    /// Life of its certificates.
    pub ttl: Duration,
    /// A lease is never renewed past this age.
    pub max_lease: Duration,
    /// Kinds of key its clients may have, preferred first; empty: any that is safe.
    pub keys: Vec<KeyKind>,
    /// Keys are made here for clients that ask.
    pub server_keys: bool,
    /// Live leases at once; `None`: as many as there are addresses.
    pub max_leases: Option<u32>,
    /// How often one may be opened by enrolment.
    pub rate: Option<pki::OpenRate>,
    /// Its leases wait for an operator's approval.
    pub manual: bool,
    /// Its certificates name the virtual addresses.
    pub san_address: bool,
    /// Requests for names that the certificate does not get are refused.
    pub verify_names: bool,
    /// Allowed destinations; everything else is dropped.
    pub allow: Vec<AllowEntry>,
    /// Certificates of external CAs that have this role.
    pub matches: Vec<MatchRule>,
    /// Tokens of CI platforms that have this role.
    pub claims: Vec<pki::enrol::jwt::ClaimRule>,
}

/// A CA of somebody else whose certificates are accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalCa {
    /// Its name in rules.
    pub name: String,
    /// PEM file with the root, and sub-CAs if peers leave them out.
    pub certificate: PathBuf,
    /// What an unknown standing of a certificate means.
    pub revocation: Revocation,
    /// An OCSP responder instead of those that certificates name.
    pub ocsp: Option<String>,
    /// Revocation lists (URLs and files) beside those that certificates name.
    pub crl: Vec<String>,
    /// Patience with one place.
    pub timeout: Duration,
    /// An answer or list is asked for again after this time at the latest.
    pub refresh: Duration,
}

/// `revocation = ...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// Nobody is asked.
    Off,
    /// Revoked certificates are refused; those of unknown standing are not.
    Soft,
    /// Certificates must be shown to be good.
    Strict,
}

/// One `[[role.match]]`: every field that is there must match.
#[derive(Debug, Clone, PartialEq)]
pub struct MatchRule {
    /// The CA's name.
    pub ca: String,
    /// The subject.
    pub subject: Option<pki::validate::DnPattern>,
    /// One of the alternative names.
    pub san: Option<pki::validate::SanPattern>,
}

/// Another gateway with networks behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Host name or address of the other gateway; `None`: it comes to us.
    pub remote: Option<String>,
    /// The IKE identity it must prove: a DNS name, or an address as text.
    pub id: String,
    /// Connect to it, and again whenever the tunnel is lost.
    pub connect: bool,
    /// Go to another gateway when it says so (RFC 5685).
    pub follow_redirects: bool,
    /// When we connect: the IKE SA without a child SA (RFC 6023), which follows with a key exchange
    /// of its own.
    pub childless: bool,
    /// Transport mode: between the two machines themselves, which only the kernel plane has.
    pub transport: bool,
    /// File with the root certificates it is trusted by; `None`: our own CA.
    pub ca: Option<PathBuf>,
    /// Where `ca` stands in the file, for messages.
    pub ca_line: usize,
    /// File with a key shared with it, instead of certificates.
    pub psk_file: Option<PathBuf>,
    /// Where `psk_file` stands in the file, for messages.
    pub psk_line: usize,
    /// The key of `psk_file`.
    pub psk: Option<SecretBytes>,
    /// The certificates of `ca`, DER.
    pub anchors: Vec<Vec<u8>>,
    /// Networks on our side.
    pub local: Vec<IpNet>,
    /// Networks behind it.
    pub networks: Vec<IpNet>,
    /// What hosts behind it may open connections to.
    pub allow: Vec<AllowEntry>,
}

/// A remote client that authenticates with a shared key (RFC 7296 2.15).
#[derive(Debug, Clone, PartialEq)]
pub struct Psk {
    /// The identity the client claims.
    pub id: PeerId,
    /// The file that holds the key.
    pub file: PathBuf,
    /// The role the client has.
    pub role: String,
    /// The gateway proves itself to this client with the same key, not with its certificate.
    pub gateway_shares: bool,
}

/// A post-quantum preshared key (RFC 8784).
#[derive(Debug, Clone, PartialEq)]
pub struct Ppk {
    /// Its name (PPK_ID).
    pub id: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Without it there is no connection.
    pub required: bool,
    /// The only client that has it; `None`: all.
    pub client: Option<PeerId>,
}

/// An IKE identity as configured, in the form identities are compared in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerId {
    /// A host name, lower case.
    Fqdn(String),
    /// A mail address, lower case.
    Mail(String),
    /// An address.
    Address(IpAddr),
    /// Octets without meaning (KEY_ID).
    KeyId(Vec<u8>),
    /// A distinguished name as people write it.
    Dn(String),
}

/// One allowed destination, like `10.20.0.10:443/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowEntry {
    /// Destination network; a host is a /32 or /128.
    pub net: IpNet,
    /// IP protocol; `None` is any.
    pub protocol: Option<u8>,
    /// Inclusive port range; `None` is any.
    pub ports: Option<(u16, u16)>,
}
