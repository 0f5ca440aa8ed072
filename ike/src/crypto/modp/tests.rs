use super::*;
use crate::crypto::{HashFunction, ring, vectors};

fn digest(bytes: &[u8]) -> String {
    let hash = ring::PROVIDER.digest(HashFunction::Sha256, &[bytes]);
    hash.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn exponent(name: &[u8], bits: usize) -> Zeroizing<U512> {
    let hash = ring::PROVIDER.digest(HashFunction::Sha512, &[name]);
    let mut octets = [0; 64];
    octets[64 - bits / 8..].copy_from_slice(&hash[..bits / 8]);
    Zeroizing::new(U512::from_be_slice(&octets))
}

fn check_vectors<const LIMBS: usize>(
    group: &'static Modp<LIMBS>,
    (bits, prime, public, shared): (usize, &str, &str, &str),
) {
    let (p_len, exponent_bits) = (bits / 8, group.exponent_bits as usize);
    assert_eq!(group.initiator_public_len(), p_len);
    let mut p = Vec::new();
    for limb in group.params.modulus().as_ref().as_limbs().iter().rev() {
        p.extend_from_slice(&limb.0.to_be_bytes());
    }
    assert_eq!(digest(&p), prime);
    assert_eq!(
        p[..16],
        [&[0xff; 8][..], &[0xc9, 0x0f, 0xda, 0xa2, 0x21, 0x68, 0xc2, 0x34]].concat()
    );

    let ours = group.share(exponent(b"x", exponent_bits));
    assert_eq!(digest(&ours.public), public);
    let peer = group.share(exponent(b"y", exponent_bits));
    let secret = ours.secret.agree(&peer.public).unwrap();
    assert_eq!(secret.len(), p_len);
    assert_eq!(digest(secret.expose()), shared);
    assert_eq!(peer.secret.agree(&ours.public).unwrap(), secret);
}

#[test]
fn primes_and_powers_match_an_independent_computation() {
    let [v2048, v3072, v4096] = vectors::MODP else { panic!("three groups") };
    check_vectors(&MODP_2048, *v2048);
    check_vectors(&MODP_3072, *v3072);
    check_vectors(&MODP_4096, *v4096);
}

fn check_range<const LIMBS: usize>(group: &'static Modp<LIMBS>) {
    let len = group.initiator_public_len();
    let p = group.params.modulus().as_ref();
    let octets = |value: &Uint<LIMBS>| {
        let mut octets = Vec::new();
        for limb in value.as_limbs().iter().rev() {
            octets.extend_from_slice(&limb.0.to_be_bytes());
        }
        octets
    };
    let small = |value: u8| {
        let mut octets = vec![0; len];
        octets[len - 1] = value;
        octets
    };
    let invalid = Err(CryptoError::PublicValueInvalid { group: group.name });
    let check = |public: &[u8]| group.check(public).map(drop);
    assert_eq!(check(&small(0)), invalid);
    assert_eq!(check(&small(1)), invalid);
    assert_eq!(check(&octets(&p.wrapping_sub(&Uint::ONE))), invalid);
    assert_eq!(check(&octets(p)), invalid);
    assert_eq!(check(&octets(&p.wrapping_add(&Uint::ONE))), invalid);
    assert_eq!(check(&vec![0xff; len]), invalid);
    assert_eq!(check(&small(2)), Ok(()));
    assert_eq!(check(&octets(&p.wrapping_sub(&Uint::from_u8(2)))), Ok(()));
    assert!(matches!(check(&small(2)[1..]), Err(CryptoError::PublicValueLength { .. })));
}

#[test]
fn public_values_outside_the_range_of_rfc_6989_are_refused() {
    check_range(&MODP_2048);
    check_range(&MODP_3072);
    check_range(&MODP_4096);
}

#[test]
fn short_results_are_padded_to_the_length_of_the_modulus() {
    let group = &MODP_2048;
    let octets = group.power(&Uint::from_u8(2), &U512::from_u8(5));
    assert_eq!(octets.len(), 256);
    assert_eq!(octets[255], 32);
    assert!(octets[..255].iter().all(|octet| *octet == 0));
}
