//! Policies of others on this machine that stand in the way of tunnelled packets.
//!
//! What leaves the tunnel interface is forwarded like any packet, and on its way out, as answers on
//! their way in, meets policies without an `if_id`: those of another IPsec program. Nothing here is
//! changed, only reported.

use ipnet::IpNet;
use netlink_packet_xfrm::constants::{
    XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT,
};

use super::decode::{self, PolicyState};
use super::encode;
use crate::error::PlaneError;
use crate::netlink::{Netlink, Protocol};
use crate::route::{Problem, ProblemKind};

/// Policies that are not instance `if_id`'s and take, or stop, packets between `inside` (pools, and
/// networks behind sites) and `outside` (what they may reach), one sentence each.
///
/// # Errors
/// When netlink fails.
pub fn conflicting_policies(
    if_id: u32,
    inside: &[IpNet],
    outside: &[IpNet],
) -> Result<Vec<Problem>, PlaneError> {
    let mut netlink = match Netlink::open(Protocol::Xfrm) {
        // Where the kernel has no IPsec nobody has a policy in it.
        Err(PlaneError::Kernel { errno: libc::EPROTONOSUPPORT, .. }) => return Ok(Vec::new()),
        opened => opened?,
    };
    let all = netlink.dump("list policies", &encode::dump_policies(), |_, payload| {
        decode::policy(payload).map(Some)
    })?;
    Ok(all.iter().filter_map(|policy| conflict(policy, if_id, inside, outside)).collect())
}

fn conflict(
    policy: &PolicyState,
    if_id: u32,
    inside: &[IpNet],
    outside: &[IpNet],
) -> Option<Problem> {
    // Others' with an identifier are about packets of their own interface.
    if policy.if_id != 0 || policy.owner == if_id {
        return None;
    }
    let direction = match policy.direction {
        XFRM_POLICY_IN => "in",
        XFRM_POLICY_OUT => "out",
        XFRM_POLICY_FWD => "fwd",
        // Of one socket.
        _ => return None,
    };
    let blocks = policy.action == XFRM_POLICY_BLOCK;
    if !policy.protects && !blocks {
        return None;
    }
    let (from, to) = policy.networks?;
    let meets = |one: IpNet, list: &[IpNet]| {
        list.iter().find(|net| net.contains(&one) || one.contains(*net)).copied()
    };
    let between = |a: IpNet, b: IpNet| Some((meets(a, inside)?, meets(b, outside)?));
    let (client, network) = between(from, to).or_else(|| between(to, from))?;
    let does = if blocks { "blocks" } else { "takes" };
    Some(Problem {
        kind: ProblemKind::ForeignPolicy,
        subject: format!("{from} -> {to}"),
        sentence: format!(
            "an IPsec policy of another program ({direction}, {from} to {to}) {does} packets between \
             {client} and {network}; narrow or remove it in that program (`ip xfrm policy` shows it)"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::in_fresh_namespace;

    #[test]
    fn only_what_takes_tunnelled_packets_is_reported() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to make a network namespace");
            return;
        }
        in_fresh_namespace(|| {
            let ip = |line: &str| {
                let words = line.split(' ');
                let done = std::process::Command::new("ip").args(words).status().unwrap();
                assert!(done.success(), "{line}");
            };
            let nets = |list: &[&str]| -> Vec<IpNet> {
                list.iter().map(|net| net.parse().unwrap()).collect()
            };
            let (inside, outside) = (nets(&["10.77.0.0/16", "fd77::/64"]), nets(&["10.20.0.0/24"]));
            let found = || conflicting_policies(7, &inside, &outside).unwrap();
            assert_eq!(found(), []);
            let esp = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
            // Of another interface, elsewhere, an exemption.
            ip(&format!("xfrm policy add dst 10.20.0.0/16 dir out if_id 9 {esp}"));
            ip(&format!("xfrm policy add dst 10.30.0.0/16 dir out {esp}"));
            ip("xfrm policy add src 10.77.0.0/16 dst 10.20.0.0/24 dir fwd action allow");
            assert_eq!(found(), []);
            ip(&format!("xfrm policy add src 10.0.0.0/8 dst 10.20.0.0/25 dir out {esp}"));
            ip("xfrm policy add src 10.20.0.0/24 dst 10.77.3.0/24 dir fwd action block");
            let found = found();
            let sentences: Vec<&str> = found.iter().map(|p| p.sentence.as_str()).collect();
            assert_eq!(found.len(), 2, "{sentences:#?}");
            let says = |part: &str| sentences.iter().any(|sentence| sentence.contains(part));
            assert!(says("(out, 10.0.0.0/8 to 10.20.0.0/25) takes packets"), "{sentences:#?}");
            assert!(says("(fwd, 10.20.0.0/24 to 10.77.3.0/24) blocks packets"), "{sentences:#?}");
            assert!(sentences.iter().all(|s| s.contains("narrow or remove it")));
        })
        .unwrap();
    }
}
