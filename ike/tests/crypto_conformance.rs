//! One suite for every provider, and for every two of them as the two ends.
#![allow(clippy::unwrap_used)]

#[path = "data/crypto_vectors.rs"]
mod vectors;

use std::collections::BTreeSet;

use ike::crypto::suite::{integ_icv_len, integ_key_len};
use ike::crypto::{
    CipherAlgorithm, CryptoError, CryptoProvider, HashFunction, KeMethod, KexExecutor, KexKind,
    KexRequest, KexResponse, KeyedCipher, SecretBytes, Signer, ring,
};
use vectors as v;

fn providers() -> Vec<&'static CryptoProvider> {
    vec![
        &ring::PROVIDER,
        #[cfg(feature = "aws-lc")]
        &ike::crypto::aws_lc::PROVIDER,
    ]
}

fn pairs() -> impl Iterator<Item = (&'static CryptoProvider, &'static CryptoProvider)> {
    providers().into_iter().flat_map(|a| providers().into_iter().map(move |b| (a, b)))
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn a_table_names_each_algorithm_once_and_finds_it() {
    for provider in providers() {
        let kex: BTreeSet<_> = provider.kex.iter().map(|group| group.method()).collect();
        assert_eq!(kex.len(), provider.kex.len());
        assert!(kex.iter().all(|id| provider.group(*id).unwrap().method() == *id));
        let prfs: BTreeSet<_> = provider.prfs.iter().map(|prf| prf.id()).collect();
        assert_eq!(prfs.len(), 3);
        assert!(prfs.iter().all(|id| provider.prf(*id).unwrap().id() == *id));
        let integs: BTreeSet<_> = provider.integs.iter().map(|integ| integ.id()).collect();
        assert_eq!(integs.len(), 3);
        let ciphers: BTreeSet<_> = provider.ciphers.iter().map(|c| c.encryption()).collect();
        assert_eq!(ciphers.len(), 13);
        assert!(ciphers.iter().all(|id| provider.cipher(*id).unwrap().encryption() == *id));
    }
}

#[test]
fn lengths_agree_with_the_suites() {
    for provider in providers() {
        for cipher in provider.ciphers {
            let encryption = cipher.encryption();
            assert_eq!(Some(cipher.key_len()), encryption.keymat_len());
            assert_eq!(cipher.is_aead(), encryption.is_aead());
            assert_eq!(cipher.name(), encryption.to_string());
            let keyed = keyed(provider, *cipher, 1);
            assert_eq!(keyed.iv_len(), encryption.iv_len());
            if cipher.is_aead() {
                assert_eq!(keyed.icv_len(), encryption.icv_len());
            }
        }
        for integ in provider.integs {
            assert_eq!(Some(integ.key_len()), integ_key_len(integ.id()));
            assert_eq!(Some(integ.icv_len()), integ_icv_len(integ.id()));
        }
        for prf in provider.prfs {
            assert_eq!(prf.compute(b"key", &[]).len(), prf.output_len());
            assert_eq!((prf.key_len(), prf.fixed_key()), (prf.output_len(), false));
        }
    }
}

#[test]
fn both_ends_of_a_key_exchange_agree() {
    for (initiator, responder) in pairs() {
        for group in initiator.kex {
            let Some(other) = responder.group(group.method()) else { continue };
            let share = group.generate().unwrap();
            assert_eq!(share.public.len(), group.initiator_public_len());
            let (answer, responders) = match other.kind() {
                KexKind::Kem => other.encapsulate(&share.public).unwrap(),
                KexKind::DiffieHellman => {
                    let own = other.generate().unwrap();
                    (own.public.clone(), own.secret.agree(&share.public).unwrap())
                }
            };
            assert_eq!(answer.len(), group.responder_public_len());
            let initiators = share.secret.agree(&answer).unwrap();
            assert_eq!(initiators.expose(), responders.expose(), "{group:?}");
            assert!(initiators.expose().iter().any(|octet| *octet != 0));
            assert_ne!(group.generate().unwrap().public, group.generate().unwrap().public);
        }
    }
}

#[test]
fn public_values_of_a_wrong_length_are_refused() {
    for provider in providers() {
        for group in provider.kex {
            let len = group.responder_public_len();
            for wrong in [0, 1, len - 1, len + 1] {
                let secret = group.generate().unwrap().secret;
                assert_eq!(
                    secret.agree(&vec![4; wrong]).unwrap_err(),
                    CryptoError::PublicValueLength {
                        group: group.name(),
                        expected: len,
                        actual: wrong
                    }
                );
            }
            if group.kind() == KexKind::DiffieHellman {
                assert_eq!(
                    group.encapsulate(&vec![2; len]).unwrap_err(),
                    CryptoError::WrongKexKind(group.name())
                );
            } else {
                assert!(group.encapsulate(&vec![0; group.initiator_public_len() - 1]).is_err());
            }
        }
    }
}

fn refuses(provider: &CryptoProvider, method: KeMethod, public: &[u8]) {
    let Some(group) = provider.group(method) else { return };
    let result = group.generate().unwrap().secret.agree(public);
    let expected = CryptoError::PublicValueInvalid { group: group.name() };
    assert_eq!(result.unwrap_err(), expected, "{} {public:02x?}", provider.name);
}

#[test]
fn x25519_points_of_small_order_are_refused() {
    // RFC 7748 6.1: each leads to the all-zero secret, with the top bit set or not.
    let low = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for provider in providers() {
        for point in low {
            let mut point = hex(point);
            refuses(provider, KeMethod::Curve25519, &point);
            point[31] |= 0x80;
            refuses(provider, KeMethod::Curve25519, &point);
        }
    }
}

#[test]
fn points_off_their_curve_are_refused() {
    // RFC 6989 2.3.
    for provider in providers() {
        for (method, point) in [
            (KeMethod::Ecp256, v::ECP256_GI),
            (KeMethod::Ecp384, v::ECP384_GI),
            (KeMethod::Ecp521, v::ECP521_GI),
        ] {
            let point = hex(point);
            let len = point.len();
            refuses(provider, method, &vec![0; len]);
            refuses(provider, method, &vec![0xff; len]);
            let mut off = point.clone();
            off[len - 1] ^= 1;
            refuses(provider, method, &off);
            let swapped = [&point[len / 2..], &point[..len / 2]].concat();
            refuses(provider, method, &swapped);
        }
        // x + p is the same point for who reduces it: with x = 5 there is one on P-256.
        let x_plus_p = "ffffffff00000001000000000000000000000001000000000000000000000004";
        let y = "459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc";
        refuses(provider, KeMethod::Ecp256, &hex(&format!("{x_plus_p}{y}")));
        let x = "0000000000000000000000000000000000000000000000000000000000000005";
        let group = provider.group(KeMethod::Ecp256).unwrap();
        let secret = group.generate().unwrap().secret;
        assert!(secret.agree(&hex(&format!("{x}{y}"))).is_ok());
    }
}

#[cfg(feature = "aws-lc")]
#[test]
fn ml_kem_refuses_unreduced_keys_and_rejects_ciphertexts_implicitly() {
    let provider = &ike::crypto::aws_lc::PROVIDER;
    for method in [KeMethod::MlKem512, KeMethod::MlKem768, KeMethod::MlKem1024] {
        let group = provider.group(method).unwrap();
        let unreduced = vec![0xff; group.initiator_public_len()];
        assert_eq!(
            group.encapsulate(&unreduced).unwrap_err(),
            CryptoError::PublicValueInvalid { group: group.name() }
        );
        let share = group.generate().unwrap();
        let (mut ciphertext, secret) = group.encapsulate(&share.public).unwrap();
        ciphertext[7] ^= 1;
        assert_ne!(share.secret.agree(&ciphertext).unwrap(), secret);
    }
}

fn key(len: usize, seed: u8) -> SecretBytes {
    SecretBytes::new((0..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect())
}

fn keyed(
    provider: &'static CryptoProvider,
    cipher: &dyn CipherAlgorithm,
    seed: u8,
) -> Box<dyn KeyedCipher> {
    let integ = provider.integs[usize::from(seed) % provider.integs.len()];
    let integ_key = key(integ.key_len(), seed);
    let integrity = (!cipher.is_aead()).then_some((integ, &integ_key));
    cipher.keyed(&key(cipher.key_len(), seed), integrity).unwrap()
}

#[test]
fn what_one_seals_the_other_opens_and_nothing_else() {
    for (sealer, opener) in pairs() {
        for (algorithm, seed) in sealer.ciphers.iter().zip(0..) {
            let cipher = keyed(sealer, *algorithm, seed);
            let other = opener.cipher(algorithm.encryption()).unwrap();
            let opening = keyed(opener, other, seed);
            let iv = key(cipher.iv_len(), 99).expose().to_vec();
            for len in [0, 16, 48, 1408] {
                let plain = vec![0xa5; len];
                let mut sealed = plain.clone();
                let icv = cipher.seal(&iv, b"header", &mut sealed).unwrap();
                assert!(len == 0 || sealed != plain);

                let open = |iv: &[u8], aad: &[u8], text: &[u8], icv: &[u8]| {
                    let mut text = text.to_vec();
                    opening.open(iv, aad, &mut text, icv).map(|()| text)
                };
                assert_eq!(open(&iv, b"header", &sealed, &icv).unwrap(), plain, "{algorithm:?}");

                let damaged = |octets: &[u8]| {
                    let mut octets = octets.to_vec();
                    octets[0] ^= 0x80;
                    octets
                };
                let refused = Err(CryptoError::Authentication);
                assert_eq!(open(&iv, b"Header", &sealed, &icv), refused);
                assert_eq!(open(&iv, b"", &sealed, &icv), refused);
                assert_eq!(open(&damaged(&iv), b"header", &sealed, &icv), refused);
                assert_eq!(open(&iv, b"header", &sealed, &damaged(&icv)), refused);
                assert_eq!(open(&iv, b"header", &sealed, &icv[1..]), refused);
                assert_eq!(open(&iv, b"header", &sealed, &[]), refused);
                if len > 0 {
                    assert_eq!(open(&iv, b"header", &damaged(&sealed), &icv), refused);
                    assert_eq!(open(&iv, b"header", &sealed[1..], &icv), refused);
                }
                assert!(open(&iv[1..], b"header", &sealed, &icv).is_err());
                let stranger = keyed(opener, other, seed.wrapping_add(3));
                let mut text = sealed.clone();
                assert!(stranger.open(&iv, b"header", &mut text, &icv).is_err());
            }
        }
    }
}

#[test]
fn ciphers_refuse_wrong_keys_and_partial_blocks() {
    for provider in providers() {
        let integ = provider.integs[0];
        let integ_key = key(integ.key_len(), 0);
        for cipher in provider.ciphers {
            let good = key(cipher.key_len(), 0);
            let integrity = (!cipher.is_aead()).then_some((integ, &integ_key));
            for wrong in [0, cipher.key_len() - 1, cipher.key_len() + 1] {
                assert!(matches!(
                    cipher.keyed(&key(wrong, 0), integrity),
                    Err(CryptoError::KeyLength { .. })
                ));
            }
            let misfit = if cipher.is_aead() { Some((integ, &integ_key)) } else { None };
            assert!(matches!(cipher.keyed(&good, misfit), Err(CryptoError::Unsupported(_))));
            if !cipher.is_aead() {
                let short = key(integ.key_len() - 1, 0);
                assert!(cipher.keyed(&good, Some((integ, &short))).is_err());
                let keyed = cipher.keyed(&good, integrity).unwrap();
                assert!(keyed.seal(&[0; 16], b"", &mut [0; 15]).is_err());
                // A valid checksum over a partial block.
                let icv = integ.compute(integ_key.expose(), &[&[0; 16], &[0; 15]]);
                assert_eq!(
                    keyed.open(&[0; 16], b"", &mut [0; 15], &icv),
                    Err(CryptoError::Authentication)
                );
            }
        }
    }
}

#[test]
fn functions_of_two_providers_are_the_same() {
    let data: Vec<u8> = (0..300u16).map(|i| i as u8).collect();
    for (a, b) in pairs() {
        for function in
            [HashFunction::Sha1, HashFunction::Sha256, HashFunction::Sha384, HashFunction::Sha512]
        {
            let whole = a.digest(function, &[&data]);
            assert_eq!(whole.len(), function.output_len());
            assert_eq!(whole, b.digest(function, &[&data[..100], &[], &data[100..]]));
        }
        for (x, y) in a.prfs.iter().zip(b.prfs) {
            for len in [0, 1, 64, 128, 200] {
                assert_eq!(
                    x.compute(&data[..len], &[&data]),
                    y.compute(&data[..len], &[&data[..7], &data[7..]])
                );
            }
        }
        for (x, y) in a.integs.iter().zip(b.integs) {
            let icv = x.compute(&data[..x.key_len()], &[&data]);
            assert_eq!(y.verify(&data[..y.key_len()], &[&data], &icv), Ok(()));
        }
    }
}

fn signers(pkcs8: &[u8]) -> Vec<Box<dyn Signer>> {
    let mut signers: Vec<Box<dyn Signer>> = Vec::new();
    if let Ok(signer) = ring::Pkcs8Signer::from_pkcs8(pkcs8) {
        signers.push(Box::new(signer));
    }
    #[cfg(feature = "aws-lc")]
    signers.push(Box::new(ike::crypto::aws_lc::Pkcs8Signer::from_pkcs8(pkcs8).unwrap()));
    signers
}

#[test]
fn what_one_signs_every_provider_verifies() {
    let mut signed = 0;
    for (pkcs8, spki) in [
        (v::RSA_PKCS8, v::RSA_SPKI),
        (v::P256_PKCS8, v::P256_SPKI),
        (v::P384_PKCS8, v::P384_SPKI),
        (v::P521_PKCS8, v::P521_SPKI),
        (v::ED25519_PKCS8, v::ED25519_SPKI),
    ] {
        for signer in signers(&hex(pkcs8)) {
            for &scheme in signer.schemes() {
                let signature = signer.sign(scheme, b"message").unwrap();
                signed += 1;
                for provider in providers() {
                    if pkcs8 == v::P521_PKCS8 && provider.name == "ring" {
                        continue;
                    }
                    let spki = hex(spki);
                    assert_eq!(provider.verify(scheme, &spki, b"message", &signature), Ok(()));
                    assert!(provider.verify(scheme, &spki, b"massage", &signature).is_err());
                }
            }
            let foreign = ike::crypto::SignatureScheme::ALL
                .into_iter()
                .find(|scheme| !signer.schemes().contains(scheme))
                .unwrap();
            assert!(signer.sign(foreign, b"message").is_err());
            assert!(format!("{signer:?}").len() < 60);
        }
    }
    assert_eq!(signed, if cfg!(feature = "aws-lc") { 9 + 10 } else { 9 });
    assert!(ring::Pkcs8Signer::from_pkcs8(b"no key").is_err());
}

#[test]
fn the_executor_runs_both_halves_and_forgets() {
    for (a, b) in pairs() {
        let (mut initiator, mut responder) = (KexExecutor::new(a), KexExecutor::new(b));
        let group = KeMethod::Ecp256;
        let public = |response| match response {
            KexResponse::Generated { public, .. } => public,
            other => panic!("{other:?}"),
        };
        let gi = public(initiator.execute(KexRequest::Generate { handle: 1, group }));
        let gr = public(responder.execute(KexRequest::Generate { handle: 9, group }));
        assert_eq!((initiator.pending(), responder.pending()), (1, 1));
        let i = initiator.execute(KexRequest::Agree { handle: 1, peer_public: gr });
        let r = responder.execute(KexRequest::Agree { handle: 9, peer_public: gi.clone() });
        match (i, r) {
            (
                KexResponse::Agreed { handle: 1, secret: i },
                KexResponse::Agreed { handle: 9, secret: r },
            ) => assert_eq!(i, r),
            other => panic!("{other:?}"),
        }
        assert_eq!((initiator.pending(), responder.pending()), (0, 0));
        assert_eq!(
            responder.execute(KexRequest::Agree { handle: 9, peer_public: gi }),
            KexResponse::Failed { handle: 9, error: CryptoError::UnknownHandle(9) }
        );
    }
}

#[test]
fn the_executor_survives_misuse_without_leaks() {
    let mut executor = KexExecutor::new(&ring::PROVIDER);
    let group = KeMethod::Curve25519;
    let unsupported = KexRequest::Generate { handle: 1, group: KeMethod::Modp1024 };
    assert!(matches!(executor.execute(unsupported), KexResponse::Failed { handle: 1, .. }));
    assert_eq!(executor.pending(), 0);

    executor.execute(KexRequest::Generate { handle: 2, group });
    assert_eq!(
        executor.execute(KexRequest::Generate { handle: 2, group }),
        KexResponse::Failed { handle: 2, error: CryptoError::HandleInUse(2) }
    );
    assert_eq!(executor.pending(), 1);
    let bad = KexRequest::Agree { handle: 2, peer_public: vec![0; 32] };
    assert!(matches!(executor.execute(bad), KexResponse::Failed { handle: 2, .. }));
    assert_eq!(executor.pending(), 0);

    // Dropped while the job is out on another thread; a second job under the same handle
    // must not cost the first.
    let job = executor.prepare(KexRequest::Generate { handle: 3, group });
    let twice = executor.prepare(KexRequest::Generate { handle: 3, group }).run();
    assert!(matches!(executor.absorb(twice), KexResponse::Failed { .. }));
    assert_eq!(executor.pending(), 1);
    let outcome = std::thread::spawn(move || job.run()).join().unwrap();
    assert_eq!(
        executor.execute(KexRequest::Drop { handle: 3 }),
        KexResponse::Dropped { handle: 3 }
    );
    assert!(matches!(executor.absorb(outcome), KexResponse::Failed { handle: 3, .. }));
    assert_eq!(executor.pending(), 0);
    assert!(!format!("{executor:?}").contains("secret"));
}

#[test]
fn secrets_show_only_their_length() {
    let secret = SecretBytes::copy_from(&[0xab; 20]);
    assert_eq!(format!("{secret:?}"), "SecretBytes(20 octets)");
    let agreed = KexResponse::Agreed { handle: 1, secret };
    assert!(!format!("{agreed:?}").to_lowercase().contains("ab, ab"));
    assert!(!format!("{agreed:?}").contains("171"));
}
