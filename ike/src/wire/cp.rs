//! Configuration payload (RFC 7296 3.15, RFC 8598 for DNS domains).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::writer::fit16;
use super::{CfgAttrType, CfgType, Field, Part, Reader, WireError, Writer};

/// The most attributes accepted in one payload.
pub const MAX_CFG_ATTRS: usize = 128;

/// A request for, or a grant of, addresses and what belongs to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// Request, reply, set or acknowledgement.
    pub cfg_type: CfgType,
    /// The attributes, in order.
    pub attributes: Vec<CfgAttr>,
}

/// A configuration attribute. `None` is an empty value: "please choose" in a request.
///
/// A value whose length its type does not have is kept as [`CfgAttr::Other`]: some clients send
/// such, and nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CfgAttr {
    /// INTERNAL_IP4_ADDRESS: the client's address.
    Ip4Address(Option<Ipv4Addr>),
    /// INTERNAL_IP4_NETMASK: the netmask of the client's network.
    Ip4Netmask(Option<Ipv4Addr>),
    /// INTERNAL_IP4_DNS: a DNS server.
    Ip4Dns(Option<Ipv4Addr>),
    /// INTERNAL_IP4_NBNS: a NetBIOS name server.
    Ip4Nbns(Option<Ipv4Addr>),
    /// INTERNAL_IP4_DHCP: a DHCP server.
    Ip4Dhcp(Option<Ipv4Addr>),
    /// INTERNAL_IP4_SUBNET: a network behind the sender, address and mask.
    Ip4Subnet(Option<(Ipv4Addr, Ipv4Addr)>),
    /// INTERNAL_IP6_ADDRESS: the client's address and its prefix length.
    Ip6Address(Option<(Ipv6Addr, u8)>),
    /// INTERNAL_IP6_DNS: a DNS server.
    Ip6Dns(Option<Ipv6Addr>),
    /// INTERNAL_IP6_DHCP: a DHCP server.
    Ip6Dhcp(Option<Ipv6Addr>),
    /// INTERNAL_IP6_SUBNET: a network behind the sender, address and prefix length.
    Ip6Subnet(Option<(Ipv6Addr, u8)>),
    /// APPLICATION_VERSION: free text.
    ApplicationVersion(Vec<u8>),
    /// SUPPORTED_ATTRIBUTES: the types the sender knows.
    Supported(Vec<CfgAttrType>),
    /// INTERNAL_DNS_DOMAIN: a domain the internal servers answer for (RFC 8598 4.1).
    DnsDomain(Vec<u8>),
    /// Any other attribute.
    Other {
        /// The type.
        kind: CfgAttrType,
        /// The value.
        value: Vec<u8>,
    },
}

impl Configuration {
    /// A payload of `cfg_type`.
    pub fn new(cfg_type: CfgType, attributes: Vec<CfgAttr>) -> Self {
        Self { cfg_type, attributes }
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let cfg_type = r.u8()?.into();
        r.take(3)?; // reserved
        let mut attributes = Vec::new();
        while !r.is_empty() {
            if attributes.len() == MAX_CFG_ATTRS {
                return Err(WireError::TooMany { part: Part::CfgAttribute, limit: MAX_CFG_ATTRS });
            }
            // The first bit is reserved (RFC 7296 3.15.1).
            let kind = CfgAttrType::from(r.u16()? & 0x7fff);
            let length = r.u16()?;
            let mut value = r.sub(usize::from(length), Part::CfgAttribute)?;
            attributes.push(CfgAttr::from_value(kind, value.rest()));
        }
        Ok(Self { cfg_type, attributes })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if self.attributes.len() > MAX_CFG_ATTRS {
            return Err(WireError::TooMany { part: Part::CfgAttribute, limit: MAX_CFG_ATTRS });
        }
        w.u8(self.cfg_type.value());
        w.bytes(&[0; 3]);
        for attribute in &self.attributes {
            let kind = attribute.kind().value();
            if kind > 0x7fff {
                let part = Part::CfgAttribute;
                return Err(WireError::Invalid { part, field: Field::AttributeType, at: 0 });
            }
            let value = attribute.value();
            w.u16(kind);
            w.u16(fit16(value.len(), Part::CfgAttribute)?);
            w.bytes(&value);
        }
        Ok(())
    }
}

