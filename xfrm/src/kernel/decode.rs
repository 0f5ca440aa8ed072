//! What the kernel says about SAs and policies, read with checked lengths.
//!
//! SAs come back with their keys; those attributes are skipped, never copied. Fixed parts are
//! cut to length before the packet crate parses them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_xfrm::constants::{
    AF_INET, AF_INET6, IPPROTO_ESP, XFRM_MSG_ACQUIRE, XFRM_MSG_EXPIRE, XFRM_MSG_MAPPING,
    XFRMA_ALG_AEAD, XFRMA_ALG_AUTH, XFRMA_ALG_COMP, XFRMA_ALG_CRYPT, XFRMA_ENCAP, XFRMA_IF_ID,
    XFRMA_LASTUSED, XFRMA_OFFLOAD_DEV, XFRMA_REPLAY_ESN_VAL, XFRMA_REPLAY_VAL, XFRMA_SET_MARK,
    XFRMA_SET_MARK_MASK, XFRMA_TMPL,
};
use netlink_packet_xfrm::{
    Address, EncapTmpl, Selector as XfrmSelector, UserAcquire, UserExpire, UserMapping,
    UserPolicyInfo, UserSaInfo, UserTemplate, XFRM_ENCAP_TMPL_LEN, XFRM_USER_ACQUIRE_LEN,
    XFRM_USER_EXPIRE_LEN, XFRM_USER_MAPPING_LEN, XFRM_USER_POLICY_INFO_LEN, XFRM_USER_SA_INFO_LEN,
    XFRM_USER_TEMPLATE_LEN,
};

use super::encode::{LABEL, Sequence};
use super::flow::{Between, Flow};
use super::offload::Device;
use crate::error::PlaneError;
use crate::model::Spi;
use crate::netlink::{Attrs, attr_u32};

/// One SA as the kernel holds it, without its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SaState {
    pub(super) destination: IpAddr,
    pub(super) source: IpAddr,
    pub(super) spi: Spi,
    pub(super) protocol: u8,
    pub(super) reqid: u32,
    /// Which instance made it: its `if_id`, in transport mode its label (0: a stranger).
    pub(super) owner: u32,
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) drops_replay: u64,
    pub(super) drops_auth: u64,
    /// Seconds after its installation at which it ends; 0 is never.
    pub(super) ends_after: u64,
    /// Seconds of the wall clock.
    pub(super) last_used: Option<u64>,
    pub(super) sequence: Sequence,
    /// UDP ports of its packets, source and destination.
    pub(super) encap: Option<(u16, u16)>,
    /// The device that has work of it.
    pub(super) device: Option<Device>,
    /// It only holds a place until somebody installs a real one: it has no algorithm.
    pub(super) larval: bool,
}

/// One policy, as far as needed to tell, take over and delete it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PolicyState {
    pub(super) direction: u8,
    pub(super) index: u32,
    pub(super) if_id: u32,
    /// Which instance made it: its `if_id`, in transport mode its label (0: a stranger).
    pub(super) owner: u32,
    /// What it selects, when ours could.
    pub(super) flow: Option<Flow>,
    /// The source and destination networks it selects.
    pub(super) networks: Option<(IpNet, IpNet)>,
    /// What it does with them (`XFRM_POLICY_ALLOW`, `XFRM_POLICY_BLOCK`).
    pub(super) action: u8,
    /// It demands protection.
    pub(super) protects: bool,
    /// The SA it demands, when that is one.
    pub(super) sender: Option<Wanted>,
}

/// The outbound SA that a policy demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) spi: Spi,
    pub(super) reqid: u32,
}

/// An event, not yet matched to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Occurrence {
    Expire { destination: IpAddr, spi: Spi, hard: bool, if_id: u32 },
    Mapping { local: IpAddr, spi: Spi, address: IpAddr, port: u16 },
    Acquire { destination: IpAddr, sender: Option<Wanted>, if_id: u32 },
}

