//! Traffic Selector payloads (RFC 7296 3.13).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::writer::fit8;
use super::{Field, Part, PayloadType, Reader, TsType, WireError, Writer};

/// The most selectors accepted in one payload.
pub const MAX_SELECTORS: usize = 128;

/// Traffic of one protocol between ports and addresses, bounds included.
///
/// For ICMP and ICMPv6 a "port" is type times 256 plus code (RFC 7296 3.13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficSelector {
    /// IP protocol number, 0 for any.
    pub protocol: u8,
    /// First port.
    pub start_port: u16,
    /// Last port. A first port of 65535 and a last one of 0 mean OPAQUE: packets whose ports
    /// cannot be seen.
    pub end_port: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address, of the same family.
    pub end: IpAddr,
}

impl TrafficSelector {
    /// All ports of all protocols between two addresses.
    pub fn addresses(start: IpAddr, end: IpAddr) -> Self {
        Self { protocol: 0, start_port: 0, end_port: u16::MAX, start, end }
    }

    /// Everything of IPv4.
    pub fn any_v4() -> Self {
        Self::addresses(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into())
    }

    /// Everything of IPv6.
    pub fn any_v6() -> Self {
        Self::addresses(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from([0xff; 16]).into())
    }

    /// Whether it stands for packets whose ports cannot be seen (RFC 7296 3.13.1).
    pub fn is_opaque(&self) -> bool {
        self.start_port == u16::MAX && self.end_port == 0
    }

    /// Whether it stands for every port.
    pub fn is_any_port(&self) -> bool {
        self.start_port == 0 && self.end_port == u16::MAX
    }

    /// An ICMP type and code packed as a port.
    pub fn icmp_port(icmp_type: u8, code: u8) -> u16 {
        u16::from_be_bytes([icmp_type, code])
    }

    /// The ICMP type and code that a port packs.
    pub fn icmp_type_code(port: u16) -> (u8, u8) {
        let [icmp_type, code] = port.to_be_bytes();
        (icmp_type, code)
    }

    fn is_valid(&self) -> bool {
        self.start.is_ipv4() == self.end.is_ipv4()
            && self.start <= self.end
            && (self.start_port <= self.end_port || self.is_opaque())
    }

    fn parse_body(mut r: Reader<'_>, ts_type: TsType, protocol: u8) -> Result<Self, WireError> {
        let wrong = r.invalid(Field::Range);
        let (start_port, end_port) = (r.u16()?, r.u16()?);
        let (start, end) = match ts_type {
            TsType::Ipv4AddrRange => {
                (Ipv4Addr::from(r.u32()?).into(), Ipv4Addr::from(r.u32()?).into())
            }
            _ => (Ipv6Addr::from(r.array::<16>()?).into(), Ipv6Addr::from(r.array::<16>()?).into()),
        };
        r.finish()?;
        let selector = Self { protocol, start_port, end_port, start, end };
        if selector.is_valid() { Ok(selector) } else { Err(wrong) }
    }

    fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if !self.is_valid() {
            return Err(WireError::Invalid { part: Part::Selector, field: Field::Range, at: 0 });
        }
        let (ts_type, length) = match self.start {
            IpAddr::V4(_) => (TsType::Ipv4AddrRange, 16),
            IpAddr::V6(_) => (TsType::Ipv6AddrRange, 40),
        };
        w.u8(ts_type.value());
        w.u8(self.protocol);
        w.u16(length);
        w.u16(self.start_port);
        w.u16(self.end_port);
        for address in [self.start, self.end] {
            match address {
                IpAddr::V4(v4) => w.bytes(&v4.octets()),
                IpAddr::V6(v6) => w.bytes(&v6.octets()),
            }
        }
        Ok(())
    }
}

/// `10.0.0.0-10.0.0.255`, with `/6/80` or `/6/80-443` when protocol or ports are limited.
impl std::fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.start)?;
        if self.start != self.end {
            write!(f, "-{}", self.end)?;
        }
        if self.protocol == 0 && self.is_any_port() {
            return Ok(());
        }
        write!(f, "/{}", self.protocol)?;
        match (self.start_port, self.end_port) {
            _ if self.is_any_port() => Ok(()),
            _ if self.is_opaque() => f.write_str("/opaque"),
            (start, end) if start == end => write!(f, "/{start}"),
            (start, end) => write!(f, "/{start}-{end}"),
        }
    }
}

/// A selector of another type, kept as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownSelector {
    /// The type.
    pub ts_type: TsType,
    /// The octet after it: an IP protocol in the known types.
    pub protocol: u8,
    /// What follows the length.
    pub data: Vec<u8>,
}

/// The selectors of one side. Encoding puts unknown ones last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficSelectors {
    /// Address ranges, in the order of preference (RFC 7296 2.9).
    pub selectors: Vec<TrafficSelector>,
    /// Selectors of other types.
    pub unknown: Vec<UnknownSelector>,
}

