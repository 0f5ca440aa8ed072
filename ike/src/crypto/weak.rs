//! Algorithms that are recognised only to be refused, with the sentence an operator needs.
//!
//! A peer that offers nothing better gets NO_PROPOSAL_CHOSEN; the log then says which setting of
//! the *client* to change, because accepting the algorithm is never the answer (RFC 8247).

use std::fmt;

use crate::wire::{EncrId, IntegId, KeMethod, PrfId};

/// A refused algorithm.
#[derive(Debug, PartialEq, Eq)]
pub struct WeakAlgorithm {
    /// strongSwan's name of it.
    pub name: &'static str,
    /// Why it is refused.
    pub reason: &'static str,
    /// Which setting of the client to change.
    pub advice: &'static str,
}

impl fmt::Display for WeakAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is refused: {}. {}", self.name, self.reason, self.advice)
    }
}

const DH_ADVICE: &str = "Windows: set HKLM\\SYSTEM\\CurrentControlSet\\Services\\RasMan\\\
    Parameters\\NegotiateDH2048_AES256 (DWORD) to 1, or use \
    Set-VpnConnectionIPsecConfiguration with -DHGroup Group14; strongSwan: end `proposals` with \
    x25519, ecp256 or modp2048; Apple profiles: DiffieHellmanGroup 14 or 19";
const ENCRYPTION_ADVICE: &str = "Windows: Set-VpnConnectionIPsecConfiguration with \
    -EncryptionMethod AES256 -CipherTransformConstants GCMAES256; strongSwan: aes256gcm16 in \
    `proposals` and `esp_proposals`; Apple profiles: EncryptionAlgorithm AES-256-GCM";
const HASH_ADVICE: &str = "Windows: Set-VpnConnectionIPsecConfiguration with \
    -IntegrityCheckMethod SHA256 -AuthenticationTransformConstants GCMAES256; strongSwan: sha256 \
    and prfsha256 in `proposals`, or an AEAD; Apple profiles: IntegrityAlgorithm SHA2-256";

const SHORT_GROUP: &str = "its discrete logarithm is within reach (RFC 8247 2.4)";
const SUBGROUP: &str = "the origin of its subgroup is unclear (RFC 8247 2.4)";
const SMALL_BLOCK: &str = "64-bit blocks repeat within hours of traffic (RFC 8247 2.1)";
const BROKEN_HASH: &str = "its hash function is broken (RFC 8247 2.2, 2.3)";
const UNPROTECTED: &str = "it does not encrypt";

const fn group(name: &'static str, reason: &'static str) -> WeakAlgorithm {
    WeakAlgorithm { name, reason, advice: DH_ADVICE }
}

const fn cipher(name: &'static str, reason: &'static str) -> WeakAlgorithm {
    WeakAlgorithm { name, reason, advice: ENCRYPTION_ADVICE }
}

const fn hash(name: &'static str) -> WeakAlgorithm {
    WeakAlgorithm { name, reason: BROKEN_HASH, advice: HASH_ADVICE }
}

static KEX: &[(KeMethod, WeakAlgorithm)] = &[
    (KeMethod::Modp768, group("modp768", SHORT_GROUP)),
    (KeMethod::Modp1024, group("modp1024", SHORT_GROUP)),
    (KeMethod::Modp1536, group("modp1536", SHORT_GROUP)),
    (KeMethod::Modp1024s160, group("modp1024s160", SUBGROUP)),
    (KeMethod::Modp2048s224, group("modp2048s224", SUBGROUP)),
    (KeMethod::Modp2048s256, group("modp2048s256", SUBGROUP)),
    (KeMethod::Ecp192, group("ecp192", SHORT_GROUP)),
    (KeMethod::Ecp224, group("ecp224", SHORT_GROUP)),
];

static ENCRYPTION: &[(EncrId, WeakAlgorithm)] = &[
    (EncrId::Des, cipher("des", SMALL_BLOCK)),
    (EncrId::TripleDes, cipher("3des", SMALL_BLOCK)),
    (EncrId::Blowfish, cipher("blowfish", SMALL_BLOCK)),
    (EncrId::Cast, cipher("cast128", SMALL_BLOCK)),
    (EncrId::Idea, cipher("idea", SMALL_BLOCK)),
    (EncrId::Null, cipher("null", UNPROTECTED)),
];

static INTEGRITY: &[(IntegId, WeakAlgorithm)] = &[
    (IntegId::HmacMd5_96, hash("md5")),
    (IntegId::HmacMd5_128, hash("md5_128")),
    (IntegId::HmacSha1_96, hash("sha1")),
    (IntegId::HmacSha1_160, hash("sha1_160")),
];

static PRF: &[(PrfId, WeakAlgorithm)] =
    &[(PrfId::HmacMd5, hash("prfmd5")), (PrfId::HmacSha1, hash("prfsha1"))];

/// Why a key exchange method is refused, if it is.
#[must_use]
pub fn kex(method: KeMethod) -> Option<&'static WeakAlgorithm> {
    find(KEX, method)
}

/// Why an encryption algorithm is refused, if it is.
#[must_use]
pub fn encryption(id: EncrId) -> Option<&'static WeakAlgorithm> {
    find(ENCRYPTION, id)
}

/// Why an integrity algorithm is refused, if it is.
#[must_use]
pub fn integrity(id: IntegId) -> Option<&'static WeakAlgorithm> {
    find(INTEGRITY, id)
}

/// Why a pseudorandom function is refused, if it is.
#[must_use]
pub fn prf(id: PrfId) -> Option<&'static WeakAlgorithm> {
    find(PRF, id)
}

/// The refused algorithm that a configuration token names, if it is one.
#[must_use]
pub fn by_token(token: &str) -> Option<&'static WeakAlgorithm> {
    let token = if token == "sha" { "sha1" } else { token };
    entries(KEX)
        .chain(entries(ENCRYPTION))
        .chain(entries(INTEGRITY))
        .chain(entries(PRF))
        .find(|weak| weak.name == token)
}

fn find<T: PartialEq>(
    table: &'static [(T, WeakAlgorithm)],
    id: T,
) -> Option<&'static WeakAlgorithm> {
    table.iter().find(|(known, _)| *known == id).map(|(_, weak)| weak)
}

fn entries<T>(
    table: &'static [(T, WeakAlgorithm)],
) -> impl Iterator<Item = &'static WeakAlgorithm> {
    table.iter().map(|(_, weak)| weak)
}
