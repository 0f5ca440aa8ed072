//! Fuzz target: what comes out of a netlink socket. The kernel is trusted with everything else;
//! here only that an unknown one, or one with other structures, ends nothing.

use super::decode;
use crate::netlink::{Attrs, Frames, Protocol, Refusal, attr_u32, attr_u32_be, attr_u64_be};

/// A datagram of messages: each is read as everything it could be.
pub fn kernel_message(data: &[u8]) {
    let mut seen = 0_usize;
    for frame in Frames::new(data) {
        let Ok(frame) = frame else { break };
        seen = seen.saturating_add(frame.payload.len());
        let _ = decode::sa(frame.payload);
        let _ = decode::policy(frame.payload);
        let _ = decode::occurrence(frame.kind, frame.payload);
        // Of a refusal, the request it answers may be anything too.
        for flags in [frame.flags, u16::MAX] {
            let read = Refusal::parse(frame.payload, flags, data, Protocol::Xfrm);
            if let Ok(Some(refusal)) = read {
                let sentence = refusal.into_error("do something").to_string();
                assert!(!sentence.is_empty());
            }
        }
        attributes(frame.payload, 0);
    }
    assert!(seen <= data.len(), "messages hold more than their datagram");
}

fn attributes(bytes: &[u8], depth: u8) {
    for attr in Attrs::new(bytes) {
        let Ok(attr) = attr else { return };
        let _ = (attr_u32(attr.value), attr_u32_be(attr.value), attr_u64_be(attr.value));
        if depth < 4 {
            attributes(attr.value, depth.saturating_add(1));
        }
    }
}

/// Seeds: what we ask for has the form of what comes back.
#[cfg(test)]
pub(crate) fn samples() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use netlink_packet_xfrm::constants::{
        XFRM_MSG_ACQUIRE, XFRM_MSG_EXPIRE, XFRM_MSG_MAPPING, XFRM_MSG_NEWSA,
    };

    use super::encode::{self, Context};
    use crate::netlink::Message;

    let context = Context { if_id: 7, sa_dir: true, device: None };
    let mut policies = Vec::new();
    for mut message in encode::wide_policies(context).into_iter().take(2) {
        message.seal(0, 1);
        policies.extend(message.bytes());
    }
    let event = |kind: u16, len: usize| {
        let fixed: Vec<u8> = (0..len).map(|at| (at % 11) as u8).collect();
        let mut message = Message::new(kind, 0, &fixed).attr(31, &7_u32.to_ne_bytes());
        message.seal(0, 1);
        message.bytes().to_vec()
    };
    let recorded = |kind: u16, text: &str| {
        let mut message = Message::new(kind, 0, &super::recorded::octets(text));
        message.seal(0, 1);
        message.bytes().to_vec()
    };
    // NLMSG_ERROR with an extended acknowledgement: errno, the request's header, the text, where.
    let mut refusal = Vec::from((-libc::EINVAL).to_ne_bytes());
    refusal.extend([0; 16]);
    let mut refusal = Message::new(2, 0x300, &refusal)
        .attr_str(1, "Requested AEAD algorithm not found.")
        .attr(2, &20_u32.to_ne_bytes());
    refusal.seal(0x300, 1);
    let acquire = recorded(XFRM_MSG_ACQUIRE, super::recorded::ACQUIRE);
    let expire = recorded(XFRM_MSG_EXPIRE, super::recorded::EXPIRE);
    vec![
        ("kernel-message", "acquire-recorded", acquire),
        ("kernel-message", "expire-recorded", expire),
        ("kernel-message", "refusal", refusal.bytes().to_vec()),
        ("kernel-message", "policies", policies),
        ("kernel-message", "sa", event(XFRM_MSG_NEWSA, 224)),
        ("kernel-message", "expire", event(XFRM_MSG_EXPIRE, 232)),
        ("kernel-message", "mapping", event(XFRM_MSG_MAPPING, 64)),
        ("kernel-message", "acquire", event(XFRM_MSG_ACQUIRE, 280)),
    ]
}
