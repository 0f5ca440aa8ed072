//! UDP ports for IKE (500) and for ESP-in-UDP (4500, RFC 3948).
//!
//! Duty: bind with sentences an operator can act on, learn and choose our own address per
//! datagram, move batches (recvmmsg + GRO, sendmmsg + GSO), and keep DF and path MTU right. It
//! does not look into datagrams beyond the non-ESP marker.
//!
//! Sockets are non-blocking: wait with poll (or wrap the descriptor in a runtime's reactor) and
//! then call [`UdpPort::recv`] until it says `WouldBlock`.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::PlaneError;
use crate::user::sys::{self, RecvMeta, SendItem};

/// Marks an IKE message on an encapsulation port (RFC 3948 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// Largest UDP payload over IPv4.
const MAX_DATAGRAM: usize = 65_507;
/// Socket buffers asked for: some 30 ms of traffic at 1 GB/s.
const SOCKET_BUFFER: usize = 32 << 20;
/// `UDP_ENCAP_ESPINUDP` of `<linux/udp.h>`.
const UDP_ENCAP_ESPINUDP: libc::c_int = 2;

/// How a port is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BindOptions {
    /// Several sockets share the port; the kernel spreads peers over them by their address.
    pub reuse_port: bool,
    /// The kernel takes ESP out of this socket itself (kernel plane, port 4500).
    pub kernel_encap: bool,
    /// IPsec policies of this host never apply to this socket (kernel plane, both ports).
    pub bypass_policies: bool,
}

/// A bound UDP socket of one address family that knows which local address each datagram used.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    local: SocketAddr,
    /// Shared with clones: whether every datagram carries DF until it proves too large.
    always_df: Arc<AtomicBool>,
}

impl UdpPort {
    /// Binds an address; IPv6 sockets take IPv6 only, so that `0.0.0.0` and `::` can coexist.
    ///
    /// # Errors
    /// A [`PlaneError::System`] that names the address, the likely cause and what to do.
    pub fn bind(address: SocketAddr, options: &BindOptions) -> Result<Self, PlaneError> {
        Self::bind_io(address, options).map_err(|error| bind_error(address, &error))
    }

