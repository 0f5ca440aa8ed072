//! Children that the peer has made of our request, and that we never installed: they are closed
//! again.

use crate::crypto::EspSuite;
use crate::exchange::Task;
use crate::io::{ChildKeys, ChildSaId};
use crate::sa::IkeSa;
use crate::sa::child::{Child, ChildState};
use crate::sa::context::Ctx;

/// Deletes a child of which nothing but its SPIs is known any more.
pub(crate) fn delete_unknown(ctx: &mut Ctx, sa: &mut IkeSa, spi_in: u32, spi_out: u32) {
    if let Some(suite) = ctx.config.esp_suites.first().cloned() {
        delete_uninstalled(ctx, sa, spi_in, spi_out, suite);
    }
}

/// Deletes a child that was never installed here.
pub(super) fn delete_uninstalled(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    spi_in: u32,
    spi_out: u32,
    suite: EspSuite,
) {
    let id = ChildSaId(ctx.fresh_id());
    let none = || ChildKeys { encr: Vec::new(), integ: Vec::new() };
    let child = Child {
        id,
        state: ChildState::Deleting,
        spi_in,
        spi_out,
        suite,
        keys_in: none(),
        keys_out: none(),
        transport: false,
        ts_local: Vec::new(),
        ts_remote: Vec::new(),
        hosts: sa.hosts(),
        installed_at: ctx.now.mono,
        outbound_active: false,
        removed: true,
        replaced_by: None,
        by_peer: false,
    };
    sa.children.insert(id, Box::new(child));
    sa.enqueue(Task::DeleteChild(id));
}
