//! NAT detection (RFC 7296 2.23): a hash of each side's address as that side sees it.

use crate::crypto::{CryptoProvider, HashFunction};
use crate::rng::SaRng;
use crate::sa::{Path, PeerTraits};
use crate::wire::{IkeSpi, Notify, NotifyType, Payloads, nat_detection_input};

/// Octets of SHA-1.
const HASH_LEN: usize = 20;

/// Appends our two notifies. `fake` makes the peer see a NAT in front of us, so that ESP goes in
/// UDP; our own view stays true.
pub(crate) fn build(
    payloads: &mut Payloads,
    crypto: &CryptoProvider,
    rng: &mut SaRng,
    spis: (IkeSpi, IkeSpi),
    path: Path,
    fake: bool,
) {
    let source = if fake { rng.bytes(HASH_LEN) } else { hash(crypto, spis, path.local) };
    payloads.push_notify(Notify::with_data(NotifyType::NatDetectionSourceIp, source));
    let destination = hash(crypto, spis, path.remote);
    payloads.push_notify(Notify::with_data(NotifyType::NatDetectionDestinationIp, destination));
}

/// Reads the peer's notifies. `spis` are those of its message's header.
pub(crate) fn process(
    traits: &mut PeerTraits,
    payloads: &Payloads,
    crypto: &CryptoProvider,
    spis: (IkeSpi, IkeSpi),
    path: Path,
) {
    let seen = |kind, address| {
        let hash = hash(crypto, spis, address);
        let mut any = false;
        let mut matches = false;
        for notify in payloads.notifies().filter(|notify| notify.kind == kind) {
            any = true;
            matches |= notify.data == hash;
        }
        (any, matches)
    };
    // A peer that does not know its address sends several sources; one that fits is enough.
    let (has_source, source) = seen(NotifyType::NatDetectionSourceIp, path.remote);
    let (has_destination, destination) = seen(NotifyType::NatDetectionDestinationIp, path.local);
    traits.nat_detection = has_source && has_destination;
    traits.peer_behind_nat = traits.nat_detection && !source;
    traits.we_behind_nat = traits.nat_detection && !destination;
}

fn hash(crypto: &CryptoProvider, spis: (IkeSpi, IkeSpi), address: std::net::SocketAddr) -> Vec<u8> {
    let ip = address.ip().to_canonical();
    let input = nat_detection_input(spis.0, spis.1, ip, address.port());
    crypto.digest(HashFunction::Sha1, &[&input])
}