    fn bind_io(address: SocketAddr, options: &BindOptions) -> io::Result<Self> {
        let v6 = address.is_ipv6();
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if v6 {
            socket.set_only_v6(true)?;
        }
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let fd = socket.as_fd();
        if v6 {
            sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            // "Want": DF as long as a datagram fits the path, else fragments; the path MTU is
            // followed either way. A large IKE message must still get through.
            let want = libc::IPV6_PMTUDISC_WANT;
            sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, want)?;
        } else {
            sys::set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            sys::set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            let want = libc::IP_PMTUDISC_WANT;
            sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, want)?;
        }
        grow_buffers(&socket);
        if options.bypass_policies {
            for outbound in [false, true] {
                // Without CAP_NET_ADMIN there are no policies of ours either.
                if let Err(error) = sys::bypass_ipsec(fd, v6, outbound) {
                    tracing::debug!(%address, %error, "no IPsec policy bypass");
                }
            }
        }
        if options.kernel_encap {
            sys::set_option(fd, libc::SOL_UDP, libc::UDP_ENCAP, UDP_ENCAP_ESPINUDP)?;
        }
        let socket = UdpSocket::from(socket);
        let local = socket.local_addr()?;
        Ok(Self { socket, local, always_df: Arc::default() })
    }

    /// Takes over an already bound socket and sets it up like [`UdpPort::bind`] without options.
    ///
    /// # Errors
    /// When the socket refuses an option it needs.
    pub fn from_socket(socket: UdpSocket) -> Result<Self, PlaneError> {
        let setup = || -> io::Result<SocketAddr> {
            socket.set_nonblocking(true)?;
            let local = socket.local_addr()?;
            let fd = socket.as_fd();
            if local.is_ipv6() {
                sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            } else {
                sys::set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
                sys::set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            }
            Ok(local)
        };
        let local = setup().map_err(|error| PlaneError::System {
            what: "set up an inherited UDP socket".into(),
            reason: error.to_string(),
            fix: "pass a bound UDP socket".into(),
        })?;
        Ok(Self { socket, local, always_df: Arc::default() })
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Another handle on the same socket, for instance to send IKE messages while a data plane
    /// reads from it.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self, PlaneError> {
        let socket = self.socket.try_clone().map_err(|error| PlaneError::System {
            what: format!("duplicate the socket of UDP {}", self.local),
            reason: error.to_string(),
            fix: "raise the limit of open files (LimitNOFILE=)".into(),
        })?;
        Ok(Self { socket, local: self.local, always_df: Arc::clone(&self.always_df) })
    }

    /// Lets the kernel hand over several datagrams of one sender at once (UDP GRO); the ring of
    /// [`UdpPort::recv`] takes them apart. Old kernels refuse, which costs only speed.
    pub(crate) fn enable_gro(&self) -> bool {
        sys::set_option(self.socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
    }

    /// Queues ICMP errors on the socket, so that a shrinking path MTU is seen at once.
    pub(crate) fn enable_error_queue(&self) -> bool {
        let (level, name) = if self.local.is_ipv6() {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        };
        sys::set_option(self.socket.as_fd(), level, name, 1).is_ok()
    }

    /// Sets DF on every IPv4 datagram. Without it the kernel leaves DF out of UDP super-packets,
    /// and a narrow path would fragment them silently instead of telling us.
    pub(crate) fn enable_dont_fragment(&self) {
        if self.local.is_ipv4() {
            self.always_df.store(true, Ordering::Relaxed);
            self.discover(libc::IP_PMTUDISC_DO);
        }
    }

    fn discover(&self, how: libc::c_int) {
        let fd = self.socket.as_fd();
        if let Err(error) = sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, how) {
            tracing::debug!(%error, "path MTU discovery cannot be changed");
        }
    }

    /// Sends datagrams that are larger than the path as fragments.
    pub(crate) fn send_fragmented(&self, items: &[SendItem<'_>]) -> io::Result<()> {
        let always_df = self.always_df.load(Ordering::Relaxed);
        // The mode is the socket's: a datagram another thread sends meanwhile may lose its DF,
        // which does it no harm.
        if always_df {
            self.discover(libc::IP_PMTUDISC_WANT);
        }
        let mut result = Ok(());
        for item in items {
            if let Err(error) = self.send_batch(std::slice::from_ref(item)) {
                result = Err(error);
            }
        }
        if always_df {
            self.discover(libc::IP_PMTUDISC_DO);
        }
        result
    }

    /// Receives what is there, without blocking, into `ring`.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; otherwise the socket's error.
    pub fn recv(&self, ring: &mut RecvRing) -> io::Result<()> {
        ring.port = self.local.port();
        retry_stale(&[], || {
            sys::recv_batch(self.socket.as_fd(), &mut ring.buffer, ring.slot, &mut ring.metas)
        })
        .inspect_err(|_| ring.metas.clear())
    }

    /// Sends one datagram from `source`, the address its peer talks to; an unspecified `source`
    /// lets the kernel choose.
    ///
    /// # Errors
    /// The socket's error; `WouldBlock` when its buffer is full (IKE retransmits).
    pub fn send(&self, datagram: &[u8], source: IpAddr, remote: SocketAddr) -> io::Result<()> {
        let item = SendItem { bytes: datagram, remote, source, tos: 0, segment: 0 };
        match self.send_batch(&[item]) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.send_fragmented(&[item])
            }
            result => result.map(drop),
        }
    }

    /// Sends an IKE message; `marker` puts the non-ESP marker before it, which every IKE message
    /// on an encapsulation port needs and none on port 500 may have (RFC 3948 2.2).
    ///
    /// # Errors
    /// As [`UdpPort::send`].
    pub fn send_ike(
        &self,
        message: &[u8],
        source: IpAddr,
        remote: SocketAddr,
        marker: bool,
    ) -> io::Result<()> {
        if !marker {
            return self.send(message, source, remote);
        }
        let mut datagram = Vec::with_capacity(message.len().saturating_add(NON_ESP_MARKER.len()));
        datagram.extend_from_slice(&NON_ESP_MARKER);
        datagram.extend_from_slice(message);
        self.send(&datagram, source, remote)
    }

    /// Sends a NAT keepalive (RFC 3948 2.3).
    ///
    /// # Errors
    /// As [`UdpPort::send`].
    pub fn send_keepalive(&self, source: IpAddr, remote: SocketAddr) -> io::Result<()> {
        self.send(&[0xff], source, remote)
    }

    /// Sends several messages; returns how many went.
    pub(crate) fn send_batch(&self, items: &[SendItem<'_>]) -> io::Result<usize> {
        // A narrower path is news of an earlier datagram too; this one may be fragmented.
        retry_stale(&[libc::EMSGSIZE], || sys::send_batch(self.socket.as_fd(), items))
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An ICMP error about an earlier datagram is reported by whatever call comes next, once per
/// error; that call itself did nothing and is repeated.
fn retry_stale<T>(also: &[i32], mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const STALE: [i32; 7] = [
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::EPROTO,
        libc::EACCES,
        libc::ENOPROTOOPT,
        libc::EINTR,
    ];
    let mut result = call();
    for _ in 0..3 {
        match &result {
            Err(error)
                if error
                    .raw_os_error()
                    .is_some_and(|code| STALE.contains(&code) || also.contains(&code)) =>
            {
                result = call();
            }
            _ => break,
        }
    }
    result
}

/// Bursts of a whole batch must fit; `FORCE` needs CAP_NET_ADMIN, the plain form is capped by
/// `net.core.rmem_max`.
fn grow_buffers(socket: &Socket) {
    let size = SOCKET_BUFFER as libc::c_int;
    let fd = socket.as_fd();
    if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    }
    if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size).is_err() {
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    }
}

