//! CREATE_CHILD_SA (RFC 7296 1.3).

use crate::crypto::KexResponse;
use crate::exchange::send_response;
use crate::io::ChildSaId;
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose};
use crate::wire::{ExchangeType, Notify, NotifyType, Payloads};

/// A CREATE_CHILD_SA of ours.
#[derive(Debug)]
pub(crate) struct Requesting {}

/// A CREATE_CHILD_SA of the peer's.
#[derive(Debug)]
pub(crate) struct Responding {}

pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, _payloads: &Payloads) {
    let mut answer = Payloads::new();
    answer.push_notify(Notify::new(NotifyType::NoAdditionalSas));
    send_response(ctx, sa, ExchangeType::CreateChildSa, &answer);
}

pub(crate) fn build_child_rekey(_ctx: &mut Ctx, _sa: &mut IkeSa, _child: ChildSaId) -> bool {
    false
}

pub(crate) fn build_ike_rekey(_ctx: &mut Ctx, _sa: &mut IkeSa) -> bool {
    false
}

pub(crate) fn process_child_response(
    _ctx: &mut Ctx,
    _sa: &mut IkeSa,
    _child: ChildSaId,
    _payloads: &Payloads,
) {
}

pub(crate) fn process_ike_response(_ctx: &mut Ctx, _sa: &mut IkeSa, _payloads: &Payloads) {}

pub(crate) fn predecessor_gone(_ctx: &mut Ctx, _sa: &mut IkeSa, _child: ChildSaId) {}

pub(crate) fn abandon(_ctx: &mut Ctx, sa: &mut IkeSa) {
    sa.requesting = None;
    sa.responding = None;
}

pub(crate) fn spi(
    _ctx: &mut Ctx,
    _sa: &mut IkeSa,
    _purpose: Purpose,
    _answer: Result<u32, String>,
) {
}

pub(crate) fn key_exchange(
    _ctx: &mut Ctx,
    _sa: &mut IkeSa,
    _purpose: Purpose,
    _answer: Result<KexResponse, String>,
) {
}

pub(crate) fn installed(
    _ctx: &mut Ctx,
    _sa: &mut IkeSa,
    _child: ChildSaId,
    _answer: Result<(), String>,
) {
}
