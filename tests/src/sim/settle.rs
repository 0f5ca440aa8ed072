//! What must hold when all faults are over: both ends agree, everyone who may connect can, nobody
//! holds more than he should, and gateways that sent their clients away have none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ike::event::CloseReason;
use ike::io::IkeSaId;
use ike::{IkeSaView, SaState};

use super::link::Weather;
use super::node::Kind;
use super::ops::live;
use super::pool::belongs;
use super::world::World;

/// Longest time after the last fault until both ends agree: a full retransmission series (about
/// 42 s), found by a liveness check (10 s), the half-open time (30 s) and some slack.
const CONVERGENCE: Duration = Duration::from_secs(150);

/// Somebody may just be authenticating again, and then holds two of everything: for half a minute at
/// most, when who connects does so twice.
const CHANGE: Duration = Duration::from_secs(40);

/// A connection comes up in this time.
const CONNECT: Duration = Duration::from_secs(5);

/// Lets a world come to rest and returns the rules that it breaks.
pub fn settle(world: &mut World) -> Vec<String> {
    world.link.weather = Weather::FINE;
    world.link.drop_next(0);
    world.lost_answers = 0;
    world.nodes.iter_mut().for_each(|node| node.tls.faults = 0);
    world.run(CONVERGENCE);
    let mut broken = drained(world);
    for gateway in world.gateways() {
        world.drain(gateway, None);
    }
    let clients = (1..world.nodes.len()).filter(|n| world.nodes[*n].kind != Kind::Gateway);
    for client in clients.collect::<Vec<_>>() {
        for rule in [agree, are_gone, connect, has_what_it_wants, has_one] {
            let mut found = rule(world, client);
            if !found.is_empty() {
                world.run(CHANGE);
                found = rule(world, client);
            }
            let name = &world.nodes[client].name;
            broken.extend(found.into_iter().map(|found| format!("{name}: {found}")));
        }
    }
    world.check_leases();
    broken.extend(pools(world));
    broken
}

/// Clients that can be sent elsewhere are not where they were sent away from (RFC 5685 4, 6).
fn drained(world: &World) -> Vec<String> {
    let mut broken = Vec::new();
    for gateway in world.gateways() {
        let node = &world.nodes[gateway];
        let Some((to, true)) = &node.draining else { continue };
        for client in world.nodes.iter().filter(|client| client.habits.follows) {
            // Whoever comes from there is not sent back.
            if !client.senders.contains(to) && sas_at(world, gateway, &client.name).next().is_some()
            {
                broken.push(format!("{} was sent away from {} and stays", client.name, node.name));
            }
        }
    }
    broken
}

/// A client's established IKE SAs at a gateway.
fn sas_at<'a>(
    world: &'a World,
    gateway: usize,
    client: &'a str,
) -> impl Iterator<Item = IkeSaView> + 'a {
    let sas = world.nodes[gateway].engine.sas();
    let mine = sas.filter(|sa| sa.lease.as_ref().is_some_and(|lease| belongs(lease, client)));
    mine.filter(|sa| sa.state == SaState::Established)
}

fn is_revoked(world: &World, client: usize) -> bool {
    world.nodes[world.home(client)].ended.contains(&world.nodes[client].name)
}

/// Each SA is on both sides, with the same addresses inside.
fn agree(world: &mut World, client: usize) -> Vec<String> {
    let mut broken = Vec::new();
    let half = world.half_children(client);
    if half > 0 {
        broken.push(format!("{half} children on one side only after convergence"));
    }
    let (ours, theirs) = ike_sas(world, client);
    if ours != theirs {
        broken.push(format!("IKE SAs {ours:x?} here and {theirs:x?} there"));
    }
    broken
}

/// IKE SAs by both their SPIs, with the virtual addresses.
type IkeSas = Vec<((u64, u64), Vec<IpAddr>)>;

/// The established IKE SAs of a client, as it and as the gateways see them.
fn ike_sas(world: &World, client: usize) -> (IkeSas, IkeSas) {
    let name = &world.nodes[client].name;
    let brief = |sa: IkeSaView| (sa.spis, sa.addresses);
    let sas = world.nodes[client].engine.sas().filter(|sa| sa.state == SaState::Established);
    let mut ours: IkeSas = sas.map(brief).collect();
    let gateways = world.gateways().into_iter();
    let mut theirs: IkeSas = gateways.flat_map(|gw| sas_at(world, gw, name).map(brief)).collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    (ours, theirs)
}

