//! Transport mode of child SAs (RFC 7296 1.3.1): when it can be, and between what.
//!
//! A child in transport mode carries packets between the two outer addresses themselves, so it
//! holds no selectors but those. What cannot be in transport mode is asked for, or answered, in
//! tunnel mode, as the RFC allows, and the operator is told why.

use crate::event::{Blame, Refusal};
use crate::exchange::about;
use crate::policy::narrowing;
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, refusal};
use crate::wire::{Notify, NotifyType, Payloads, TrafficSelector};

/// Why a child SA cannot be in transport mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// The outer addresses are not those the other side knows (RFC 7296 2.23.1). Two peers behind
    /// one NAT may have the same one, and checksums over the original one would have to be mended.
    Nat,
    /// They may change, which MOBIKE does not provide for in transport mode (RFC 4555 1.2).
    Mobike,
    /// They are not within the selectors.
    Selectors,
    /// The lease does not have it.
    Lease,
    /// The peer answered in tunnel mode.
    Peer,
}

impl Hindrance {
    fn what(self) -> &'static str {
        match self {
            Self::Nat => "a NAT is between the two sides, or is feigned for UDP encapsulation",
            Self::Mobike => "addresses may change, because MOBIKE was agreed on",
            Self::Selectors => "the selectors do not hold both sides' outer addresses",
            Self::Lease => "the lease has tunnel mode only",
            Self::Peer => "the peer does not want it",
        }
    }

    fn fix(self) -> &'static str {
        match self {
            Self::Nat => "configure tunnel mode on both sides, or connect without the NAT",
            Self::Mobike => "configure tunnel mode, or turn MOBIKE off (strongSwan: `mobike = no`)",
            Self::Selectors => "let both sides' selectors hold the addresses they connect from",
            Self::Lease => "configure tunnel mode on the peer (strongSwan: `mode = tunnel`)",
            Self::Peer => "configure the same mode on both sides",
        }
    }

    /// The report that tunnel mode is used instead.
    pub(crate) fn report(self, sa: &IkeSa) -> Refusal {
        let what = format!(
            "a child SA in transport mode was asked for and is in tunnel mode: {}",
            self.what()
        );
        about(sa, refusal(Blame::Incompatible, None, "transport_declined", what, self.fix()))
    }
}

/// The selectors of a child in transport mode: our side's and the peer's, each within what is
/// given.
pub(crate) fn selectors(
    sa: &IkeSa,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> Result<(Vec<TrafficSelector>, Vec<TrafficSelector>), Hindrance> {
    let traits = &sa.traits;
    if traits.peer_behind_nat || traits.we_behind_nat || traits.force_encap {
        return Err(Hindrance::Nat);
    }
    if traits.mobike {
        return Err(Hindrance::Mobike);
    }
    let within = |selectors: &[TrafficSelector], host: std::net::SocketAddr| {
        narrowing::narrow(selectors, &narrowing::hosts(&[host.ip().to_canonical()])).selectors
    };
    let (local, remote) = (within(local, sa.path.local), within(remote, sa.path.remote));
    if local.is_empty() || remote.is_empty() {
        return Err(Hindrance::Selectors);
    }
    Ok((local, remote))
}

/// The peer asks for it: whether the child has it. Its selectors are narrowed then; if it has not,
/// the operator is told why.
pub(crate) fn agree(
    ctx: &mut Ctx,
    sa: &IkeSa,
    granted: bool,
    local: &mut Vec<TrafficSelector>,
    remote: &mut Vec<TrafficSelector>,
) -> bool {
    let agreed = if granted { selectors(sa, local, remote) } else { Err(Hindrance::Lease) };
    match agreed {
        Ok(narrowed) => {
            (*local, *remote) = narrowed;
            true
        }
        Err(hindrance) => {
            ctx.refuse(hindrance.report(sa));
            false
        }
    }
}

/// The request for it, and the agreement to it.
pub(crate) fn notify() -> Notify {
    Notify::new(NotifyType::UseTransportMode)
}

/// Whether the peer asks for it, or agrees.
pub(crate) fn is_said(payloads: &Payloads) -> bool {
    payloads.has_notify(NotifyType::UseTransportMode)
}
