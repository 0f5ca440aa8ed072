//! System calls of the userspace plane that have no safe wrapper: batched datagrams with control
//! messages, the socket error queue, socket options and the TUN ioctls.
//!
//! Duty: turn slices and plain values into kernel structures and back, nothing else. Every pointer
//! handed to the kernel points into a buffer borrowed for the whole call.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Datagrams moved by one system call at most.
pub(crate) const BATCH: usize = 32;
/// Room for every control message asked for (packet info, TOS, GRO size), in 8-byte words.
const CONTROL_WORDS: usize = 16;

type Control = [u64; CONTROL_WORDS];

/// What the kernel says about one received buffer, which may hold several datagrams (UDP GRO).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecvMeta {
    /// Bytes in the buffer.
    pub(crate) len: usize,
    /// The sender.
    pub(crate) remote: SocketAddr,
    /// Our address the datagram was sent to, when the kernel told.
    pub(crate) local: Option<IpAddr>,
    /// TOS or traffic class of the outer header.
    pub(crate) tos: u8,
    /// Size of each datagram but the last; 0 for a single one.
    pub(crate) segment: usize,
    /// The datagram was longer than the buffer.
    pub(crate) truncated: bool,
}

/// One message to send: a datagram, or several equal ones in a row (UDP GSO).
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendItem<'a> {
    /// The bytes.
    pub(crate) bytes: &'a [u8],
    /// Where to.
    pub(crate) remote: SocketAddr,
    /// Our address to send from; unspecified lets the kernel choose.
    pub(crate) source: IpAddr,
    /// TOS or traffic class of the outer header.
    pub(crate) tos: u8,
    /// Size of each datagram but the last; 0 for a single one.
    pub(crate) segment: usize,
}

/// An entry of a socket's error queue (an ICMP error about something we sent).
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueuedError {
    /// Destination of the datagram that caused it.
    pub(crate) remote: Option<SocketAddr>,
    /// Positive errno, `EMSGSIZE` for a path MTU that shrank.
    pub(crate) errno: i32,
}

fn zeroed_name() -> libc::sockaddr_storage {
    // SAFETY: sockaddr_storage is plain data; all zeroes is a valid value (AF_UNSPEC).
    unsafe { mem::zeroed() }
}

fn to_name(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    let mut storage = zeroed_name();
    match addr {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and at least as aligned as sockaddr_in.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(name) };
            (storage, mem::size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: sockaddr_storage is larger than and at least as aligned as sockaddr_in6.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(name) };
            (storage, mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

fn from_name(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says the kernel wrote a sockaddr_in, which fits the storage.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says the kernel wrote a sockaddr_in6, which fits the storage.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)))
        }
        _ => None,
    }
}

/// Receives up to [`BATCH`] messages without blocking, one per chunk of `slot` bytes of `buffer`.
///
/// # Errors
/// `WouldBlock` when nothing is there; otherwise the socket's error.
pub(crate) fn recv_batch(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    slot: usize,
    metas: &mut Vec<RecvMeta>,
) -> io::Result<()> {
    metas.clear();
    let mut names = [zeroed_name(); BATCH];
    let mut controls: [Control; BATCH] = [[0; CONTROL_WORDS]; BATCH];
    // SAFETY: iovec and mmsghdr are plain data; null pointers with zero lengths are valid.
    let mut iovecs: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    let mut count = 0;
    for ((((chunk, iovec), header), name), control) in buffer
        .chunks_exact_mut(slot.max(1))
        .zip(&mut iovecs)
        .zip(&mut headers)
        .zip(&mut names)
        .zip(&mut controls)
    {
        iovec.iov_base = chunk.as_mut_ptr().cast();
        iovec.iov_len = chunk.len();
        header.msg_hdr.msg_name = (&raw mut *name).cast();
        header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_hdr.msg_iov = &raw mut *iovec;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = control.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = mem::size_of::<Control>() as _;
        count += 1;
    }
    // SAFETY: the first `count` headers point at live, disjoint buffers of the stated lengths.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    for (header, name) in headers.iter().zip(&names).take(received as usize) {
        let Some(remote) = from_name(name) else { continue };
        let mut meta = RecvMeta {
            len: header.msg_len as usize,
            remote,
            local: None,
            tos: 0,
            segment: 0,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        read_control(&header.msg_hdr, &mut meta);
        metas.push(meta);
    }
    Ok(())
}