fn short(what: &str, length: usize) -> PlaneError {
    PlaneError::Malformed(format!("{what} of {length} bytes"))
}

fn split<'a>(
    what: &str,
    payload: &'a [u8],
    length: usize,
) -> Result<(&'a [u8], &'a [u8]), PlaneError> {
    payload.split_at_checked(length).ok_or_else(|| short(what, payload.len()))
}

fn refuse(what: &str, error: &impl std::fmt::Display) -> PlaneError {
    PlaneError::Malformed(format!("{what}: {error}"))
}

fn address(family: u16, address: &Address) -> Result<IpAddr, PlaneError> {
    let octets = address.addr;
    match family {
        AF_INET => {
            let [a, b, c, d, ..] = octets;
            Ok(Ipv4Addr::new(a, b, c, d).into())
        }
        AF_INET6 => Ok(Ipv6Addr::from(octets).into()),
        other => Err(PlaneError::Malformed(format!("address family {other}"))),
    }
}

/// Reads `XFRM_MSG_NEWSA` as GETSA answers it.
pub(super) fn sa(payload: &[u8]) -> Result<SaState, PlaneError> {
    let (fixed, attrs) = split("SA", payload, XFRM_USER_SA_INFO_LEN)?;
    let info = UserSaInfo::parse(fixed).map_err(|error| refuse("SA", &error))?;
    let mut state = SaState {
        destination: address(info.family, &info.id.daddr)?,
        source: address(info.family, &info.saddr)?,
        spi: Spi(info.id.spi),
        protocol: info.id.proto,
        reqid: info.reqid,
        owner: 0,
        bytes: info.lifetime_cur.bytes,
        packets: info.lifetime_cur.packets,
        ends_after: info.lifetime_cfg.hard_add_expires_seconds,
        drops_replay: u64::from(info.stats.replay) + u64::from(info.stats.replay_window),
        drops_auth: u64::from(info.stats.integrity_failed),
        last_used: None,
        sequence: Sequence::default(),
        encap: None,
        device: None,
        larval: true,
    };
    let (mut mark, mut mask) = (0, u32::MAX);
    for attr in Attrs::new(attrs) {
        let attr = attr?;
        match attr.kind {
            XFRMA_IF_ID => state.owner = attr_u32(attr.value)?,
            XFRMA_SET_MARK => mark = attr_u32(attr.value)?,
            XFRMA_SET_MARK_MASK => mask = attr_u32(attr.value)?,
            XFRMA_LASTUSED => {
                let seconds = attr.value.try_into().map(u64::from_ne_bytes);
                state.last_used = Some(seconds.map_err(|_| short("time", attr.value.len()))?);
            }
            XFRMA_REPLAY_VAL => state.sequence = replay(&words(attr.value)?)?,
            XFRMA_REPLAY_ESN_VAL => state.sequence = replay_esn(&words(attr.value)?)?,
            XFRMA_OFFLOAD_DEV => state.device = Some(Device::parse(attr.value)?),
            XFRMA_ENCAP => state.encap = Some(ports(attr.value)?),
            // What they hold are keys.
            XFRMA_ALG_AEAD | XFRMA_ALG_AUTH | XFRMA_ALG_CRYPT | XFRMA_ALG_COMP => {
                state.larval = false;
            }
            _ => {}
        }
    }
    if (state.owner, mask) == (0, 0) {
        state.owner = mark;
    }
    Ok(state)
}

fn words(value: &[u8]) -> Result<Vec<u32>, PlaneError> {
    value.chunks(4).map(attr_u32).collect()
}

fn ports(value: &[u8]) -> Result<(u16, u16), PlaneError> {
    let (fixed, _) = split("encapsulation", value, XFRM_ENCAP_TMPL_LEN)?;
    let template = EncapTmpl::parse(fixed).map_err(|error| refuse("encapsulation", &error))?;
    Ok((template.encap_sport, template.encap_dport))
}

