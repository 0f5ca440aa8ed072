//! Hand-made inner packets and checks on what comes out, independent of the plane's own code.

use std::net::IpAddr;

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    sum(&octets(source)) + sum(&octets(destination)) + u32::from(protocol) + len as u32
}

fn ip(source: &str, destination: &str, protocol: u8, mut upper: Vec<u8>, at: usize) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let checksum = !fold(pseudo(source, destination, protocol, upper.len()) + sum(&upper));
    upper[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + upper.len() as u16).to_be_bytes());
            packet.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            fix_header(&mut packet);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((upper.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("mixed families"),
    }
    packet.extend(upper);
    packet
}

fn fix_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let checksum = !fold(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

pub fn udp(source: &str, sport: u16, destination: &str, dport: u16, data: &[u8]) -> Vec<u8> {
    let mut upper = Vec::new();
    upper.extend(sport.to_be_bytes());
    upper.extend(dport.to_be_bytes());
    upper.extend((8 + data.len() as u16).to_be_bytes());
    upper.extend([0, 0]);
    upper.extend(data);
    ip(source, destination, 17, upper, 6)
}

fn tcp_with(source: &str, to: &str, seq: u32, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut upper = Vec::new();
    upper.extend([0x9c, 0x40, 1, 0xbb]);
    upper.extend(seq.to_be_bytes());
    upper.extend([0, 0, 0, 9, ((20 + options.len()) as u8 / 4) << 4, flags, 0x10, 0, 0, 0, 0, 0]);
    upper.extend(options);
    upper.extend(data);
    ip(source, to, 6, upper, 16)
}

pub fn tcp(source: &str, to: &str, seq: u32, data: &[u8]) -> Vec<u8> {
    tcp_with(source, to, seq, 0x10, &[], data)
}

pub fn syn(source: &str, to: &str, mss: u16) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    tcp_with(source, to, 1, 0x02, &[2, 4, high, low], &[])
}

fn upper_at(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 6 { 40 } else { 20 }
}

pub fn mss(packet: &[u8]) -> u16 {
    let at = upper_at(packet) + 22;
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

pub fn tcp_payload(packet: &[u8]) -> &[u8] {
    let upper = upper_at(packet);
    &packet[upper + usize::from(packet[upper + 12] >> 4) * 4..]
}

/// Type and code, if it is ICMP of either family.
pub fn icmp(packet: &[u8]) -> Option<(u8, u8)> {
    let protocol = if packet[0] >> 4 == 6 { packet[6] } else { packet[9] };
    let at = upper_at(packet);
    matches!(protocol, 1 | 58).then(|| (packet[at], packet[at + 1]))
}

pub fn allow_fragments(packet: &mut [u8]) {
    packet[6..8].fill(0);
    fix_header(packet);
}

pub fn with_tos(packet: &[u8], tos: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[1] = tos;
    fix_header(&mut packet);
    packet
}

fn addresses(packet: &[u8]) -> u32 {
    if packet[0] >> 4 == 6 { sum(&packet[8..40]) } else { sum(&packet[12..20]) }
}

/// The packet with only the pseudo header summed, as the network stack hands over a super-packet.
pub fn with_partial_checksum(packet: &[u8]) -> (Vec<u8>, usize) {
    let mut packet = packet.to_vec();
    let upper = upper_at(&packet);
    let partial = fold(addresses(&packet) + 6 + (packet.len() - upper) as u32);
    packet[upper + 16..upper + 18].copy_from_slice(&partial.to_be_bytes());
    (packet, upper)
}

/// Panics unless every length and checksum of a written packet is right, given its vnet header.
pub fn check(vnet: &[u8], packet: &[u8]) {
    let upper = upper_at(packet);
    let len = if upper == 40 {
        40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))
    } else {
        assert_eq!(fold(sum(&packet[..20])), 0xffff, "IPv4 header checksum");
        usize::from(u16::from_be_bytes([packet[2], packet[3]]))
    };
    assert_eq!(len, packet.len(), "length by the IP header");
    let protocol = if upper == 40 { packet[6] } else { packet[9] };
    let fragment = upper == 20 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    let start = match protocol {
        1 => 0,
        protocol => addresses(packet) + u32::from(protocol) + (len - upper) as u32,
    };
    if vnet[0] & 1 != 0 {
        // Left to the network stack: the field holds the pseudo header's sum.
        let field = u16::from_be_bytes([packet[upper + 16], packet[upper + 17]]);
        assert_eq!(field, fold(start), "partial checksum");
    } else if !fragment {
        assert_eq!(fold(start + sum(&packet[upper..])), 0xffff, "upper checksum");
    }
}