fn read_control(header: &libc::msghdr, meta: &mut RecvMeta) {
    // SAFETY: the header's control buffer and length were set by recvmmsg; the CMSG macros walk
    // only inside that length.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !cursor.is_null() {
        // SAFETY: a non-null cursor points at a whole cmsghdr inside the control buffer.
        let (level, kind, len) =
            unsafe { ((*cursor).cmsg_level, (*cursor).cmsg_type, (*cursor).cmsg_len as usize) };
        // SAFETY: as above; data follows the header.
        let data = unsafe { libc::CMSG_DATA(cursor) };
        // SAFETY: CMSG_LEN only computes.
        let have = len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if have >= mem::size_of::<libc::in_pktinfo>() => {
                // SAFETY: the length was checked; read_unaligned needs no alignment.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                let ip = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                meta.local = Some(IpAddr::V4(ip));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
                if have >= mem::size_of::<libc::in6_pktinfo>() =>
            {
                // SAFETY: the length was checked; read_unaligned needs no alignment.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                meta.local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
            }
            // The kernel writes the IPv4 TOS as one byte, the IPv6 class as an int.
            (libc::IPPROTO_IP, libc::IP_TOS) if have >= 1 => {
                // SAFETY: at least one byte is there.
                meta.tos = unsafe { data.read() };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if have >= mem::size_of::<libc::c_int>() => {
                // SAFETY: the length was checked.
                let class = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                meta.tos = (class & 0xff) as u8;
            }
            (libc::SOL_UDP, libc::UDP_GRO) if have >= mem::size_of::<libc::c_int>() => {
                // SAFETY: the length was checked.
                let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                meta.segment = usize::try_from(size).unwrap_or(0);
            }
            _ => {}
        }
        // SAFETY: the cursor came from the same header.
        cursor = unsafe { libc::CMSG_NXTHDR(header, cursor) };
    }
}

/// Appends control messages to a zeroed buffer.
struct ControlWriter<'a> {
    words: &'a mut Control,
    used: usize,
}

impl ControlWriter<'_> {
    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        let size = mem::size_of::<T>() as libc::c_uint;
        // SAFETY: the macros only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size)) };
        if self.used + space > mem::size_of::<Control>() {
            return;
        }
        // SAFETY: `used` is a multiple of the control alignment (CMSG_SPACE rounds up) and the
        // whole message fits, checked above.
        unsafe {
            let header = self.words.as_mut_ptr().cast::<u8>().add(self.used).cast();
            let header: *mut libc::cmsghdr = header;
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.used += space;
    }
}

fn write_control(item: &SendItem<'_>, words: &mut Control) -> usize {
    let mut writer = ControlWriter { words, used: 0 };
    match (item.remote, item.source) {
        (SocketAddr::V4(_), IpAddr::V4(source)) => {
            if !source.is_unspecified() {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            if item.tos != 0 {
                writer.push(libc::IPPROTO_IP, libc::IP_TOS, libc::c_int::from(item.tos));
            }
        }
        (SocketAddr::V6(_), IpAddr::V6(source)) => {
            if !source.is_unspecified() {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: 0,
                };
                writer.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            if item.tos != 0 {
                writer.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::c_int::from(item.tos));
            }
        }
        // Mixed families cannot name a source; the kernel refuses the destination by itself.
        _ => {}
    }
    if item.segment != 0 && item.segment < item.bytes.len() {
        let size = u16::try_from(item.segment).unwrap_or(u16::MAX);
        writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }
    writer.used
}