fn bind_error(address: SocketAddr, error: &io::Error) -> PlaneError {
    let port = address.port();
    let (reason, fix) = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => (
            "address in use: another IKE daemon (charon?) has it".to_owned(),
            format!("find it with `ss -lunp 'sport = :{port}'` and stop it, or change `listen`"),
        ),
        Some(libc::EACCES | libc::EPERM) => (
            "permission denied".to_owned(),
            "run as root or grant CAP_NET_BIND_SERVICE and CAP_NET_ADMIN".to_owned(),
        ),
        Some(libc::EADDRNOTAVAIL) => (
            "this machine has no such address".to_owned(),
            "use one that `ip address` shows, or 0.0.0.0 and ::".to_owned(),
        ),
        Some(libc::EAFNOSUPPORT) => (
            "this machine has no IPv6".to_owned(),
            "remove the IPv6 addresses from `listen`".to_owned(),
        ),
        Some(libc::ENOPROTOOPT) => (
            "the kernel lacks a socket option IPsec needs".to_owned(),
            "use a kernel with CONFIG_XFRM, or dataplane = \"userspace\"".to_owned(),
        ),
        _ => (error.to_string(), "see `ss -lunp` and the system log".to_owned()),
    };
    PlaneError::System { what: format!("cannot listen on UDP {address}"), reason, fix }
}

