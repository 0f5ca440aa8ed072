//! What a walk does to a world: one operation at a time, chosen by its generator.

use std::time::Duration;

use ike::event::CloseReason;
use ike::io::{DataplaneEvent, IkeSaId};
use ike::{Command, Input, SaState};

use super::pool::after;
use super::rng::Rng;
use super::world::World;

/// Operations to choose from; some stand more than once because they matter more.
const OPERATIONS: [fn(&mut World, &mut Rng, usize) -> String; 39] = [
    connect,
    connect,
    close,
    close_some,
    close_children,
    another_child,
    another_child,
    close_a_child,
    revoke,
    cut_off,
    cut_off,
    drop_next,
    drop_next,
    rekey_ike,
    rekey_ike,
    rekey_ike,
    rekey_child,
    rekey_child,
    rekey_child,
    rekey_both,
    rekey_both,
    carried_much,
    carried_much,
    reauthenticate,
    reauthenticate,
    roam,
    roam,
    rebind,
    send_packets,
    restart,
    restart,
    restart_with_nothing,
    change_policy,
    end_lease,
    move_leases_end,
    set_clock,
    drain,
    move_to_another_gateway,
    wait,
];

/// Does something to a world, or to one of its clients, and says what.
pub fn act(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let at = rng.below(OPERATIONS.len() as u64) as usize;
    OPERATIONS[at](world, rng, client)
}

/// The established IKE SAs of a node.
pub fn live(world: &World, node: usize) -> Vec<IkeSaId> {
    world.nodes[node]
        .engine
        .sas()
        .filter(|sa| sa.state == SaState::Established)
        .map(|sa| sa.id)
        .collect()
}

/// The client or the gateway it belongs to.
fn either(world: &World, rng: &mut Rng, client: usize) -> usize {
    if rng.chance(50) { client } else { world.home(client) }
}

fn connect(world: &mut World, _: &mut Rng, client: usize) -> String {
    world.connect(client);
    format!("{} connects (again)", world.nodes[client].name)
}

fn close(world: &mut World, _: &mut Rng, client: usize) -> String {
    for id in live(world, client) {
        world.command(client, Command::CloseIkeSa(id, CloseReason::Operator));
    }
    format!("{} closes", world.nodes[client].name)
}

fn close_some(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let gateway = world.home(client);
    for id in live(world, gateway) {
        if rng.chance(30) {
            world.command(gateway, Command::CloseIkeSa(id, CloseReason::Operator));
        }
    }
    format!("{} closes some", world.nodes[gateway].name)
}

fn close_children(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    let children: Vec<_> = world.nodes[node].plane.keys().copied().collect();
    for child in children {
        world.command(node, Command::CloseChild(child, CloseReason::Operator));
    }
    format!("{} closes its children", world.nodes[node].name)
}

/// RFC 7296 1.3.1: beside the children there are.
fn another_child(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let name = world.nodes[client].name.clone();
    if !world.nodes[client].habits.several {
        return format!("{name} is content with its children");
    }
    for id in live(world, client) {
        for _ in 0..1 + rng.below(2) {
            world.nodes[client].asked += 1;
            world.command(client, Command::CreateChild(id));
        }
    }
    format!("{name} asks for further children")
}

fn close_a_child(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    let children: Vec<_> = world.nodes[node].plane.keys().copied().collect();
    if let Some(child) = children.get(rng.below(children.len() as u64) as usize) {
        world.command(node, Command::CloseChild(*child, CloseReason::Operator));
    }
    format!("{} closes one of its {} children", world.nodes[node].name, children.len())
}

/// Its lease is released, or ends because somebody wants it so; the client may come again.
fn end_lease(world: &mut World, _: &mut Rng, client: usize) -> String {
    let name = world.nodes[client].name.clone();
    for gateway in world.gateways() {
        if let Some(lease) = world.nodes[gateway].pool.end(&name) {
            world.command(gateway, Command::CloseLease(lease, CloseReason::Released));
        }
    }
    format!("{name}'s leases are released")
}

fn update_lease(world: &mut World, gateway: usize, client: &str) {
    if let Some(grant) = world.nodes[gateway].grant(client) {
        world.command(gateway, Command::UpdateLease(grant.lease.clone(), grant));
    }
}

fn move_leases_end(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let name = world.nodes[client].name.clone();
    let most = if rng.chance(70) { 60_000 } else { 7_200_000 };
    let left = Duration::from_millis(rng.below(most));
    let gateway = world.home(client);
    let end = after(world.now, left);
    if world.nodes[gateway].pool.set_end(&name, end).is_some() {
        update_lease(world, gateway, &name);
    }
    format!("{name}'s lease ends in {left:?}")
}

fn set_clock(world: &mut World, rng: &mut Rng, _: usize) -> String {
    let by = rng.below(600) as i64 - 300;
    world.set_clock(by);
    format!("the wall clock is set by {by} s")
}

/// The data plane reports a limit: it goes on, or it has stopped (RFC 7296 2.8).
fn carried_much(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    let hard = rng.chance(25);
    let children: Vec<_> = world.nodes[node].plane.keys().copied().collect();
    for child in children {
        world.handle(node, Input::Dataplane(DataplaneEvent::Expire { child, hard }));
    }
    let limit = if hard { "hard" } else { "soft" };
    format!("{}'s children are at their {limit} limit", world.nodes[node].name)
}

