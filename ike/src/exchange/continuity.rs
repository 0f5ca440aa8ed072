//! What the two sides tell each other in IKE_AUTH about going on after a crash: message id
//! synchronisation (RFC 6311 3) and crash tokens (RFC 6290 4.1).

use crate::exchange::crash;
use crate::sa::IkeSa;
use crate::sa::context::Ctx;
use crate::wire::{Notify, NotifyType, Payloads};

/// What we say, as initiator.
pub(crate) fn offer(ctx: &Ctx, sa: &IkeSa, payloads: &mut Payloads) {
    if ctx.config.continuity.message_id_sync {
        payloads.push_notify(Notify::new(NotifyType::MessageIdSyncSupported));
    }
    crash::tell(ctx, (sa.spi_i, sa.spi_r), sa.role, payloads);
}

/// What the peer says, in either role.
pub(crate) fn heard(ctx: &Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    sa.traits.message_id_sync = ctx.config.continuity.message_id_sync
        && payloads.has_notify(NotifyType::MessageIdSyncSupported);
    sa.peer_token = crash::told(payloads);
}

/// What we say, as responder, to a peer that was [`heard`].
pub(crate) fn reply(ctx: &Ctx, sa: &IkeSa, payloads: &mut Payloads) {
    if sa.traits.message_id_sync {
        payloads.push_notify(Notify::new(NotifyType::MessageIdSyncSupported));
    }
    crash::tell(ctx, (sa.spi_i, sa.spi_r), sa.role, payloads);
}
