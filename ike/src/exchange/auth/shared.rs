//! AUTH made with a shared key (RFC 7296 2.15, 2.16).

use crate::crypto::SecretBytes;
use crate::crypto::keymat::auth_shared_key;
use crate::event::{Blame, Refusal};
use crate::sa::context::refusal;
use crate::sa::protect::Protection;
use crate::wire::{AuthMethod, Authentication, Identification, NotifyType};

/// Our AUTH over `octets`.
pub(super) fn mic(protection: &Protection, key: &SecretBytes, octets: &[u8]) -> Authentication {
    let mic = auth_shared_key(protection.prf(), key, octets);
    Authentication::new(AuthMethod::SharedKeyMic, mic.expose().to_vec())
}

/// Whether a peer's AUTH over `octets` was made with the key; takes the same time for every key
/// and every value of the right length.
pub(super) fn is_right(
    protection: &Protection,
    key: &SecretBytes,
    octets: &[u8],
    claimed: &[u8],
) -> bool {
    auth_shared_key(protection.prf(), key, octets) == SecretBytes::copy_from(claimed)
}

/// The peer has another key.
pub(super) fn wrong_key(peer: &Identification) -> Refusal {
    let refused = refusal(
        Blame::Incompatible,
        Some(NotifyType::AuthenticationFailed),
        "wrong_shared_key",
        format!("{peer} does not have the shared key we have for it"),
        "compare the keys of both sides, octet by octet (strongSwan: `secret` in `secrets`)",
    );
    Refusal { identity: Some(peer.clone()), ..refused }
}

/// The driver's key cannot be one.
pub(super) fn empty_key(peer: Option<&Identification>) -> Refusal {
    let refused = refusal(
        Blame::Internal,
        Some(NotifyType::AuthenticationFailed),
        "empty_shared_key",
        "the key shared with the peer is empty",
        "give the peer a key of at least 16 random octets",
    );
    Refusal { identity: peer.cloned(), ..refused }
}