fn reauthenticate(world: &mut World, _: &mut Rng, client: usize) -> String {
    for id in live(world, client) {
        world.command(client, Command::Reauthenticate(id));
    }
    format!("{} authenticates again", world.nodes[client].name)
}

fn send_packets(world: &mut World, rng: &mut Rng, client: usize) -> String {
    if rng.chance(50) {
        let address = world.nodes[client].address;
        world.link.rebind(address);
    }
    world.send_esp(client);
    let gateway = world.home(client);
    world.send_esp(gateway);
    format!("{} and its gateway send packets", world.nodes[client].name)
}

/// A gateway sends its clients to another, or no more (RFC 5685).
fn drain(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let from = world.home(client);
    let name = world.nodes[from].name.clone();
    let others: Vec<_> = world.gateways().into_iter().filter(|other| *other != from).collect();
    let Some(to) = others.first().copied() else {
        return format!("{name} has nowhere to send its clients");
    };
    if world.nodes[from].draining.is_some() && rng.chance(60) {
        world.drain(from, None);
        return format!("{name} keeps its clients again");
    }
    let (existing, to) = (rng.chance(70), world.named(to));
    world.drain(from, Some((to, existing)));
    let who = if existing { "all its clients" } else { "new clients" };
    format!("{name} sends {who} away")
}

fn revoke(world: &mut World, _: &mut Rng, client: usize) -> String {
    let name = world.nodes[client].name.clone();
    for gateway in world.gateways() {
        world.nodes[gateway].ended.insert(name.clone());
        if let Some(lease) = world.nodes[gateway].pool.end(&name) {
            world.command(gateway, Command::CloseLease(lease, CloseReason::Revoked));
        }
    }
    format!("{name} is revoked")
}

fn cut_off(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    let address = world.nodes[node].address;
    let time = Duration::from_millis(rng.below(60_000));
    world.link.partition(address, true);
    world.run(time);
    world.link.partition(address, false);
    format!("{} was cut off for {time:?}", world.nodes[node].name)
}

fn drop_next(world: &mut World, rng: &mut Rng, _: usize) -> String {
    let count = 1 + rng.below(4) as u32;
    world.link.drop_next(count);
    format!("the next {count} datagrams are lost")
}

fn rekey_ike(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    for id in live(world, node) {
        world.command(node, Command::RekeyIke(id));
    }
    format!("{} rekeys its IKE SAs", world.nodes[node].name)
}

fn rekey_children(world: &mut World, node: usize) {
    let children: Vec<_> = world.nodes[node].plane.keys().copied().collect();
    for child in children {
        world.command(node, Command::RekeyChild(child));
    }
}

fn rekey_child(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    rekey_children(world, node);
    format!("{} rekeys its children", world.nodes[node].name)
}

/// Both at once: what RFC 7296 2.8 is mostly about.
fn rekey_both(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let gateway = world.home(client);
    rekey_children(world, client);
    if rng.chance(50) {
        rekey_children(world, gateway);
        return format!("{} and its gateway rekey their children", world.nodes[client].name);
    }
    for id in live(world, gateway) {
        world.command(gateway, Command::RekeyIke(id));
    }
    format!("{} rekeys its children and the gateway the IKE SA", world.nodes[client].name)
}

fn roam(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let behind_nat = rng.chance(50);
    let address = world.roam(client, behind_nat);
    let nat = if behind_nat { ", behind NAT" } else { "" };
    format!("{} moves to {address}{nat}", world.nodes[client].name)
}

fn rebind(world: &mut World, _: &mut Rng, client: usize) -> String {
    let address = world.nodes[client].address;
    world.link.rebind(address);
    format!("the NAT in front of {} forgets its mappings", world.nodes[client].name)
}

fn restart(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    again(world, rng, node, "")
}

/// What RFC 6290 is about: one end has forgotten everything.
fn restart_with_nothing(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let node = either(world, rng, client);
    world.nodes[node].snapshots.clear();
    again(world, rng, node, " with nothing")
}

fn again(world: &mut World, rng: &mut Rng, node: usize, how: &str) -> String {
    let time = Duration::from_millis(rng.below(8000));
    world.crash(node);
    world.run(time);
    world.restart(node);
    format!("{} was restarted{how} after {time:?}", world.nodes[node].name)
}

fn change_policy(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let gateway = world.home(client);
    if rng.chance(50) {
        let mut config = world.nodes[gateway].config.clone();
        config.ike_suites.reverse();
        config.esp_suites.reverse();
        world.command(gateway, Command::Reconfigure(Box::new(config)));
        return format!("{} prefers other suites", world.nodes[gateway].name);
    }
    let name = world.nodes[client].name.clone();
    for gateway in world.gateways() {
        let narrowed = &mut world.nodes[gateway].narrowed;
        if !narrowed.remove(&name) {
            narrowed.insert(name.clone());
        }
        update_lease(world, gateway, &name);
    }
    format!("what {name} may reach changes")
}

fn move_to_another_gateway(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let gateways = world.gateways();
    let other = gateways[rng.below(gateways.len() as u64) as usize];
    if other != world.home(client) {
        close(world, rng, client);
        world.set_home(client, other);
    }
    world.connect(client);
    format!("{} connects to {}", world.nodes[client].name, world.nodes[other].name)
}

fn wait(_: &mut World, _: &mut Rng, _: usize) -> String {
    "time passes".to_owned()
}
