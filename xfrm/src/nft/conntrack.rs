//! Forgets the tracked flows of addresses that lost their lease.
//!
//! Packets are already blocked by then; what this prevents is that late replies to a former
//! lease's flows (and its NAT mappings) reach the next holder of the address. Listing all flows
//! of a busy gateway takes tens of milliseconds, so a thread does it, once for all addresses
//! that are waiting. Best effort: conntrack may be absent.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::error::PlaneError;
use crate::netlink::{Attrs, Message, Netlink, Protocol};

const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const NLA_F_NESTED: u16 = 0x8000;
/// Length of struct nfgenmsg.
const FIXED: usize = 4;

/// The thread's handle. Dropping it lets the thread finish by itself.
#[derive(Debug)]
pub(super) struct FlowCleaner {
    sender: Option<Sender<Vec<IpAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl FlowCleaner {
    /// Starts the thread; its socket belongs to the caller's network namespace.
    pub(super) fn start() -> Result<Self, PlaneError> {
        let netlink = Netlink::open(Protocol::Netfilter)?;
        let (sender, receiver) = channel();
        let thread = thread::Builder::new()
            .name("runnel-flows".to_owned())
            .spawn(move || work(netlink, &receiver))
            .map_err(|error| PlaneError::System {
                what: "cannot start a thread".to_owned(),
                reason: error.to_string(),
                fix: "raise the limit of processes".to_owned(),
            })?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Queues addresses.
    pub(super) fn clean(&self, addresses: Vec<IpAddr>) {
        if let Some(sender) = &self.sender
            && !addresses.is_empty()
        {
            // The thread ends only after the sender is gone.
            let _ = sender.send(addresses);
        }
    }

    /// Waits until everything queued is done.
    pub(super) fn stop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the flow cleaner panicked");
        }
    }
}

fn work(mut netlink: Netlink, receiver: &Receiver<Vec<IpAddr>>) {
    while let Ok(first) = receiver.recv() {
        let mut addresses: BTreeSet<IpAddr> = first.into_iter().collect();
        addresses.extend(receiver.try_iter().flatten());
        for ipv6 in [false, true] {
            if !addresses.iter().any(|address| address.is_ipv6() == ipv6) {
                continue;
            }
            if let Err(error) = clean(&mut netlink, ipv6, &addresses) {
                tracing::debug!(error = %error, "tracked flows not removed");
            }
        }
    }
}

fn clean(
    netlink: &mut Netlink,
    ipv6: bool,
    addresses: &BTreeSet<IpAddr>,
) -> Result<(), PlaneError> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let fixed = [u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    let request = Message::new(IPCTNL_MSG_CT_GET, 0, &fixed);
    let doomed = netlink
        .dump("list tracked flows", &request, |_, payload| deletion(&fixed, payload, addresses))?;
    // A flow may have ended by itself meanwhile.
    netlink.batch(doomed).map(|_| ())
}

/// The request that deletes a listed flow, if an address of ours opened it.
pub(super) fn deletion(
    fixed: &[u8],
    payload: &[u8],
    addresses: &BTreeSet<IpAddr>,
) -> Result<Option<Message>, PlaneError> {
    let attrs = payload
        .get(FIXED..)
        .ok_or_else(|| PlaneError::Malformed("conntrack answer without header".to_owned()))?;
    let Some(tuple) = Attrs::find_kind(attrs, CTA_TUPLE_ORIG)? else {
        return Ok(None);
    };
    let Some(source) = source_of(tuple)? else {
        return Ok(None);
    };
    if !addresses.contains(&source) {
        return Ok(None);
    }
    let mut message = Message::new(IPCTNL_MSG_CT_DELETE, 0, fixed);
    for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
        if let Some(value) = Attrs::find_kind(attrs, kind)? {
            let nested = if kind == CTA_TUPLE_ORIG { NLA_F_NESTED } else { 0 };
            message = message.attr(kind | nested, value);
        }
    }
    Ok(Some(message))
}

fn source_of(tuple: &[u8]) -> Result<Option<IpAddr>, PlaneError> {
    let Some(ip) = Attrs::find_kind(tuple, CTA_TUPLE_IP)? else {
        return Ok(None);
    };
    for attr in Attrs::new(ip) {
        let attr = attr?;
        match attr.kind {
            CTA_IP_V4_SRC => {
                return Ok(<[u8; 4]>::try_from(attr.value).ok().map(|o| Ipv4Addr::from(o).into()));
            }
            CTA_IP_V6_SRC => {
                return Ok(<[u8; 16]>::try_from(attr.value).ok().map(|o| Ipv6Addr::from(o).into()));
            }
            _ => {}
        }
    }
    Ok(None)
}