impl CfgAttr {
    /// The attribute's type.
    pub fn kind(&self) -> CfgAttrType {
        match self {
            Self::Ip4Address(_) => CfgAttrType::InternalIp4Address,
            Self::Ip4Netmask(_) => CfgAttrType::InternalIp4Netmask,
            Self::Ip4Dns(_) => CfgAttrType::InternalIp4Dns,
            Self::Ip4Nbns(_) => CfgAttrType::InternalIp4Nbns,
            Self::Ip4Dhcp(_) => CfgAttrType::InternalIp4Dhcp,
            Self::Ip4Subnet(_) => CfgAttrType::InternalIp4Subnet,
            Self::Ip6Address(_) => CfgAttrType::InternalIp6Address,
            Self::Ip6Dns(_) => CfgAttrType::InternalIp6Dns,
            Self::Ip6Dhcp(_) => CfgAttrType::InternalIp6Dhcp,
            Self::Ip6Subnet(_) => CfgAttrType::InternalIp6Subnet,
            Self::ApplicationVersion(_) => CfgAttrType::ApplicationVersion,
            Self::Supported(_) => CfgAttrType::SupportedAttributes,
            Self::DnsDomain(_) => CfgAttrType::InternalDnsDomain,
            Self::Other { kind, .. } => *kind,
        }
    }

    /// The value's octets.
    pub fn value(&self) -> Vec<u8> {
        match self {
            Self::Ip4Address(v)
            | Self::Ip4Netmask(v)
            | Self::Ip4Dns(v)
            | Self::Ip4Nbns(v)
            | Self::Ip4Dhcp(v) => v.map(|a| a.octets().to_vec()).unwrap_or_default(),
            Self::Ip4Subnet(v) => {
                v.map(|(a, mask)| [a.octets(), mask.octets()].concat()).unwrap_or_default()
            }
            Self::Ip6Dns(v) | Self::Ip6Dhcp(v) => {
                v.map(|a| a.octets().to_vec()).unwrap_or_default()
            }
            Self::Ip6Address(v) | Self::Ip6Subnet(v) => {
                v.map(|(a, prefix)| [&a.octets()[..], &[prefix]].concat()).unwrap_or_default()
            }
            Self::Supported(kinds) => {
                kinds.iter().flat_map(|kind| kind.value().to_be_bytes()).collect()
            }
            Self::ApplicationVersion(v) | Self::DnsDomain(v) | Self::Other { value: v, .. } => {
                v.clone()
            }
        }
    }

    fn from_value(kind: CfgAttrType, value: &[u8]) -> Self {
        Self::known(kind, value).unwrap_or_else(|| Self::Other { kind, value: value.to_vec() })
    }

    /// The typed attribute, or none for an unknown type or a value its type does not have.
    fn known(kind: CfgAttrType, value: &[u8]) -> Option<Self> {
        Some(match kind {
            CfgAttrType::InternalIp4Address => Self::Ip4Address(optional(value, ip4)?),
            CfgAttrType::InternalIp4Netmask => Self::Ip4Netmask(optional(value, ip4)?),
            CfgAttrType::InternalIp4Dns => Self::Ip4Dns(optional(value, ip4)?),
            CfgAttrType::InternalIp4Nbns => Self::Ip4Nbns(optional(value, ip4)?),
            CfgAttrType::InternalIp4Dhcp => Self::Ip4Dhcp(optional(value, ip4)?),
            CfgAttrType::InternalIp4Subnet => Self::Ip4Subnet(optional(value, ip4_pair)?),
            CfgAttrType::InternalIp6Address => Self::Ip6Address(optional(value, ip6_prefix)?),
            CfgAttrType::InternalIp6Dns => Self::Ip6Dns(optional(value, ip6)?),
            CfgAttrType::InternalIp6Dhcp => Self::Ip6Dhcp(optional(value, ip6)?),
            CfgAttrType::InternalIp6Subnet => Self::Ip6Subnet(optional(value, ip6_prefix)?),
            CfgAttrType::ApplicationVersion => Self::ApplicationVersion(value.to_vec()),
            CfgAttrType::InternalDnsDomain => Self::DnsDomain(value.to_vec()),
            CfgAttrType::SupportedAttributes => {
                let (kinds, rest) = value.as_chunks::<2>();
                if !rest.is_empty() {
                    return None;
                }
                let kinds = kinds.iter().map(|kind| u16::from_be_bytes(*kind) & 0x7fff);
                Self::Supported(kinds.map(CfgAttrType::from).collect())
            }
            _ => return None,
        })
    }
}

