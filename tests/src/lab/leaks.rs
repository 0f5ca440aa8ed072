//! The leak check of every lab: no packet of a protected flow in clear outside the tunnels, none
//! with a foreign source inside.
//!
//! Packet sockets on both sides of the gateway capture all lab long. The kernel hands over only
//! packets that matter ([`filter`]): outside those from or to an inner address, inside those that
//! do not come from the private network itself. One thread counts them by flow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::host::Host;

/// Pause between two looks at the sockets, whose buffers hold far more than arrives meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes of packets that a socket may hold.
const BUFFER: usize = 32 * 1024 * 1024;

/// Every protocol of Ethernet (`ETH_P_ALL`).
const ALL: u16 = 3;

/// Flows that are told when a lab fails; more would hide them.
const TOLD: usize = 8;

/// Where a socket captures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On the way between clients and gateway: packets of protected flows are inside of ESP.
    Outside,
    /// Behind the gateway: what comes out of tunnels has its client's address as source.
    Inside,
}

/// Who sends what to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
}

/// What a lab has seen. Cheap to clone.
#[derive(Clone, Default)]
pub struct Leaks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    taps: Vec<(Side, Socket)>,
    /// Networks whose addresses nobody may see outside.
    protected: Vec<IpNet>,
    /// Sources that are at home behind the gateway.
    home: Vec<IpNet>,
    /// Sources that may come out of tunnels.
    own: Vec<IpNet>,
    expected: BTreeMap<u64, (IpNet, IpNet)>,
    numbers: u64,
    clear: BTreeMap<Flow, u64>,
    inside: BTreeMap<Flow, u64>,
}

/// While it lives, some packets may pass in clear.
pub struct Expected {
    leaks: Leaks,
    number: u64,
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut state = self.leaks.lock();
        state.drain();
        state.expected.remove(&self.number);
    }
}