/// Sends up to [`BATCH`] messages without blocking and returns how many went.
///
/// # Errors
/// The error of the first message when not even that went.
pub(crate) fn send_batch(fd: BorrowedFd<'_>, items: &[SendItem<'_>]) -> io::Result<usize> {
    let mut names = [zeroed_name(); BATCH];
    let mut controls: [Control; BATCH] = [[0; CONTROL_WORDS]; BATCH];
    // SAFETY: iovec and mmsghdr are plain data; null pointers with zero lengths are valid.
    let mut iovecs: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    let mut count = 0;
    for ((((item, iovec), header), name), control) in
        items.iter().zip(&mut iovecs).zip(&mut headers).zip(&mut names).zip(&mut controls)
    {
        let namelen;
        (*name, namelen) = to_name(item.remote);
        iovec.iov_base = item.bytes.as_ptr().cast_mut().cast();
        iovec.iov_len = item.bytes.len();
        header.msg_hdr.msg_name = (&raw mut *name).cast();
        header.msg_hdr.msg_namelen = namelen;
        header.msg_hdr.msg_iov = &raw mut *iovec;
        header.msg_hdr.msg_iovlen = 1;
        let used = write_control(item, control);
        if used > 0 {
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = used as _;
        }
        count += 1;
    }
    // SAFETY: the first `count` headers point at live buffers; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Takes one entry from the error queue, `None` when it is empty.
///
/// # Errors
/// The socket's error.
pub(crate) fn recv_error(fd: BorrowedFd<'_>) -> io::Result<Option<QueuedError>> {
    let mut name = zeroed_name();
    // Large enough for sock_extended_err with the offender's address and packet info.
    let mut control: [u64; 32] = [0; 32];
    let mut payload = [0u8; 64];
    let mut iovec = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: msghdr is plain data.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: every pointer of the header refers to a live local of the stated length.
    let got = unsafe {
        libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    let mut found = QueuedError { remote: from_name(&name), errno: 0 };
    // SAFETY: as in `read_control`.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !cursor.is_null() {
        // SAFETY: a non-null cursor points at a whole cmsghdr inside the control buffer.
        let (level, kind, len) =
            unsafe { ((*cursor).cmsg_level, (*cursor).cmsg_type, (*cursor).cmsg_len as usize) };
        // SAFETY: CMSG_LEN only computes.
        let need =
            unsafe { libc::CMSG_LEN(mem::size_of::<libc::sock_extended_err>() as u32) } as usize;
        if matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        ) && len >= need
        {
            // SAFETY: the length was checked.
            let error = unsafe {
                libc::CMSG_DATA(cursor).cast::<libc::sock_extended_err>().read_unaligned()
            };
            found.errno = i32::try_from(error.ee_errno).unwrap_or(0);
        }
        // SAFETY: the cursor came from the same header.
        cursor = unsafe { libc::CMSG_NXTHDR(&raw const header, cursor) };
    }
    Ok(Some(found))
}

/// Sets an integer socket option.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and length describe a live c_int.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an integer socket option.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointers describe a live c_int and its length.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Lets a socket's own packets bypass (`XFRM_POLICY_ALLOW`) every IPsec policy in one direction,
/// so that IKE is never encrypted by the policies it negotiated. Needs CAP_NET_ADMIN.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn bypass_ipsec(fd: BorrowedFd<'_>, v6: bool, outbound: bool) -> io::Result<()> {
    // struct xfrm_userpolicy_info of <linux/xfrm.h>: 168 bytes, `dir` at 160, `action` at 161.
    const SIZE: usize = 168;
    let mut policy = [0u8; SIZE];
    // Family of the selector at offset 40; limits of zero mean none.
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u16;
    policy[40..42].copy_from_slice(&family.to_ne_bytes());
    policy[160] = u8::from(outbound);
    let (level, name) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_XFRM_POLICY) } else { (libc::IPPROTO_IP, 17) };
    // SAFETY: the pointer and length describe the live array.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            policy.as_ptr().cast(),
            SIZE as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data (a name and a union of plain data).
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte stays for the terminating zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['\0', '/']) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    Ok(request)
}

/// Attaches an open `/dev/net/tun` to an interface and returns the name the kernel gave it.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn tun_attach(fd: BorrowedFd<'_>, name: &str, flags: i16) -> io::Result<String> {
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes a struct ifreq.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
    String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Tells the kernel which offloads we take on packets read from the TUN device.
///
/// # Errors
/// The kernel's refusal (`EINVAL` for a flag it does not know).
pub(crate) fn tun_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    let done = unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the MTU of an interface; `fd` is any socket in its network namespace.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn set_link_mtu(fd: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
    // SAFETY: SIOCSIFMTU reads a struct ifreq.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFMTU as _, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an interface up; `fd` is any socket in its network namespace.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn set_link_up(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = ifreq(name)?;
    // SAFETY: SIOCGIFFLAGS writes the flags of the named interface into the struct ifreq.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl above filled the flags member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