/// struct xfrm_replay_state: oseq, seq, bitmap.
fn replay(words: &[u32]) -> Result<Sequence, PlaneError> {
    let [sent, received, bitmap] = *words else {
        return Err(short("replay state", words.len() * 4));
    };
    Ok(Sequence { sent: sent.into(), received: received.into(), bitmap: vec![bitmap] })
}

/// struct xfrm_replay_state_esn: bmp_len, oseq, seq, oseq_hi, seq_hi, replay_window, bitmap.
fn replay_esn(words: &[u32]) -> Result<Sequence, PlaneError> {
    let [_, sent, received, sent_high, received_high, _, bitmap @ ..] = words else {
        return Err(short("replay state", words.len() * 4));
    };
    let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    Ok(Sequence {
        sent: join(*sent_high, *sent),
        received: join(*received_high, *received),
        bitmap: bitmap.to_vec(),
    })
}

/// Reads `XFRM_MSG_NEWPOLICY` of a dump.
pub(super) fn policy(payload: &[u8]) -> Result<PolicyState, PlaneError> {
    let (fixed, attrs) = split("policy", payload, XFRM_USER_POLICY_INFO_LEN)?;
    let info = UserPolicyInfo::parse(fixed).map_err(|error| refuse("policy", &error))?;
    let if_id = if_id(attrs)?;
    let label = info.lifetime_cfg.soft_byte_limit;
    let labelled =
        if label >> 32 == LABEL { u32::try_from(label & 0xffff_ffff).ok() } else { None };
    Ok(PolicyState {
        direction: info.direction,
        index: info.index,
        if_id,
        owner: if if_id == 0 { labelled.unwrap_or_default() } else { if_id },
        flow: flow(&info.selector),
        networks: networks(&info.selector),
        action: info.action,
        protects: Attrs::find_kind(attrs, XFRMA_TMPL)?.is_some(),
        sender: sender(attrs)?,
    })
}

fn networks(selector: &XfrmSelector) -> Option<(IpNet, IpNet)> {
    let network =
        |at: &Address, length: u8| IpNet::new(address(selector.family, at).ok()?, length).ok();
    Some((
        network(&selector.saddr, selector.prefixlen_s)?,
        network(&selector.daddr, selector.prefixlen_d)?,
    ))
}

fn flow(selector: &XfrmSelector) -> Option<Flow> {
    let destination = address(selector.family, &selector.daddr).ok()?;
    let destination = IpNet::new(destination, selector.prefixlen_d).ok()?;
    if selector.prefixlen_s == 0 {
        return Some(Flow::to(destination));
    }
    let port = |port: u16, mask: u16| (mask != 0).then_some(port);
    let between = Between {
        source: address(selector.family, &selector.saddr).ok()?,
        protocol: selector.proto,
        source_port: port(selector.sport, selector.sport_mask),
        destination_port: port(selector.dport, selector.dport_mask),
    };
    Some(Flow { destination, between: Some(between) })
}

/// Strangers' policies may have several templates, or odd ones; ours have one.
fn sender(attrs: &[u8]) -> Result<Option<Wanted>, PlaneError> {
    let templates = Attrs::find_kind(attrs, XFRMA_TMPL)?;
    let Some(value) = templates.filter(|value| value.len() == XFRM_USER_TEMPLATE_LEN) else {
        return Ok(None);
    };
    let template = UserTemplate::parse(value).map_err(|error| refuse("template", &error))?;
    let at = |octets| address(template.family, octets).ok();
    Ok(at(&template.saddr).zip(at(&template.id.daddr)).map(|(source, destination)| Wanted {
        source,
        destination,
        spi: Spi(template.id.spi),
        reqid: template.reqid,
    }))
}

fn if_id(attrs: &[u8]) -> Result<u32, PlaneError> {
    Attrs::find_kind(attrs, XFRMA_IF_ID)?.map_or(Ok(0), attr_u32)
}