impl Leaks {
    /// Captures on every interface of a host from now on.
    ///
    /// # Errors
    /// When the kernel refuses a packet socket.
    pub fn watch(&self, host: &Host, side: Side) -> Result<()> {
        let socket = host.enter(|| -> std::io::Result<Socket> {
            let protocol = Protocol::from(i32::from(ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let socket = socket.context("a packet socket")?;
        let mut state = self.lock();
        state.attach(side, &socket)?;
        state.taps.push((side, socket));
        if state.taps.len() == 1 {
            let inner = Arc::clone(&self.0);
            thread::spawn(move || {
                while !inner.over.load(Ordering::Acquire) {
                    inner.lock().drain();
                    thread::sleep(PAUSE);
                }
                inner.lock().taps.clear();
            });
        }
        Ok(())
    }

    /// Addresses of these networks must never be seen outside.
    ///
    /// # Errors
    /// When one is no network, or the kernel refuses the filter.
    pub fn protect(&self, networks: &[&str]) -> Result<()> {
        let networks = parse_all(networks)?;
        self.lock().change(|state| state.protected.extend(networks))
    }

    /// Behind the gateway these networks are no strangers.
    ///
    /// # Errors
    /// As [`Leaks::protect`].
    pub fn home(&self, networks: &[&str]) -> Result<()> {
        let networks = parse_all(networks)?;
        self.lock().change(|state| state.home.extend(networks))
    }

    /// Tunnels may bring packets with these sources: a client's addresses, a site's networks.
    ///
    /// # Errors
    /// When one is neither an address nor a network.
    pub fn own<T: AsRef<str>>(&self, networks: &[T]) -> Result<()> {
        let networks = parse_all(networks)?;
        self.lock().own.extend(networks);
        Ok(())
    }

    /// Packets between these networks may pass in clear while the answer lives: a negative
    /// control, a client without a tunnel.
    ///
    /// # Errors
    /// When one is neither an address nor a network.
    pub fn expect(&self, from: &str, to: &str) -> Result<Expected> {
        let pair = (parse(from)?, parse(to)?);
        let mut state = self.lock();
        state.drain();
        state.numbers += 1;
        let number = state.numbers;
        state.expected.insert(number, pair);
        drop(state);
        Ok(Expected { leaks: self.clone(), number })
    }

    /// As [`Leaks::expect`], to the end of the lab.
    ///
    /// # Errors
    /// As there.
    pub fn expect_from_now(&self, from: &str, to: &str) -> Result<()> {
        self.expect(from, to).map(std::mem::forget)
    }

    /// Packets that came out of tunnels so far.
    #[must_use]
    pub fn came_out(&self) -> u64 {
        let mut state = self.lock();
        state.drain();
        let own = |flow: &Flow| state.own.iter().any(|net| net.contains(&flow.from));
        state.inside.iter().filter(|(flow, _)| own(flow)).map(|(_, count)| count).sum()
    }

    /// What was seen that must not be; empty when all is well. Each packet is told once.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        let mut state = self.lock();
        state.drain();
        let clear = std::mem::take(&mut state.clear);
        let State { own, inside, .. } = &mut *state;
        let is_own = |flow: &Flow| own.iter().any(|net| net.contains(&flow.from));
        let (kept, foreign) = std::mem::take(inside).into_iter().partition(|(f, _)| is_own(f));
        *inside = kept;
        let foreign: BTreeMap<Flow, u64> = foreign;
        let told = |place: &str, flow: Flow, count: u64| {
            format!("{count} {place}: {} to {}, protocol {}", flow.from, flow.to, flow.protocol)
        };
        let clear = clear.into_iter().map(|(flow, count)| told("in clear outside", flow, count));
        let foreign = foreign.into_iter();
        let foreign =
            foreign.map(|(flow, count)| told("with a foreign source inside", flow, count));
        clear.chain(foreign).collect()
    }

    /// Fails when anything was seen that must not be.
    ///
    /// # Errors
    /// Names the flows.
    pub fn verdict(&self) -> Result<()> {
        let seen = self.take();
        if seen.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for line in seen.iter().take(TOLD) {
            let _ = write!(text, "\n    {line}");
        }
        bail!("packets leaked ({} flows):{text}", seen.len())
    }

    /// Ends the captures.
    pub(super) fn end(&self) {
        self.0.over.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Changes what the filters are made of.
    fn change(&mut self, change: impl FnOnce(&mut Self)) -> Result<()> {
        self.drain();
        change(self);
        self.taps.iter().try_for_each(|(side, socket)| self.attach(*side, socket))
    }

    fn attach(&self, side: Side, socket: &Socket) -> Result<()> {
        let program = match side {
            Side::Outside => filter(&self.protected, true),
            Side::Inside => filter(&self.home, false),
        };
        Ok(socket.attach_filter(&program?)?)
    }

    /// Counts everything that waits in the sockets.
    fn drain(&mut self) {
        let Self { taps, protected, home, expected, clear, inside, .. } = self;
        let within = |nets: &[IpNet], address| nets.iter().any(|net| net.contains(&address));
        for (side, socket) in taps {
            // The flow is in the header; the kernel drops the rest.
            let mut header = [0; 64];
            loop {
                let length = match socket.read(&mut header) {
                    Ok(length) => length,
                    // An interface that goes down is reported once.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.raw_os_error().is_some() => continue,
                    Err(_) => break,
                };
                let Some(flow) = header.get(..length).and_then(flow) else { continue };
                match side {
                    Side::Outside if within(protected, flow.from) || within(protected, flow.to) => {
                        let told = |(from, to): &(IpNet, IpNet)| {
                            from.contains(&flow.from) && to.contains(&flow.to)
                        };
                        if !expected.values().any(told) {
                            *clear.entry(flow).or_default() += 1;
                        }
                    }
                    Side::Inside if !within(home, flow.from) => {
                        *inside.entry(flow).or_default() += 1;
                    }
                    _ => {}
                }
            }
        }
    }
}

fn parse_all<T: AsRef<str>>(networks: &[T]) -> Result<Vec<IpNet>> {
    networks.iter().map(|network| parse(network.as_ref())).collect()
}

/// A network, or an address for itself.
fn parse(text: &str) -> Result<IpNet> {
    let address = || text.parse().ok().map(|address: IpAddr| address.into());
    let network: Option<IpNet> = text.parse().ok().or_else(address);
    Ok(network.with_context(|| format!("`{text}` is no network"))?.trunc())
}

/// Reads an IP header.
fn flow(packet: &[u8]) -> Option<Flow> {
    let v4 = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let v6 = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    match packet.first()? >> 4 {
        4 => Some(Flow { from: v4(12)?, to: v4(16)?, protocol: *packet.get(9)? }),
        6 => Some(Flow { from: v6(8)?, to: v6(24)?, protocol: *packet.get(6)? }),
        _ => None,
    }
}

/// A program of the kernel's packet filter: takes packets from (and with `both`, to) an address of
/// these networks, or, without `both`, those that come from none of them.
fn filter(networks: &[IpNet], both: bool) -> Result<Vec<SockFilter>> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const TAKE: u32 = 64;
    let (hit, miss) = if both { (TAKE, 0) } else { (0, TAKE) };
    let family = |v4: bool| -> Result<Vec<SockFilter>> {
        let mut program = Vec::new();
        let offsets: [u32; 2] = if v4 { [12, 16] } else { [8, 24] };
        let offsets = offsets.into_iter().take(if both { 2 } else { 1 });
        for offset in offsets {
            for network in networks.iter().filter(|net| net.addr().is_ipv4() == v4) {
                let words = words(network);
                for (number, (value, mask)) in words.iter().enumerate() {
                    let at = offset + 4 * u32::try_from(number)?;
                    // Past what is left of this network and its return.
                    let past = u8::try_from(3 * (words.len() - 1 - number) + 1)?;
                    program.push(SockFilter::new(LOAD_WORD, 0, 0, at));
                    program.push(SockFilter::new(AND, 0, 0, *mask));
                    program.push(SockFilter::new(JUMP_EQUAL, 0, past, *value));
                }
                program.push(SockFilter::new(RETURN, 0, 0, hit));
            }
        }
        program.push(SockFilter::new(RETURN, 0, 0, miss));
        Ok(program)
    };
    let (v4, v6) = (family(true)?, family(false)?);
    let mut program = vec![
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(AND, 0, 0, 0xf0),
        SockFilter::new(JUMP_EQUAL, 0, u8::try_from(v4.len())?, 0x40),
    ];
    program.extend(v4);
    program.push(SockFilter::new(JUMP_EQUAL, 0, u8::try_from(v6.len())?, 0x60));
    program.extend(v6);
    // Neither of both, such as ARP.
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    Ok(program)
}

/// A network as words of 32 bits, each with its mask, as far as the prefix reaches.
fn words(network: &IpNet) -> Vec<(u32, u32)> {
    let bits = match network.network() {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let prefix = u32::from(network.prefix_len());
    let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
    // Each word is the upper part of what is left.
    let word = |bits: u128, number: u32| (bits >> (96 - 32 * number)) as u32;
    (0..prefix.div_ceil(32)).map(|number| (word(bits, number), word(mask, number))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;
    use crate::lab::world::{Shape, World};

    #[test]
    fn networks_become_words_as_far_as_they_reach() {
        let of = |text: &str| words(&text.parse().unwrap());
        assert_eq!(of("10.77.0.0/16"), [(0x0a4d_0000, 0xffff_0000)]);
        assert_eq!(of("fd77::/64"), [(0xfd77_0000, u32::MAX), (0, u32::MAX)]);
        assert_eq!(of("fe80::/10"), [(0xfe80_0000, 0xffc0_0000)]);
        assert_eq!(of("0.0.0.0/0"), []);
    }

    #[test]
    fn headers_of_both_families_are_read() {
        let mut v4 = [0_u8; 20];
        v4[0] = 0x45;
        v4[9] = 17;
        v4[12..16].copy_from_slice(&[10, 77, 0, 2]);
        v4[16..20].copy_from_slice(&[10, 20, 0, 10]);
        let seen = flow(&v4).unwrap();
        assert_eq!(
            (seen.from.to_string(), seen.to.to_string()),
            ("10.77.0.2".into(), "10.20.0.10".into())
        );
        assert_eq!(seen.protocol, 17);
        let mut v6 = [0_u8; 40];
        v6[0] = 0x60;
        v6[8..10].copy_from_slice(&[0xfd, 0x77]);
        assert_eq!(flow(&v6).unwrap().from.to_string(), "fd77::");
        assert_eq!(flow(&v4[..19]), None);
        assert_eq!(flow(&[0, 1, 8, 0]), None, "ARP");
    }

    /// Sends one packet in clear from a host to an address and waits for no answer.
    fn send(host: &Host, from: &str, to: &str) {
        let socket = host.enter(|| std::net::UdpSocket::bind((from, 0))).unwrap().unwrap();
        socket.send_to(b"secret", (to, 9)).unwrap();
    }

    #[test]
    fn what_leaks_in_either_direction_is_seen() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to make network namespaces");
            return;
        }
        let lab = Lab::new("leaks", false).unwrap();
        let world = World::new(&lab, Shape::default()).unwrap();
        let leaks = lab.leaks();
        let (gateway, private) = (&world.gateway, &world.private);
        // Between outer addresses, and inside between those at home.
        send(world.runner(), "198.51.100.10", "203.0.113.2");
        send(private, "10.20.0.10", "10.20.0.1");
        send(gateway, "10.20.0.1", "10.20.0.10");
        leaks.verdict().unwrap();

        // A gateway that forgets its tunnels sends by its default route.
        send(private, "10.20.0.10", "10.77.0.9");
        let seen = leaks.take().join("; ");
        assert!(seen.contains("in clear outside: 10.20.0.10 to 10.77.0.9, protocol 17"), "{seen}");
        gateway.ip("route add fd77::/64 dev wan").unwrap();
        gateway.ip("neigh add fd77::9 lladdr 02:00:00:00:00:09 dev wan").unwrap();
        send(private, "fd20::10", "fd77::9");
        let seen = leaks.take().join("; ");
        assert!(seen.contains("in clear outside: fd20::10 to fd77::9, protocol 17"), "{seen}");

        // A client's packet without a tunnel, declared for as long as it is meant.
        let control = leaks.expect("198.51.0.0/16", "10.20.0.0/16").unwrap();
        send(world.runner(), "198.51.100.10", "10.20.0.10");
        drop(control);
        leaks.verdict().unwrap();
        send(world.runner(), "198.51.100.10", "10.20.0.10");
        let error = leaks.verdict().unwrap_err().to_string();
        assert!(error.contains("198.51.100.10 to 10.20.0.10"), "{error}");

        // What comes out of a tunnel has its client's source.
        gateway.ip("addr add 10.77.0.9/32 dev lo").unwrap();
        send(gateway, "10.77.0.9", "10.20.0.10");
        let seen = leaks.take();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].contains("foreign source inside: 10.77.0.9"), "{seen:?}");
        leaks.own(&["10.77.0.9"]).unwrap();
        send(gateway, "10.77.0.9", "10.20.0.10");
        assert_eq!(leaks.came_out(), 1);
        leaks.verdict().unwrap();
    }
}
