//! Single rtnetlink operations on links, addresses and routes.
//!
//! Requests are written with `netlink-packet-route`'s types; answers are read with the checked
//! attribute walk of [`crate::netlink`], because that crate slices before it checks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoXfrm, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::error::PlaneError;
use crate::netlink::{Attrs, Message, Netlink, Protocol, attr_u32};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// Lengths of struct ifinfomsg, ifaddrmsg and rtmsg.
const LINK_FIXED: usize = 16;
const ADDRESS_FIXED: usize = 8;
const ROUTE_FIXED: usize = 12;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_XFRM_IF_ID: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u32 = 254;
const RTN_LOCAL: u8 = 2;
const RTN_UNREACHABLE: u8 = 7;
const IFF_UP: u32 = 1;

/// Marks Runnel's routes in `ip route` (`proto 207`), so that leftovers of a killed instance are
/// told from an administrator's routes. Of the numbers no routing daemon claims.
const ROUTE_PROTOCOL: u8 = 207;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The identifier of an xfrm interface; `None` for other types.
    pub xfrm_if_id: Option<u32>,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: IpNet,
    pub(super) interface: Option<u32>,
    pub(super) metric: u32,
    pub(super) ours: bool,
    pub(super) unreachable: bool,
}

/// What to do with packets for a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Send them out of an interface, with this source address.
    Interface { index: u32, source: Option<IpAddr> },
    /// Answer that the network is unreachable.
    Unreachable { metric: u32 },
}

/// The kernel's decision for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) interface: Option<u32>,
    pub(super) local: bool,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
}

/// An rtnetlink socket with the operations Runnel needs.
#[derive(Debug)]
pub struct RouteSocket {
    netlink: Netlink,
}

impl RouteSocket {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> Result<Self, PlaneError> {
        Ok(Self { netlink: Netlink::open(Protocol::Route)? })
    }

    /// Finds an interface by name.
    ///
    /// # Errors
    /// When netlink fails; an interface that does not exist is `None`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, PlaneError> {
        let message = Message::new(RTM_GETLINK, 0, &[0; LINK_FIXED]).attr_str(IFLA_IFNAME, name);
        self.find_link(message, name)
    }

    /// Finds an interface by index.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, PlaneError> {
        let mut fixed = [0; LINK_FIXED];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        self.find_link(Message::new(RTM_GETLINK, 0, &fixed), &index.to_string())
    }

    fn find_link(&mut self, message: Message, name: &str) -> Result<Option<Link>, PlaneError> {
        match self.netlink.try_query(message)? {
            Ok((RTM_NEWLINK, payload)) => parse_link(&payload).map(Some),
            Ok((kind, _)) => Err(unexpected(kind)),
            Err(refusal) if refusal.errno == libc::ENODEV => Ok(None),
            Err(refusal) => Err(refusal.into_error(format!("show interface {name}"))),
        }
    }

    /// Sets an interface's MTU (bytes) and brings it up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_link_up(&mut self, link: &Link, mtu: u32) -> Result<(), PlaneError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.netlink.request(
            &format!("bring interface {} up with MTU {mtu}", link.name),
            Message::emit(RTM_SETLINK, 0, &message),
        )
    }

    /// Makes an xfrm interface with an `if_id`, down and without an underlying device.
    ///
    /// # Errors
    /// The kernel's refusal; it lacks the type or the name is taken.
    pub fn add_xfrm_interface(&mut self, name: &str, if_id: u32) -> Result<(), PlaneError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Xfrm),
            LinkInfo::Data(InfoData::Xfrm(vec![InfoXfrm::IfId(if_id)])),
        ]));
        self.netlink.request(
            &format!("make the xfrm interface {name}"),
            Message::emit(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message),
        )
    }

    /// Deletes an interface; one that does not exist is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_link(&mut self, name: &str) -> Result<(), PlaneError> {
        let message = Message::new(RTM_DELLINK, 0, &[0; LINK_FIXED]).attr_str(IFLA_IFNAME, name);
        match self.netlink.try_request(message)? {
            Err(refusal) if refusal.errno != libc::ENODEV => {
                Err(refusal.into_error(format!("delete interface {name}")))
            }
            _ => Ok(()),
        }
    }

    /// Every address of this machine, with the index of its interface.
    pub(super) fn addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, PlaneError> {
        let message = Message::new(RTM_GETADDR, 0, &[0; ADDRESS_FIXED]);
        self.netlink.dump("list addresses", &message, |_, payload| parse_address(payload).map(Some))
    }

    /// Gives an interface an address without a route; repeating it is no error.
    pub(super) fn add_address(&mut self, link: &Link, address: IpAddr) -> Result<(), PlaneError> {
        let message = address_message(link.index, address);
        self.netlink.request(
            &format!("add address {address} to {}", link.name),
            Message::emit(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message),
        )
    }

    /// Takes an address from an interface; one that is not there is no error.
    pub(super) fn delete_address(
        &mut self,
        link: &Link,
        address: IpAddr,
    ) -> Result<(), PlaneError> {
        let message = Message::emit(RTM_DELADDR, 0, &address_message(link.index, address));
        match self.netlink.try_request(message)? {
            Err(refusal) if refusal.errno != libc::EADDRNOTAVAIL => {
                Err(refusal.into_error(format!("remove address {address} from {}", link.name)))
            }
            _ => Ok(()),
        }
    }

    /// Routes of the main table whose destination lies in `network` or equals it.
    pub(super) fn routes_within(&mut self, network: IpNet) -> Result<Vec<Route>, PlaneError> {
        let mut fixed = [0; ROUTE_FIXED];
        fixed[0] = family_number(network.addr());
        let message = Message::new(RTM_GETROUTE, 0, &fixed);
        self.netlink.dump("list routes", &message, |_, payload| {
            Ok(parse_route(payload)?.filter(|route| network.contains(&route.destination)))
        })
    }

    /// Adds or replaces the route of a network in the main table.
    pub(super) fn set_route(&mut self, network: IpNet, target: Target) -> Result<(), PlaneError> {
        self.netlink.request(
            &format!("add the route {network} {}", target.words()),
            Message::emit(
                RTM_NEWROUTE,
                NLM_F_CREATE | NLM_F_REPLACE,
                &route_message(network, target),
            ),
        )
    }

    /// Deletes a route; one that is not there is no error.
    pub(super) fn delete_route(
        &mut self,
        network: IpNet,
        target: Target,
    ) -> Result<(), PlaneError> {
        let message = Message::emit(RTM_DELROUTE, 0, &route_message(network, target));
        match self.netlink.try_request(message)? {
            Err(refusal) if !matches!(refusal.errno, libc::ESRCH | libc::ENODEV) => {
                Err(refusal.into_error(format!("delete the route {network} {}", target.words())))
            }
            _ => Ok(()),
        }
    }

    /// Asks for the kernel's routing decision.
    pub(super) fn decide(&mut self, destination: IpAddr) -> Result<Decision, PlaneError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = full_length(destination);
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        match self.netlink.try_query(Message::emit(RTM_GETROUTE, 0, &message))? {
            Ok((RTM_NEWROUTE, payload)) => parse_decision(&payload),
            Ok((kind, _)) => Err(unexpected(kind)),
            Err(refusal)
                if matches!(
                    refusal.errno,
                    libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL
                ) =>
            {
                Ok(Decision { interface: None, local: false, source: None, mtu: None })
            }
            Err(refusal) => Err(refusal.into_error(format!("find the route to {destination}"))),
        }
    }
}