/// The path MTU the kernel knows towards a peer now: the outgoing interface's, or less when an
/// ICMP error said so. `None` when there is no route.
pub fn path_mtu(local: IpAddr, remote: SocketAddr) -> Option<u16> {
    let any = match remote {
        SocketAddr::V4(_) => IpAddr::from([0u8; 4]),
        SocketAddr::V6(_) => IpAddr::from([0u16; 8]),
    };
    let from = if local.is_ipv4() == remote.is_ipv4() { local } else { any };
    let socket = UdpSocket::bind((from, 0)).or_else(|_| UdpSocket::bind((any, 0))).ok()?;
    socket.connect(remote).ok()?;
    let (level, name) = if remote.is_ipv6() {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    let mtu = sys::option(socket.as_fd(), level, name).ok()?;
    // Loopback and jumbo links may exceed what one datagram can carry.
    Some(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// Buffers for received datagrams, reused from call to call.
#[derive(Debug)]
pub struct RecvRing {
    buffer: Vec<u8>,
    slot: usize,
    metas: Vec<RecvMeta>,
    port: u16,
}

/// One received datagram.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Its bytes.
    pub payload: &'a mut [u8],
    /// Our address and port it was sent to.
    pub local: SocketAddr,
    /// The sender.
    pub remote: SocketAddr,
    /// TOS or traffic class of the outer header.
    pub tos: u8,
}

impl RecvRing {
    /// A ring for control traffic: datagrams of any size, a few at a time.
    pub fn new() -> Self {
        Self::with_slots(8)
    }

    /// A ring of `slots` buffers, each of the largest datagram; at most 32 are used at once.
    pub fn with_slots(slots: usize) -> Self {
        let slots = slots.clamp(1, sys::BATCH);
        let slot = MAX_DATAGRAM.next_multiple_of(64);
        Self {
            buffer: vec![0; slot.saturating_mul(slots)],
            slot,
            metas: Vec::with_capacity(slots),
            port: 0,
        }
    }

    /// The datagrams of the last [`UdpPort::recv`], in order of arrival. Truncated ones are left
    /// out.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let port = self.port;
        self.buffer.chunks_exact_mut(self.slot).zip(&self.metas).flat_map(move |(chunk, meta)| {
            let len = if meta.truncated { 0 } else { meta.len.min(chunk.len()) };
            let unspecified = match meta.remote {
                SocketAddr::V4(_) => IpAddr::from([0u8; 4]),
                SocketAddr::V6(_) => IpAddr::from([0u16; 8]),
            };
            let local = SocketAddr::new(meta.local.unwrap_or(unspecified), port);
            let segment = if meta.segment == 0 { len } else { meta.segment };
            let (used, _) = chunk.split_at_mut(len);
            used.chunks_mut(segment.max(1)).map(move |payload| Datagram {
                payload,
                local,
                remote: meta.remote,
                tos: meta.tos,
            })
        })
    }

    /// Forgets the datagrams of the last call.
    pub fn clear(&mut self) {
        self.metas.clear();
    }
}

impl Default for RecvRing {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn loopback() -> UdpPort {
        UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap()
    }

    fn recv_all(port: &UdpPort, want: usize) -> Vec<(Vec<u8>, SocketAddr, SocketAddr, u8)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut ring = RecvRing::new();
        let mut got = Vec::new();
        while got.len() < want && Instant::now() < deadline {
            match port.recv(&mut ring) {
                Ok(()) => got.extend(
                    ring.datagrams().map(|d| (d.payload.to_vec(), d.local, d.remote, d.tos)),
                ),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        got
    }

    #[test]
    fn an_ike_message_carries_the_marker_only_on_the_encapsulation_port() {
        let (a, b) = (loopback(), loopback());
        let source = a.local_addr().ip();
        a.send_ike(b"ike", source, b.local_addr(), true).unwrap();
        a.send_ike(b"ike", source, b.local_addr(), false).unwrap();
        a.send_keepalive(source, b.local_addr()).unwrap();
        let got: Vec<_> = recv_all(&b, 3).into_iter().map(|d| d.0).collect();
        assert_eq!(got, [b"\0\0\0\0ike".to_vec(), b"ike".to_vec(), vec![0xff]]);
    }

    #[test]
    fn a_reply_leaves_from_the_address_the_peer_used() {
        let server = UdpPort::bind("0.0.0.0:0".parse().unwrap(), &BindOptions::default()).unwrap();
        let client = loopback();
        let second: IpAddr = "127.0.0.2".parse().unwrap();
        let to = SocketAddr::new(second, server.local_addr().port());
        client.send(b"hello", client.local_addr().ip(), to).unwrap();
        let (_, local, remote, _) = recv_all(&server, 1).remove(0);
        assert_eq!(local, to);
        server.send(b"back", local.ip(), remote).unwrap();
        let (bytes, _, from, _) = recv_all(&client, 1).remove(0);
        assert_eq!((bytes.as_slice(), from), (&b"back"[..], to));
    }

    #[test]
    fn batches_survive_segmentation_offload_and_keep_their_tos() {
        let (a, b) = (loopback(), loopback());
        b.enable_gro();
        let bytes: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();
        let item = SendItem {
            bytes: &bytes,
            remote: b.local_addr(),
            source: a.local_addr().ip(),
            tos: 0x2a,
            segment: 1000,
        };
        assert_eq!(a.send_batch(&[item, item]).unwrap(), 2);
        let got = recv_all(&b, 6);
        let sizes: Vec<_> = got.iter().map(|d| d.0.len()).collect();
        assert_eq!(sizes, [1000, 1000, 500, 1000, 1000, 500]);
        let whole: Vec<u8> = got.iter().take(3).flat_map(|d| d.0.clone()).collect();
        assert_eq!(whole, bytes);
        assert!(got.iter().all(|d| d.3 == 0x2a && d.2 == a.local_addr()));
    }

    #[test]
    fn ipv6_works_alike_and_coexists_with_ipv4() {
        /// Somebody else may have the IPv4 port of the same number.
        const TRIES: usize = 100;
        let bind = |address: &str| UdpPort::bind(address.parse().unwrap(), &BindOptions::default());
        if bind("[::1]:0").is_err() {
            println!("skipped: no IPv6 on loopback");
            return;
        }
        let both = (0..TRIES).find_map(|_| {
            let six = bind("[::1]:0").ok()?;
            let four = bind(&format!("0.0.0.0:{}", six.local_addr().port())).ok()?;
            Some((six, four))
        });
        let (a, _same_port) = both.unwrap();
        let b = UdpPort::bind("[::]:0".parse().unwrap(), &BindOptions::default()).unwrap();
        let to = SocketAddr::new("::1".parse().unwrap(), b.local_addr().port());
        let item = SendItem {
            bytes: b"six",
            remote: to,
            source: a.local_addr().ip(),
            tos: 0x03,
            segment: 0,
        };
        a.send_batch(&[item]).unwrap();
        let (bytes, local, remote, tos) = recv_all(&b, 1).remove(0);
        assert_eq!((bytes.as_slice(), local, remote, tos), (&b"six"[..], to, a.local_addr(), 3));
    }

    #[test]
    fn an_occupied_port_is_explained() {
        let first = loopback();
        let error = UdpPort::bind(first.local_addr(), &BindOptions::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("address in use") && text.contains("ss -lunp"), "{text}");
    }

    #[test]
    fn a_foreign_address_is_explained() {
        let error =
            UdpPort::bind("192.0.2.1:4500".parse().unwrap(), &BindOptions::default()).unwrap_err();
        assert!(error.to_string().contains("no such address"), "{error}");
    }

    #[test]
    fn the_path_mtu_of_loopback_is_known() {
        let mtu = path_mtu("127.0.0.1".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
        assert_eq!(mtu, Some(u16::MAX));
    }
}
