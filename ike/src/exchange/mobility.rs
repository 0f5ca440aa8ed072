//! Peers that move (RFC 7296 2.23): who sits behind a NAT is followed to the address its latest
//! authentic, fresh message came from. MOBIKE peers say where they are (RFC 4555), so they are
//! not followed.

use std::net::SocketAddr;

use crate::event::Event;
use crate::io::Action;
use crate::sa::context::{Ctx, Purpose};
use crate::sa::{IkeSa, Path, Phase};

/// An authentic, fresh message came over this path.
pub(crate) fn seen(ctx: &mut Ctx, sa: &mut IkeSa, path: Path) {
    if path == sa.path {
        return;
    }
    match sa.phase {
        // As responder, the initiator moves to port 4500 with IKE_AUTH.
        Phase::HalfOpen(_) => sa.path = path,
        Phase::Established if may_follow(sa) => follow(ctx, sa, path),
        _ => {}
    }
}

/// Authentic ESP comes from another address.
pub(crate) fn mapping(ctx: &mut Ctx, sa: &mut IkeSa, remote: SocketAddr) {
    if sa.is_established() && may_follow(sa) && sa.path.encap && remote != sa.path.remote {
        let path = Path { remote, ..sa.path };
        follow(ctx, sa, path);
    }
}

/// RFC 7296 2.23: only without MOBIKE, and only when the peer is behind a NAT.
fn may_follow(sa: &IkeSa) -> bool {
    !sa.traits.mobike && sa.traits.peer_behind_nat
}

/// Takes the SA and its children to another path.
fn follow(ctx: &mut Ctx, sa: &mut IkeSa, path: Path) {
    sa.path = path;
    move_children(ctx, sa);
}

/// Takes the children to where the IKE SA is.
pub(crate) fn move_children(ctx: &mut Ctx, sa: &mut IkeSa) {
    let hosts = sa.hosts();
    let mut from = None;
    for child in sa.children.values_mut().filter(|child| !child.removed) {
        if child.hosts == hosts {
            continue;
        }
        from.get_or_insert(child.hosts.remote);
        child.hosts = hosts;
        let update = Action::UpdateHosts { child: child.id, hosts };
        ctx.act(sa.id, Purpose::Move(child.id), update);
    }
    if let Some(from) = from {
        let nat = sa.traits.peer_behind_nat;
        ctx.event(Event::Moved { ike: sa.id, from, to: hosts.remote, nat });
    }
    ctx.checkpoint(sa);
}
