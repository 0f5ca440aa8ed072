//! Fuzz target: what the kernel answers about links, addresses and routes. Anybody on the machine
//! may name links, and routing daemons make routes of every kind.

use super::ops;
use crate::netlink::Frames;

/// A datagram of messages: each is read as everything it could be.
pub fn route_message(data: &[u8]) {
    for frame in Frames::new(data) {
        let Ok(frame) = frame else { break };
        let payload = frame.payload;
        if let Ok(link) = ops::parse_link(payload) {
            // What is no text is replaced, three octets for each.
            assert!(link.name.len() <= payload.len().saturating_mul(3), "a name out of nothing");
        }
        let _ = ops::parse_address(payload);
        let _ = ops::parse_decision(payload);
        if let Ok(Some(route)) = ops::parse_route(payload) {
            assert!(route.destination.prefix_len() <= route.destination.max_prefix_len());
        }
    }
}

/// Seeds: what we ask for has the form of what comes back.
#[cfg(test)]
pub(crate) fn samples() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use super::ops::Target;
    use crate::netlink::Message;

    let sealed = |mut message: Message| {
        message.seal(0, 1);
        message.bytes().to_vec()
    };
    // struct ifinfomsg: family, type, index, flags (up), change.
    let mut fixed = [0; 16];
    fixed[4] = 7;
    fixed[8] = 1;
    let link = Message::new(16, 0, &fixed)
        .attr_str(3, "runnel0")
        .attr(4, &1400_u32.to_ne_bytes())
        .nest(18, |info| {
            info.attr_str(1, "xfrm").nest(2, |data| data.attr(2, &7_u32.to_ne_bytes()))
        });
    let address = ops::address_message(7, "fd77::1".parse().expect("an address"));
    let pool = "10.77.0.0/16".parse().expect("a network");
    let unreachable = ops::route_message(pool, Target::Unreachable { metric: 9 });
    let source = Some("10.77.0.1".parse().expect("an address"));
    let through = ops::route_message(pool, Target::Interface { index: 7, source });
    vec![
        ("route-message", "link", sealed(link)),
        ("route-message", "address", sealed(Message::emit(20, 0, &address))),
        ("route-message", "unreachable", sealed(Message::emit(24, 0, &unreachable))),
        ("route-message", "through", sealed(Message::emit(24, 0, &through))),
    ]
}
