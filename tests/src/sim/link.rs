//! The simulated network between nodes: loses, duplicates, delays and reorders datagrams, by seed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ike::Timestamp;

use super::rng::Rng;

/// How bad the network is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Datagrams lost, in percent.
    pub loss: u64,
    /// Datagrams delivered twice, in percent.
    pub duplicate: u64,
    /// One-way delay of every datagram.
    pub delay: Duration,
    /// Extra random delay: enough of it reorders.
    pub jitter: Duration,
    /// Datagrams held back for a second or more, in percent: late duplicates of the past.
    pub straggle: u64,
}

impl Weather {
    /// Nothing is lost, nothing overtakes.
    pub const FINE: Self = Self {
        loss: 0,
        duplicate: 0,
        delay: Duration::from_millis(5),
        jitter: Duration::ZERO,
        straggle: 0,
    };

    /// Loss, duplication, reordering and stragglers.
    pub const STORM: Self = Self {
        loss: 20,
        duplicate: 15,
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(60),
        straggle: 5,
    };
}

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// As the receiver will see it.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// With a non-ESP marker.
    pub encap: bool,
    /// The IKE message.
    pub payload: Vec<u8>,
}

/// Something done to a datagram by who has no keys.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// This octet, counted from the front, is combined with that one.
    Flip(usize, u8),
    /// What is behind this many octets is cut off.
    Cut(usize),
    /// It comes twice.
    Twice,
}

/// The network: weather, NAT boxes, partitions.
#[derive(Debug)]
pub struct Link {
    /// How bad it is now.
    pub weather: Weather,
    rng: Rng,
    /// Inside address → outside address, for hosts behind a NAT box.
    nat: BTreeMap<IpAddr, Nat>,
    /// Hosts that are cut off.
    cut: Vec<IpAddr>,
    /// Drop this many datagrams before the weather decides again.
    drop_next: u32,
    /// What happens to the next datagram's octets: all that is sent is changed until this is empty.
    pub changes: Vec<Change>,
    /// Counts for the report of a walk.
    pub sent: u64,
    /// Datagrams that were lost.
    pub lost: u64,
}

#[derive(Debug)]
struct Nat {
    outside: IpAddr,
    next_port: u16,
    /// Inside port → outside port.
    mappings: BTreeMap<u16, u16>,
}

impl Link {
    /// A network of a seed.
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self {
            weather,
            rng: Rng::new(seed, 0x119c),
            nat: BTreeMap::new(),
            cut: Vec::new(),
            drop_next: 0,
            changes: Vec::new(),
            sent: 0,
            lost: 0,
        }
    }

    /// Puts a host behind a NAT box with that outside address.
    pub fn nat(&mut self, inside: IpAddr, outside: IpAddr) {
        self.nat.insert(inside, Nat { outside, next_port: 20_000, mappings: BTreeMap::new() });
    }

    /// Forgets a NAT box's mappings: the next datagram gets another port.
    pub fn rebind(&mut self, inside: IpAddr) {
        if let Some(nat) = self.nat.get_mut(&inside) {
            nat.mappings.clear();
        }
    }

    /// Cuts a host off, or joins it again.
    pub fn partition(&mut self, host: IpAddr, cut: bool) {
        self.cut.retain(|other| *other != host);
        if cut {
            self.cut.push(host);
        }
    }

    /// Drops the next datagrams whatever the weather.
    pub fn drop_next(&mut self, count: u32) {
        self.drop_next = count;
    }

    /// When and as what a datagram arrives: never, once, or more than once.
    pub fn carry(&mut self, now: Timestamp, mut packet: Packet) -> Vec<(Timestamp, Packet)> {
        self.sent += 1;
        let mut more = 0;
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Flip(at, with) => {
                    if let Some(octet) = packet.payload.get_mut(at) {
                        *octet ^= with;
                    }
                }
                Change::Cut(len) => packet.payload.truncate(len),
                Change::Twice => more = 1,
            }
        }
        if self.cut.contains(&packet.from.ip()) || self.cut.contains(&packet.to.ip()) {
            self.lost += 1;
            return Vec::new();
        }
        let Some(packet) = self.translate(packet) else {
            self.lost += 1;
            return Vec::new();
        };
        let mut arrivals = Vec::new();
        let copies = 1 + more + u64::from(self.rng.chance(self.weather.duplicate));
        for _ in 0..copies {
            if self.drop_next > 0 {
                self.drop_next -= 1;
                self.lost += 1;
                continue;
            }
            if self.rng.chance(self.weather.loss) {
                self.lost += 1;
                continue;
            }
            let jitter = u64::try_from(self.weather.jitter.as_micros()).unwrap_or(0);
            let mut delay = self.weather.delay + Duration::from_micros(self.rng.below(jitter + 1));
            if self.rng.chance(self.weather.straggle) {
                delay += Duration::from_millis(1000 + self.rng.below(4000));
            }
            arrivals.push((now + delay, packet.clone()));
        }
        arrivals
    }

    fn translate(&mut self, mut packet: Packet) -> Option<Packet> {
        if let Some(nat) = self.nat.get_mut(&packet.from.ip()) {
            let inside = packet.from.port();
            let next = nat.next_port;
            let port = *nat.mappings.entry(inside).or_insert(next);
            if port == next {
                nat.next_port = nat.next_port.wrapping_add(1).max(20_000);
            }
            packet.from = SocketAddr::new(nat.outside, port);
        }
        let behind = self.nat.iter().find(|(_, nat)| nat.outside == packet.to.ip());
        if let Some((inside, nat)) = behind {
            let port = nat.mappings.iter().find(|(_, out)| **out == packet.to.port())?.0;
            packet.to = SocketAddr::new(*inside, *port);
        }
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str) -> Packet {
        Packet {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            encap: false,
            payload: vec![1],
        }
    }

    #[test]
    fn nat_maps_both_ways_and_forgets_on_rebind() {
        let mut link = Link::new(1, Weather::FINE);
        link.nat("10.0.0.2".parse().unwrap(), "198.51.100.1".parse().unwrap());
        let out = link.carry(Timestamp(0), packet("10.0.0.2:500", "192.0.2.1:500"));
        let seen = out[0].1.from;
        assert_eq!(seen.ip().to_string(), "198.51.100.1");
        let back = link.carry(Timestamp(0), packet("192.0.2.1:500", &seen.to_string()));
        assert_eq!(back[0].1.to, "10.0.0.2:500".parse().unwrap());
        link.rebind("10.0.0.2".parse().unwrap());
        assert!(link.carry(Timestamp(0), packet("192.0.2.1:500", &seen.to_string())).is_empty());
        let again = link.carry(Timestamp(0), packet("10.0.0.2:500", "192.0.2.1:500"));
        assert_ne!(again[0].1.from, seen);
    }

    #[test]
    fn a_storm_loses_doubles_and_reorders_by_seed() {
        let run = |seed| {
            let mut link = Link::new(seed, Weather::STORM);
            (0..500)
                .flat_map(|i| {
                    let mut packet = packet("192.0.2.2:500", "192.0.2.1:500");
                    packet.payload = vec![(i % 256) as u8];
                    link.carry(Timestamp(i * 1000), packet)
                })
                .collect::<Vec<_>>()
        };
        let arrivals = run(3);
        assert_eq!(arrivals, run(3));
        assert_ne!(arrivals, run(4));
        assert!(arrivals.windows(2).any(|pair| pair[0].0 > pair[1].0), "nothing overtook");
    }
}