impl TrafficSelectors {
    /// A payload of address ranges.
    pub fn new(selectors: Vec<TrafficSelector>) -> Self {
        Self { selectors, unknown: Vec::new() }
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let count = usize::from(r.u8()?);
        r.take(3)?; // reserved
        if count > MAX_SELECTORS {
            return Err(WireError::TooMany { part: Part::Selector, limit: MAX_SELECTORS });
        }
        let mut out = Self::default();
        for _ in 0..count {
            let ts_type = TsType::from(r.u8()?);
            let protocol = r.u8()?;
            let length = r.u16()?;
            let mut body = r.body(length, 4, Part::Selector)?;
            match ts_type {
                TsType::Ipv4AddrRange | TsType::Ipv6AddrRange => {
                    out.selectors.push(TrafficSelector::parse_body(body, ts_type, protocol)?);
                }
                _ => {
                    let data = body.rest().to_vec();
                    out.unknown.push(UnknownSelector { ts_type, protocol, data });
                }
            }
        }
        r.finish()?;
        Ok(out)
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        let count = self.selectors.len().saturating_add(self.unknown.len());
        if count > MAX_SELECTORS {
            return Err(WireError::TooMany { part: Part::Selector, limit: MAX_SELECTORS });
        }
        w.u8(fit8(count, Part::Payload(PayloadType::TsI))?);
        w.bytes(&[0; 3]);
        self.selectors.iter().try_for_each(|selector| selector.write(w))?;
        for unknown in &self.unknown {
            let start = w.len();
            w.u8(unknown.ts_type.value());
            w.u8(unknown.protocol);
            let length_at = w.len();
            w.u16(0);
            w.bytes(&unknown.data);
            w.set_len16(length_at, start, Part::Selector)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<TrafficSelectors, WireError> {
        TrafficSelectors::parse(Reader::new(body, Part::Payload(PayloadType::TsI), 0))
    }

    fn encode(ts: &TrafficSelectors) -> Vec<u8> {
        let mut w = Writer::new();
        ts.write(&mut w).unwrap();
        w.into_vec()
    }

    /// RFC 7296 3.13.1, figure 20: TCP 443 at 10.20.0.10.
    const V4: [u8; 20] =
        [1, 0, 0, 0, 7, 6, 0, 16, 0x01, 0xbb, 0x01, 0xbb, 10, 20, 0, 10, 10, 20, 0, 10];

    #[test]
    fn v4_range() {
        let ts = parse(&V4).unwrap();

        let expected = TrafficSelector {
            protocol: 6,
            start_port: 443,
            end_port: 443,
            start: [10, 20, 0, 10].into(),
            end: [10, 20, 0, 10].into(),
        };
        assert_eq!(ts, TrafficSelectors::new(vec![expected]));
        assert_eq!(encode(&ts), V4);
    }

    #[test]
    fn v6_range_has_forty_octets() {
        let ts = TrafficSelectors::new(vec![TrafficSelector::any_v6()]);

        let bytes = encode(&ts);

        assert_eq!(bytes[4..8], [8, 0, 0, 40]);
        assert_eq!(parse(&bytes), Ok(ts));
    }

    #[test]
    fn ranges_run_upwards() {
        for (at, value) in [(8, 0x02), (12, 11)] {
            let mut bytes = V4;
            bytes[at] = value;
            assert_eq!(
                parse(&bytes),
                Err(WireError::Invalid { part: Part::Selector, field: Field::Range, at: 8 })
            );
        }
    }

    #[test]
    fn opaque_ports_run_downwards() {
        // RFC 7296 3.13.1
        let mut bytes = V4;
        bytes[8..12].copy_from_slice(&[0xff, 0xff, 0, 0]);

        assert!(parse(&bytes).unwrap().selectors[0].is_opaque());
    }

    #[test]
    fn icmp_type_and_code_pack_as_a_port() {
        assert_eq!(TrafficSelector::icmp_port(8, 1), 0x0801);
        assert_eq!(TrafficSelector::icmp_type_code(0x0801), (8, 1));
    }

    #[test]
    fn selectors_of_other_types_are_kept() {
        // RFC 9478: a security label
        let bytes = [1, 0, 0, 0, 10, 0, 0, 7, b'a', b'b', 0];

        let ts = parse(&bytes).unwrap();

        assert_eq!(ts.unknown[0].ts_type, TsType::SecLabel);
        assert_eq!(encode(&ts), bytes);
    }

    #[test]
    fn count_must_be_what_follows() {
        let mut bytes = V4;
        bytes[0] = 2;
        assert!(matches!(parse(&bytes), Err(WireError::Truncated { .. })));
        bytes[0] = 0;
        assert!(matches!(parse(&bytes), Err(WireError::Trailing { extra: 16, .. })));
        bytes[0] = 129;
        assert_eq!(
            parse(&bytes),
            Err(WireError::TooMany { part: Part::Selector, limit: MAX_SELECTORS })
        );
    }

    #[test]
    fn length_must_be_the_types() {
        let mut bytes = V4.to_vec();
        bytes[7] = 15;
        assert!(parse(&bytes).is_err());
        bytes[7] = 17;
        bytes.push(0);
        assert!(matches!(parse(&bytes), Err(WireError::Trailing { extra: 1, .. })));
    }

    #[test]
    fn families_must_not_mix() {
        let mixed = TrafficSelector::addresses([10, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into());

        assert!(TrafficSelectors::new(vec![mixed]).write(&mut Writer::new()).is_err());
    }

    #[test]
    fn display_shows_only_limits() {
        assert_eq!(TrafficSelector::any_v4().to_string(), "0.0.0.0-255.255.255.255");
        assert_eq!(parse(&V4).unwrap().selectors[0].to_string(), "10.20.0.10/6/443");
    }
}
