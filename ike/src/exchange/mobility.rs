//! Peers that move (RFC 7296 2.23): who sits behind a NAT is followed to the address its latest
//! authentic, fresh message came from. MOBIKE peers say where they are (RFC 4555), so they are
//! not followed.

use std::net::SocketAddr;

use crate::event::Event;
use crate::io::{Action, ChildSaId};
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
pub(crate) fn follow(ctx: &mut Ctx, sa: &mut IkeSa, path: Path) {
    let from = std::mem::replace(&mut sa.path, path).remote;
    let hosts = sa.hosts();
    let children: Vec<ChildSaId> =
        sa.children.values().filter(|child| !child.removed).map(|child| child.id).collect();
    for id in children {
        if let Some(child) = sa.children.get_mut(&id) {
            child.hosts = hosts;
        }
        ctx.act(sa.id, Purpose::Move(id), Action::UpdateHosts { child: id, hosts });
    }
    ctx.event(Event::Moved { ike: sa.id, from, to: path.remote });
}
