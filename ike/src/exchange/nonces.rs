//! How long a peer's nonce must be (RFC 7296 2.10): at least 128 bits, which the codec sees to, and
//! at least half the key size of the PRF.

use crate::crypto::Prf;
use crate::event::{Blame, Refusal};
use crate::sa::context::refusal;
use crate::wire::{Nonce, NotifyType};

/// Why a nonce cannot be used.
///
/// # Errors
/// It is shorter than half of the PRF's key.
pub(crate) fn check(prf: &dyn Prf, nonce: &Nonce) -> Result<(), Box<Refusal>> {
    let (has, least) = (nonce.as_bytes().len(), prf.key_len().div_ceil(2));
    if has >= least {
        return Ok(());
    }
    let what = format!(
        "the peer's nonce has {has} octets; {} with a key of {} octets needs at least {least} \
         (RFC 7296 2.10)",
        prf.id(),
        prf.key_len()
    );
    let fix = "update the peer's software, or propose a PRF with a shorter key on both sides \
               (strongSwan: `prfsha256`)";
    let notify = Some(NotifyType::InvalidSyntax);
    Err(Box::new(refusal(Blame::Misbehaved, notify, "short_nonce", what, fix)))
}