/// `Some(None)` for an empty value, none for one that `parse` refuses.
fn optional<T>(value: &[u8], parse: fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

fn ip4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

fn ip6(value: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(value).ok().map(Ipv6Addr::from)
}

fn ip4_pair(value: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (address, mask) = value.split_at_checked(4)?;
    Some((ip4(address)?, ip4(mask)?))
}

fn ip6_prefix(value: &[u8]) -> Option<(Ipv6Addr, u8)> {
    let (prefix, address) = value.split_last()?;
    (*prefix <= 128).then_some((ip6(address)?, *prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PayloadType;

    fn parse(body: &[u8]) -> Result<Configuration, WireError> {
        Configuration::parse(Reader::new(body, Part::Payload(PayloadType::Cp), 0))
    }

    fn encode(cp: &Configuration) -> Vec<u8> {
        let mut w = Writer::new();
        cp.write(&mut w).unwrap();
        w.into_vec()
    }

    #[test]
    fn request_has_empty_values() {
        // RFC 7296 2.19: CP(CFG_REQUEST) = INTERNAL_ADDRESS(), INTERNAL_DNS()
        let body = [1, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0];

        let cp = parse(&body).unwrap();

        let attributes =
            vec![CfgAttr::Ip4Address(None), CfgAttr::Ip4Dns(None), CfgAttr::Ip6Address(None)];
        assert_eq!(cp, Configuration::new(CfgType::Request, attributes));
        assert_eq!(encode(&cp), body);
    }

    #[test]
    fn reply_has_addresses() {
        let v6: Ipv6Addr = "fd77::5".parse().unwrap();
        let attributes = vec![
            CfgAttr::Ip4Address(Some([10, 77, 0, 5].into())),
            CfgAttr::Ip4Netmask(Some([255, 255, 255, 255].into())),
            CfgAttr::Ip4Subnet(Some(([10, 20, 0, 0].into(), [255, 255, 0, 0].into()))),
            CfgAttr::Ip6Address(Some((v6, 128))),
            CfgAttr::Ip6Dns(Some(v6)),
            CfgAttr::Ip6Subnet(Some((v6, 64))),
            CfgAttr::DnsDomain(b"ci.example.com".to_vec()),
            CfgAttr::Supported(vec![CfgAttrType::InternalIp4Address, CfgAttrType::Unknown(99)]),
        ];
        let cp = Configuration::new(CfgType::Reply, attributes);

        let bytes = encode(&cp);

        // RFC 7296 3.15.1: INTERNAL_IP6_ADDRESS has 17 octets.
        assert_eq!(bytes[32..36], [0, 8, 0, 17]);
        assert_eq!(parse(&bytes), Ok(cp));
    }

    #[test]
    fn reserved_bit_of_the_type_is_ignored() {
        let cp = parse(&[1, 0, 0, 0, 0x80, 1, 0, 0]).unwrap();

        assert_eq!(cp.attributes, [CfgAttr::Ip4Address(None)]);
    }

    #[test]
    fn values_of_the_wrong_length_are_kept_untyped() {
        for value in [&[10, 0, 0][..], &[0; 17]] {
            let length = value.len() as u8;
            let body = [&[2, 0, 0, 0, 0, 1, 0, length], value].concat();
            let cp = parse(&body).unwrap();
            assert_eq!(
                cp.attributes,
                [CfgAttr::Other { kind: CfgAttrType::InternalIp4Address, value: value.to_vec() }]
            );
            assert_eq!(encode(&cp), body);
        }
        let prefix_129 = [&[2, 0, 0, 0, 0, 8, 0, 17][..], &[0; 16], &[129]].concat();
        assert!(matches!(parse(&prefix_129).unwrap().attributes[0], CfgAttr::Other { .. }));
    }

    #[test]
    fn a_value_cut_short_is_truncated() {
        assert_eq!(
            parse(&[1, 0, 0, 0, 0, 1, 0, 4, 10]).unwrap_err(),
            WireError::Truncated { part: Part::Payload(PayloadType::Cp), at: 8, missing: 3 }
        );
    }

    #[test]
    fn attributes_are_counted() {
        let body = [vec![1, 0, 0, 0], [0, 1, 0, 0].repeat(MAX_CFG_ATTRS + 1)].concat();

        assert_eq!(
            parse(&body),
            Err(WireError::TooMany { part: Part::CfgAttribute, limit: MAX_CFG_ATTRS })
        );
    }
}