impl Target {
    fn words(self) -> String {
        match self {
            Self::Interface { index, .. } => format!("to interface {index}"),
            Self::Unreachable { metric } => format!("unreachable with metric {metric}"),
        }
    }
}

fn unexpected(kind: u16) -> PlaneError {
    PlaneError::Malformed(format!("unexpected message type {kind}"))
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn family_number(address: IpAddr) -> u8 {
    u8::from(family(address))
}

fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

pub(super) fn address_message(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full_length(address);
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    // No duplicate detection: a tunnel interface has no link to ask on.
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

pub(super) fn route_message(network: IpNet, target: Target) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(network.addr());
    message.header.destination_prefix_length = network.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.attributes.push(RouteAttribute::Destination(network.network().into()));
    match target {
        Target::Interface { index, source } => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = match network {
                IpNet::V4(_) => RouteScope::Link,
                IpNet::V6(_) => RouteScope::Universe,
            };
            message.attributes.push(RouteAttribute::Oif(index));
            if let Some(source) = source {
                message.attributes.push(RouteAttribute::PrefSource(source.into()));
            }
        }
        Target::Unreachable { metric } => {
            message.header.kind = RouteType::Unreachable;
            message.header.scope = RouteScope::Universe;
            message.attributes.push(RouteAttribute::Priority(metric));
        }
    }
    message
}

fn fixed(payload: &[u8], length: usize) -> Result<(&[u8], &[u8]), PlaneError> {
    payload
        .split_at_checked(length)
        .ok_or_else(|| PlaneError::Malformed(format!("answer of {} bytes", payload.len())))
}

fn number(part: &[u8], at: usize) -> Result<u32, PlaneError> {
    attr_u32(part.get(at..at + 4).unwrap_or(&[]))
}

fn ip(value: &[u8]) -> Result<IpAddr, PlaneError> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value)
        .map(|octets| Ipv6Addr::from(octets).into())
        .map_err(|_| PlaneError::Malformed(format!("address of {} bytes", value.len())))
}