/// Nothing of a revoked client lives.
fn are_gone(world: &mut World, client: usize) -> Vec<String> {
    if !is_revoked(world, client) {
        return Vec::new();
    }
    let name = &world.nodes[client].name;
    let left: usize = world.gateways().iter().map(|gw| children(world, *gw, name).0).sum();
    if left == 0 { Vec::new() } else { vec![format!("revoked, and {left} children live")] }
}

/// Who has no child gets one, at the latest now.
fn connect(world: &mut World, client: usize) -> Vec<String> {
    if is_revoked(world, client) || world.working_children(client) > 0 {
        return Vec::new();
    }
    // An IKE SA that carries nothing is given up by its driver.
    for id in live(world, client) {
        world.command(client, ike::Command::CloseIkeSa(id, CloseReason::Operator));
    }
    world.run(Duration::from_secs(1));
    world.connect(client);
    world.run(CONNECT);
    if world.working_children(client) > 0 {
        return Vec::new();
    }
    vec!["cannot connect in fine weather".to_owned()]
}

/// Whoever asks for several children has those, and no more: then it closes all but the first.
fn has_what_it_wants(world: &mut World, client: usize) -> Vec<String> {
    let name = world.nodes[client].name.clone();
    let wanted = 1 + world.nodes[client].asked;
    let mut broken = Vec::new();
    for gateway in world.gateways() {
        let (all, sending) = children(world, gateway, &name);
        if all > wanted || sending > wanted {
            let gateway = &world.nodes[gateway].name;
            broken.push(format!("{all} children at {gateway}, {sending} live, {wanted} wanted"));
        }
    }
    if broken.is_empty() && wanted > 1 {
        let mut kept = BTreeSet::new();
        for child in world.nodes[client].plane.values().cloned().collect::<Vec<_>>() {
            if !kept.insert(child.lease) {
                let close = ike::Command::CloseChild(child.child, CloseReason::Operator);
                world.command(client, close);
            }
        }
        world.run(CONNECT);
        broken.extend(agree(world, client));
    }
    broken
}

/// One child at each gateway is enough, and packets leave through one only.
fn has_one(world: &mut World, client: usize) -> Vec<String> {
    let name = &world.nodes[client].name;
    let mut broken = Vec::new();
    for gateway in world.gateways() {
        let (all, sending) = children(world, gateway, name);
        if all > 1 || sending > 1 {
            let gateway = &world.nodes[gateway].name;
            broken.push(format!("{all} children at {gateway}, {sending} live outbound"));
        }
    }
    broken
}

/// The children of a name at a gateway: all, and those that packets leave through.
fn children(world: &World, gateway: usize, name: &str) -> (usize, usize) {
    let children = || {
        let all = world.nodes[gateway].plane.values();
        all.filter(|child| belongs(&child.lease, name))
    };
    (children().count(), children().filter(|child| child.outbound_active).count())
}

/// No address is held but by who is connected, and every end of an SA was reported.
fn pools(world: &mut World) -> Vec<String> {
    let now = world.now;
    let mut broken = Vec::new();
    for gateway in world.gateways() {
        world.nodes[gateway].pool.tidy(now);
        // Whose connection has just ended, or is about to begin, may still keep one.
        let held: BTreeMap<String, BTreeSet<IkeSaId>> = world.nodes[gateway]
            .pool
            .held()
            .filter(|(_, sas)| !sas.is_empty())
            .map(|(client, sas)| (client.to_owned(), sas.clone()))
            .collect();
        let mut connected: BTreeMap<String, BTreeSet<IkeSaId>> = BTreeMap::new();
        for client in &world.nodes {
            let sas: BTreeSet<_> = sas_at(world, gateway, &client.name).map(|sa| sa.id).collect();
            if !sas.is_empty() {
                connected.insert(client.name.clone(), sas);
            }
        }
        if held != connected {
            let gateway = &world.nodes[gateway].name;
            broken.push(format!("{gateway} keeps addresses of {held:?} and serves {connected:?}"));
        }
    }
    broken
}
