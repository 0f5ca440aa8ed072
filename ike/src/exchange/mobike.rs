//! MOBIKE (RFC 4555): the peer says where it is, and proves that it is there before its ESP
//! follows; and we say where we are, as the original initiator.

use std::net::SocketAddr;

use crate::event::{Blame, CloseReason};
use crate::exchange::{Task, about, advance, mobility, natd, send_request};
use crate::sa::context::{Ctx, refusal};
use crate::sa::lifecycle::{self, Tell};
use crate::sa::{IkeSa, Path, PeerTraits};
use crate::wire::{ExchangeType, Notify, NotifyType, Payloads};

/// Octets of COOKIE2: 8 to 64 are allowed (RFC 4555 4.2.5).
const COOKIE2_LEN: usize = 16;

/// A return routability check: what must come back, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    cookie: Vec<u8>,
    path: Path,
}

/// The peer says that its address changed (RFC 4555 3.5). IKE follows at once, since the request
/// is authentic and its answer must arrive; ESP follows when return routability is proven, so that
/// nobody can have us flood a third party.
pub(crate) fn process_update(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    payloads: &Payloads,
    answer: &mut Payloads,
) {
    if !sa.traits.mobike || sa.is_client() || !sa.is_established() {
        return;
    }
    let path = sa.reply;
    let spis = (sa.spi_i, sa.spi_r);
    let mut seen = PeerTraits::default();
    natd::process(&mut seen, payloads, ctx.crypto, spis, path);
    if payloads.has_notify(NotifyType::NoNatsAllowed) && !no_nats(payloads, path) {
        // RFC 4555 3.9: the peer does not want to be reached through what changed its address.
        answer.push_notify(Notify::new(NotifyType::UnexpectedNatDetected));
        return;
    }
    if seen.nat_detection {
        sa.traits.peer_behind_nat = seen.peer_behind_nat;
        sa.traits.we_behind_nat = seen.we_behind_nat;
        // The faked NAT is repeated, or ESP would leave UDP (RFC 4555 3.5).
        let fake = ctx.config.force_encap;
        natd::build(answer, ctx.crypto, &mut sa.rng, spis, path, fake);
    }
    sa.path = path;
    sa.unproven = true;
    lifecycle::arm_keepalive(ctx, sa);
}

/// After the answer to an update: looks whether the peer is where it says.
pub(crate) fn probe_if_moved(ctx: &mut Ctx, sa: &mut IkeSa) {
    if !sa.unproven || !sa.is_established() {
        return;
    }
    // One check at a time; a newer address makes a waiting one pointless.
    sa.tasks.retain(|task| !matches!(task, Task::Routability(_)));
    if matches!(sa.active, Some(Task::Routability(_))) {
        return;
    }
    let probe = Probe { cookie: sa.rng.bytes(COOKIE2_LEN), path: sa.path };
    sa.tasks.push_front(Task::Routability(probe));
    advance(ctx, sa);
}

/// Our check.
pub(crate) fn build_probe(ctx: &mut Ctx, sa: &mut IkeSa, probe: &Probe) -> bool {
    if probe.path != sa.path {
        return false;
    }
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::with_data(NotifyType::Cookie2, probe.cookie.clone()));
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}

/// The answer to our check.
pub(crate) fn process_probe_response(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    probe: &Probe,
    payloads: &Payloads,
) {
    let echoed =
        payloads.notify(NotifyType::Cookie2).is_some_and(|notify| notify.data == probe.cookie);
    if !echoed {
        // RFC 4555 3.7: an authenticated peer that does not echo is not to be served further.
        let refused = about(
            sa,
            refusal(
                Blame::Misbehaved,
                None,
                "cookie2",
                "the peer did not echo COOKIE2 after it moved",
                "check the peer's software",
            ),
        );
        ctx.refuse(refused);
        let reason = CloseReason::Failed("return routability check failed".to_owned());
        return lifecycle::close(ctx, sa, reason, Tell::Peer);
    }
    if probe.path != sa.path {
        // It moved again while the check was under way.
        return probe_if_moved(ctx, sa);
    }
    sa.unproven = false;
    mobility::move_children(ctx, sa);
}

/// NO_NATS_ALLOWED holds the addresses and ports the peer sent from and to (RFC 4555 4.2.6).
fn no_nats(payloads: &Payloads, path: Path) -> bool {
    let mut expected = Vec::new();
    for address in [path.remote, path.local] {
        match address.ip().to_canonical() {
            std::net::IpAddr::V4(v4) => expected.extend_from_slice(&v4.octets()),
            std::net::IpAddr::V6(v6) => expected.extend_from_slice(&v6.octets()),
        }
    }
    for address in [path.remote, path.local] {
        expected.extend_from_slice(&address.port().to_be_bytes());
    }
    payloads.notify(NotifyType::NoNatsAllowed).is_some_and(|notify| notify.data == expected)
}

/// Our own address changed.
pub(crate) fn roam(ctx: &mut Ctx, sa: &mut IkeSa, local: SocketAddr) {
    if !sa.traits.mobike || !sa.is_client() || !sa.is_established() || local == sa.path.local {
        return;
    }
    sa.path.local = local;
    // What is out goes on from the new address; the news follow when it is answered.
    if !sa.tasks.contains(&Task::UpdateAddresses) {
        sa.tasks.push_back(Task::UpdateAddresses);
    }
    advance(ctx, sa);
}

/// Our update.
pub(crate) fn build_update(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::UpdateSaAddresses));
    let (spis, path) = ((sa.spi_i, sa.spi_r), sa.path);
    let fake = ctx.config.force_encap;
    natd::build(&mut payloads, ctx.crypto, &mut sa.rng, spis, path, fake);
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}

/// The answer to our update: ESP follows.
pub(crate) fn process_update_response(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    if sa.tasks.contains(&Task::UpdateAddresses) {
        // We moved again; the next update counts.
        return;
    }
    if let Some(error) = payloads.error_notify() {
        let refused = about(
            sa,
            refusal(
                Blame::Incompatible,
                Some(error.kind),
                "move_refused",
                format!("the peer refused our new address with {}", error.kind),
                "check for a NAT on the new path",
            ),
        );
        return ctx.refuse(refused);
    }
    let mut seen = PeerTraits::default();
    let path = sa.path;
    natd::process(&mut seen, payloads, ctx.crypto, (sa.spi_i, sa.spi_r), path);
    if seen.nat_detection {
        sa.traits.peer_behind_nat = seen.peer_behind_nat;
        sa.traits.we_behind_nat = seen.we_behind_nat;
    }
    lifecycle::arm_keepalive(ctx, sa);
    mobility::move_children(ctx, sa);
}