/// Reads a multicast message; kinds nobody asked for are `None`.
pub(super) fn occurrence(kind: u16, payload: &[u8]) -> Result<Option<Occurrence>, PlaneError> {
    Ok(match kind {
        XFRM_MSG_EXPIRE => {
            let (fixed, attrs) = split("expire event", payload, XFRM_USER_EXPIRE_LEN)?;
            let event = UserExpire::parse(fixed).map_err(|error| refuse("expire event", &error))?;
            let id = &event.state.id;
            (id.proto == IPPROTO_ESP).then_some(Occurrence::Expire {
                destination: address(event.state.family, &id.daddr)?,
                spi: Spi(id.spi),
                hard: event.hard != 0,
                if_id: if_id(attrs)?,
            })
        }
        XFRM_MSG_MAPPING => {
            let (fixed, _) = split("mapping event", payload, XFRM_USER_MAPPING_LEN)?;
            let event =
                UserMapping::parse(fixed).map_err(|error| refuse("mapping event", &error))?;
            Some(Occurrence::Mapping {
                local: address(event.id.family, &event.id.daddr)?,
                spi: Spi(event.id.spi),
                address: address(event.id.family, &event.new_saddr)?,
                port: event.new_sport,
            })
        }
        XFRM_MSG_ACQUIRE => {
            let (fixed, attrs) = split("acquire event", payload, XFRM_USER_ACQUIRE_LEN)?;
            let event =
                UserAcquire::parse(fixed).map_err(|error| refuse("acquire event", &error))?;
            let selector = &event.selector;
            Some(Occurrence::Acquire {
                destination: address(selector.family, &selector.daddr)?,
                sender: sender(attrs)?,
                if_id: if_id(attrs)?,
            })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_xfrm::constants::XFRM_MSG_NEWSA;
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::recorded::{ACQUIRE, EXPIRE, octets};

    #[test]
    fn a_recorded_acquire_names_the_packet_and_the_missing_sa() {
        let read = occurrence(XFRM_MSG_ACQUIRE, &octets(ACQUIRE)).unwrap();
        let sender = Wanted {
            source: "192.0.2.1".parse().unwrap(),
            destination: "198.51.100.2".parse().unwrap(),
            spi: Spi(0xd00d_0003),
            reqid: 78,
        };
        let destination = "10.77.0.3".parse().unwrap();
        let whole = Occurrence::Acquire { destination, sender: Some(sender), if_id: 0 };
        assert_eq!(read, Some(whole));
        let short = occurrence(XFRM_MSG_ACQUIRE, &octets(ACQUIRE)[..279]);
        assert!(matches!(short, Err(PlaneError::Malformed(_))), "{short:?}");
    }

    #[test]
    fn a_recorded_expiry_names_the_sa() {
        let read = occurrence(XFRM_MSG_EXPIRE, &octets(EXPIRE)).unwrap();
        let destination = "198.51.100.2".parse().unwrap();
        let spi = Spi(0xd00d_0003);
        assert_eq!(read, Some(Occurrence::Expire { destination, spi, hard: true, if_id: 0 }));
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_sends_is_no_panic(
            kind in prop_oneof![Just(XFRM_MSG_NEWSA), Just(0x17), Just(0x18), Just(0x26)],
            payload in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            let _ = sa(&payload);
            let _ = policy(&payload);
            let _ = occurrence(kind, &payload);
        }
    }

    #[test]
    fn joins_the_halves_of_a_sequence_number() {
        let state = replay_esn(&[2, 5, 6, 1, 2, 64, 0xff, 0]).unwrap();
        assert_eq!(state.sent, 0x1_0000_0005);
        assert_eq!(state.received, 0x2_0000_0006);
        assert_eq!(state.bitmap, [0xff, 0]);
        assert!(replay_esn(&[1, 2, 3]).is_err());
        assert!(replay(&[1, 2]).is_err());
    }
}
