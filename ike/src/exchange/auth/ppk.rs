//! Post-quantum preshared keys in IKE_AUTH (RFC 8784): the notifies.

use crate::wire::{Notify, NotifyType, Payloads};

/// The type of PPK_IDENTITY's name: fixed and known to both sides (RFC 8784 5.1).
const PPK_ID_FIXED: u8 = 2;

/// Octets of a name at most.
const MAX_ID: usize = 256;

/// PPK_IDENTITY of an initiator.
pub(super) fn identity(id: &[u8]) -> Notify {
    Notify::with_data(NotifyType::PpkIdentity, [&[PPK_ID_FIXED], id].concat())
}

/// PPK_IDENTITY of a responder that uses the key: empty.
pub(super) fn used() -> Notify {
    Notify::new(NotifyType::PpkIdentity)
}

/// NO_PPK_AUTH: what AUTH would be without the key.
pub(super) fn without(auth_data: Vec<u8>) -> Notify {
    Notify::with_data(NotifyType::NoPpkAuth, auth_data)
}

/// The name an initiator sent. Other types than [`PPK_ID_FIXED`] need an agreement that does not
/// exist here: an empty name, which nobody has.
pub(super) fn named(payloads: &Payloads) -> Option<Vec<u8>> {
    let notify = payloads.notify(NotifyType::PpkIdentity)?;
    Some(match notify.data.split_first() {
        Some((&PPK_ID_FIXED, id)) if id.len() <= MAX_ID => id.to_vec(),
        _ => Vec::new(),
    })
}