pub(super) fn parse_link(payload: &[u8]) -> Result<Link, PlaneError> {
    let (head, attrs) = fixed(payload, LINK_FIXED)?;
    let mut link = Link {
        index: number(head, 4)?,
        name: String::new(),
        mtu: 0,
        up: number(head, 8)? & IFF_UP != 0,
        xfrm_if_id: None,
    };
    for attr in Attrs::new(attrs) {
        let attr = attr?;
        match attr.kind {
            IFLA_IFNAME => {
                let name = attr.value.split(|b| *b == 0).next().unwrap_or(&[]);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_MTU => link.mtu = attr_u32(attr.value)?,
            IFLA_LINKINFO => link.xfrm_if_id = parse_xfrm_info(attr.value)?,
            _ => {}
        }
    }
    Ok(link)
}

fn parse_xfrm_info(info: &[u8]) -> Result<Option<u32>, PlaneError> {
    if Attrs::find_kind(info, IFLA_INFO_KIND)?.is_none_or(|kind| !kind.starts_with(b"xfrm")) {
        return Ok(None);
    }
    match Attrs::find_kind(info, IFLA_INFO_DATA)? {
        Some(data) => Attrs::find_kind(data, IFLA_XFRM_IF_ID)?.map(attr_u32).transpose(),
        None => Ok(None),
    }
}

pub(super) fn parse_address(payload: &[u8]) -> Result<(u32, IpAddr), PlaneError> {
    let (head, attrs) = fixed(payload, ADDRESS_FIXED)?;
    let index = number(head, 4)?;
    let mut found = None;
    for attr in Attrs::new(attrs) {
        let attr = attr?;
        match attr.kind {
            // On point-to-point links IFA_ADDRESS is the peer's; IFA_LOCAL is always ours.
            IFA_LOCAL => return Ok((index, ip(attr.value)?)),
            IFA_ADDRESS => found = Some(ip(attr.value)?),
            _ => {}
        }
    }
    let address = found.ok_or_else(|| PlaneError::Malformed("address is missing".to_owned()))?;
    Ok((index, address))
}

/// A unicast or unreachable route of the main table; others are skipped.
pub(super) fn parse_route(payload: &[u8]) -> Result<Option<Route>, PlaneError> {
    let (head, attrs) = fixed(payload, ROUTE_FIXED)?;
    let (Some(&family), Some(&length), Some(&table), Some(&protocol), Some(&kind)) =
        (head.first(), head.get(1), head.get(4), head.get(5), head.get(7))
    else {
        return Err(PlaneError::Malformed("route header".to_owned()));
    };
    let mut address: IpAddr = if family == u8::from(AddressFamily::Inet6) {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let mut table = u32::from(table);
    let mut interface = None;
    let mut metric = 0;
    for attr in Attrs::new(attrs) {
        let attr = attr?;
        match attr.kind {
            RTA_DST => address = ip(attr.value)?,
            RTA_OIF => interface = Some(attr_u32(attr.value)?),
            RTA_PRIORITY => metric = attr_u32(attr.value)?,
            RTA_TABLE => table = attr_u32(attr.value)?,
            _ => {}
        }
    }
    if table != RT_TABLE_MAIN {
        return Ok(None);
    }
    let destination = IpNet::new(address, length)
        .map_err(|_| PlaneError::Malformed(format!("prefix length {length}")))?;
    Ok(Some(Route {
        destination,
        interface,
        metric,
        ours: protocol == ROUTE_PROTOCOL,
        unreachable: kind == RTN_UNREACHABLE,
    }))
}

pub(super) fn parse_decision(payload: &[u8]) -> Result<Decision, PlaneError> {
    let (head, attrs) = fixed(payload, ROUTE_FIXED)?;
    let kind = head.get(7).copied().unwrap_or_default();
    let mut decision =
        Decision { interface: None, local: kind == RTN_LOCAL, source: None, mtu: None };
    for attr in Attrs::new(attrs) {
        let attr = attr?;
        match attr.kind {
            RTA_OIF if kind != RTN_UNREACHABLE => {
                decision.interface = Some(attr_u32(attr.value)?);
            }
            RTA_PREFSRC => decision.source = Some(ip(attr.value)?),
            RTA_METRICS => {
                decision.mtu = Attrs::find_kind(attr.value, RTAX_MTU)?.map(attr_u32).transpose()?;
            }
            _ => {}
        }
    }
    Ok(decision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_answers_are_errors_not_panics() {
        let route =
            route_message("10.77.0.0/16".parse().unwrap(), Target::Unreachable { metric: 9 });
        let message = Message::emit(RTM_NEWROUTE, 0, &route);
        let payload = &message.bytes()[16..];
        let parsed = parse_route(payload).unwrap().unwrap();
        assert_eq!(parsed.destination, "10.77.0.0/16".parse::<IpNet>().unwrap());
        assert!(parsed.ours && parsed.unreachable);
        assert_eq!(parsed.metric, 9);
        for end in 0..payload.len() {
            let _ = parse_route(&payload[..end]);
            let _ = parse_decision(&payload[..end]);
            let _ = parse_link(&payload[..end]);
            let _ = parse_address(&payload[..end]);
        }
        assert!(parse_route(&payload[..ROUTE_FIXED - 1]).is_err());
    }
}
