//! Signature verification against OpenSSL's signatures, and what must be refused.
#![allow(clippy::unwrap_used)]

#[path = "data/crypto_vectors.rs"]
mod vectors;

use ike::crypto::{
    CryptoProvider, Curve, SignatureError, SignatureScheme as S, ecdsa_der_from_raw,
    ecdsa_raw_from_der,
};
use vectors as v;

fn providers() -> Vec<&'static CryptoProvider> {
    vec![
        &ike::crypto::ring::PROVIDER,
        #[cfg(feature = "aws-lc")]
        &ike::crypto::aws_lc::PROVIDER,
    ]
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

const VALID: &[(S, &str, &str)] = &[
    (S::RsaPkcs1Sha256, v::RSA_SPKI, v::RSA_PKCS1_SHA256),
    (S::RsaPkcs1Sha384, v::RSA_SPKI, v::RSA_PKCS1_SHA384),
    (S::RsaPkcs1Sha512, v::RSA_SPKI, v::RSA_PKCS1_SHA512),
    (S::RsaPssSha256, v::RSA_SPKI, v::RSA_PSS_SHA256),
    (S::RsaPssSha384, v::RSA_SPKI, v::RSA_PSS_SHA384),
    (S::RsaPssSha512, v::RSA_SPKI, v::RSA_PSS_SHA512),
    (S::EcdsaSha256, v::P256_SPKI, v::P256_SHA256),
    (S::EcdsaSha384, v::P256_SPKI, v::P256_SHA384),
    (S::EcdsaSha256, v::P384_SPKI, v::P384_SHA256),
    (S::EcdsaSha384, v::P384_SPKI, v::P384_SHA384),
    (S::Ed25519, v::ED25519_SPKI, v::ED25519_SIGNATURE),
];

/// Only `aws-lc` has these.
const VALID_AWS_LC: &[(S, &str, &str)] = &[
    (S::EcdsaSha512, v::P256_SPKI, v::P256_SHA512),
    (S::EcdsaSha512, v::P384_SPKI, v::P384_SHA512),
    (S::EcdsaSha256, v::P521_SPKI, v::P521_SHA256),
    (S::EcdsaSha384, v::P521_SPKI, v::P521_SHA384),
    (S::EcdsaSha512, v::P521_SPKI, v::P521_SHA512),
];

#[test]
fn valid_signatures_of_every_scheme_verify() {
    let message = hex(v::MESSAGE);
    for provider in providers() {
        for (scheme, spki, signature) in VALID {
            let verified = provider.verify(*scheme, &hex(spki), &message, &hex(signature));
            assert_eq!(verified, Ok(()), "{} {scheme:?}", provider.name);
        }
        for (scheme, spki, signature) in VALID_AWS_LC {
            let verified = provider.verify(*scheme, &hex(spki), &message, &hex(signature));
            if provider.name == "aws-lc" {
                assert_eq!(verified, Ok(()), "{scheme:?}");
            } else {
                assert!(matches!(verified, Err(SignatureError::Unsupported(_))), "{verified:?}");
            }
        }
        let rfc8032 = hex(v::ED25519_RFC8032);
        assert_eq!(provider.verify(S::Ed25519, &hex(v::ED25519_SPKI), &[0x72], &rfc8032), Ok(()));
    }
}

#[test]
fn a_signature_is_bound_to_message_key_and_scheme() {
    let message = hex(v::MESSAGE);
    for provider in providers() {
        for (scheme, spki, signature) in VALID {
            let (spki, signature) = (hex(spki), hex(signature));
            let verify =
                |scheme, message: &[u8]| provider.verify(scheme, &spki, message, &signature);
            let mut other = message.clone();
            other[0] ^= 1;
            assert_eq!(verify(*scheme, &other), Err(SignatureError::Mismatch));
            assert_eq!(verify(*scheme, &[]), Err(SignatureError::Mismatch));
            for wrong in S::ALL {
                if wrong != *scheme {
                    assert!(verify(wrong, &message).is_err(), "{scheme:?} as {wrong:?}");
                }
            }
        }
    }
}

#[test]
fn damaged_signatures_are_refused() {
    let message = hex(v::MESSAGE);
    for provider in providers() {
        for (scheme, spki, signature) in VALID {
            let (spki, signature) = (hex(spki), hex(signature));
            let refused = |damaged: &[u8]| {
                let result = provider.verify(*scheme, &spki, &message, damaged);
                assert!(result.is_err(), "{} {scheme:?} {}", provider.name, damaged.len());
            };
            refused(&[]);
            refused(&signature[1..]);
            refused(&signature[..signature.len() - 1]);
            refused(&[&signature[..], &[0]].concat());
            refused(&[&[0], &signature[..]].concat());
            refused(&vec![0; signature.len()]);
            refused(&vec![0xff; signature.len()]);
            for at in [0, signature.len() / 2, signature.len() - 1] {
                let mut damaged = signature.clone();
                damaged[at] ^= 0x01;
                refused(&damaged);
            }
        }
    }
}

fn ecdsa(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut contents = Vec::new();
    for number in [r, s] {
        contents.push(2);
        contents.push(number.len() as u8);
        contents.extend_from_slice(number);
    }
    [&[0x30, contents.len() as u8], &contents[..]].concat()
}

#[test]
fn ecdsa_edge_values_and_encodings_are_refused() {
    let message = hex(v::MESSAGE);
    let spki = hex(v::P256_SPKI);
    let n = hex("00ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let raw = hex(v::P256_RAW);
    let (r, s) = raw.split_at(32);
    let (r, s) = ([&[0], r].concat(), [&[0], s].concat());
    let minimal = |number: &[u8]| {
        if number[1] & 0x80 == 0 { number[1..].to_vec() } else { number.to_vec() }
    };
    let (min_r, min_s) = (minimal(&r), minimal(&s));
    let der = hex(v::P256_SHA256);
    assert_eq!(ecdsa(&min_r, &min_s), der);
    // r + n needs 257 bits, and equals r for who reduces it.
    let mut r_plus_n = vec![0; 33];
    let mut carry = 0u16;
    for i in (0..33).rev() {
        let sum = u16::from(r[i]) + u16::from(n[i]) + carry;
        r_plus_n[i] = sum as u8;
        carry = sum >> 8;
    }
    let mut long_form = vec![0x30, 0x81];
    long_form.extend_from_slice(&der[1..]);
    let refused: &[(&str, Vec<u8>)] = &[
        ("r = 0", ecdsa(&[0], &min_s)),
        ("s = 0", ecdsa(&min_r, &[0])),
        ("both 0", ecdsa(&[0], &[0])),
        ("both 1", ecdsa(&[1], &[1])),
        ("r = n", ecdsa(&n, &min_s)),
        ("s = n", ecdsa(&min_r, &n)),
        ("r + n", ecdsa(&r_plus_n, &min_s)),
        ("empty r", ecdsa(&[], &min_s)),
        ("negative r", ecdsa(&[0x80], &min_s)),
        ("padded r", ecdsa(&[&[0, 0], &min_r[..]].concat(), &min_s)),
        ("long form length", long_form),
        ("trailing octet", [&der[..], &[0]].concat()),
        ("not a sequence", [&[0x31], &der[1..]].concat()),
        ("raw instead of DER", raw.clone()),
    ];
    for provider in providers() {
        for (what, signature) in refused {
            let result = provider.verify(S::EcdsaSha256, &spki, &message, signature);
            assert!(result.is_err(), "{}: {what}", provider.name);
        }
    }
}

#[test]
fn ed25519_refuses_a_scalar_beyond_the_order() {
    // s + L verifies for who does not check the range (RFC 8032 5.1.7).
    let order = hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut signature = hex(v::ED25519_SIGNATURE);
    let mut carry = 0u16;
    for (octet, add) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*octet) + u16::from(add) + carry;
        *octet = sum as u8;
        carry = sum >> 8;
    }
    for provider in providers() {
        let (spki, message) = (hex(v::ED25519_SPKI), hex(v::MESSAGE));
        assert_eq!(
            provider.verify(S::Ed25519, &spki, &message, &signature),
            Err(SignatureError::Mismatch)
        );
    }
}

#[test]
fn classic_methods_use_raw_ecdsa_tied_to_its_curve() {
    // RFC 4754 3, 7.
    let message = hex(v::MESSAGE);
    for provider in providers() {
        let verify = |curve, spki: &str, raw: &str| {
            provider.verify_ecdsa_classic(curve, &hex(spki), &message, &hex(raw))
        };
        assert_eq!(verify(Curve::P256, v::P256_SPKI, v::P256_RAW), Ok(()));
        assert_eq!(verify(Curve::P384, v::P384_SPKI, v::P384_RAW), Ok(()));
        if provider.name == "aws-lc" {
            assert_eq!(verify(Curve::P521, v::P521_SPKI, v::P521_RAW), Ok(()));
        }
        assert_eq!(
            verify(Curve::P384, v::P256_SPKI, v::P256_RAW),
            Err(SignatureError::KeyMismatch { scheme: "ECDSA with SHA2-384", key: "ECDSA P-256" })
        );
        assert!(matches!(
            verify(Curve::P256, v::P256_SPKI, &v::P256_RAW[2..]),
            Err(SignatureError::MalformedSignature(_))
        ));
        assert!(verify(Curve::P256, v::P256_SPKI, v::P256_SHA256).is_err());
    }
}

#[test]
fn raw_and_der_convert_into_each_other() {
    for (curve, der, raw) in [
        (Curve::P256, v::P256_SHA256, v::P256_RAW),
        (Curve::P384, v::P384_SHA384, v::P384_RAW),
        (Curve::P521, v::P521_SHA512, v::P521_RAW),
    ] {
        assert_eq!(ecdsa_raw_from_der(curve, &hex(der)), Ok(hex(raw)));
        assert_eq!(ecdsa_der_from_raw(curve, &hex(raw)), Ok(hex(der)));
    }
    // Leading zeros vanish in DER and come back; a set high bit needs one more octet.
    let mut raw = vec![0; 64];
    raw[31] = 0x7f;
    raw[32] = 0x80;
    let der = ecdsa_der_from_raw(Curve::P256, &raw).unwrap();
    assert_eq!(der[..8], [0x30, 38, 2, 1, 0x7f, 2, 33, 0]);
    assert_eq!(ecdsa_raw_from_der(Curve::P256, &der), Ok(raw));
    assert!(ecdsa_raw_from_der(Curve::P256, &hex(v::P384_SHA384)).is_err());
}

#[test]
fn rsa_without_a_named_hash_accepts_sha2_and_names_sha1() {
    // RFC 7296 3.8: method 1 names no hash. RFC 8247 3.1.
    let (spki, message) = (hex(v::RSA_SPKI), hex(v::MESSAGE));
    for provider in providers() {
        let verify =
            |signature: &str| provider.verify_rsa_classic(&spki, &message, &hex(signature));
        assert_eq!(verify(v::RSA_PKCS1_SHA256), Ok(()));
        assert_eq!(verify(v::RSA_PKCS1_SHA384), Ok(()));
        assert_eq!(verify(v::RSA_PKCS1_SHA512), Ok(()));
        assert_eq!(verify(v::RSA_PKCS1_SHA1), Err(SignatureError::Sha1));
        assert_eq!(verify(v::RSA_PSS_SHA256), Err(SignatureError::Mismatch));
        assert_eq!(
            provider.verify_rsa_classic(&hex(v::P256_SPKI), &message, &hex(v::P256_SHA256)),
            Err(SignatureError::KeyMismatch {
                scheme: "RSASSA-PKCS1-v1_5 with SHA2-256",
                key: "ECDSA P-256"
            })
        );
    }
    assert!(SignatureError::Sha1.to_string().contains("strongSwan"));
}

#[test]
fn short_rsa_keys_and_foreign_salts_are_refused() {
    // RFC 8247 3.1.1, RFC 7427 A.4.
    let message = hex(v::MESSAGE);
    for provider in providers() {
        assert_eq!(
            provider.verify(
                S::RsaPkcs1Sha256,
                &hex(v::RSA1024_SPKI),
                &message,
                &hex(v::RSA1024_PKCS1_SHA256)
            ),
            Err(SignatureError::RsaTooShort(1024))
        );
        assert_eq!(
            provider.verify(
                S::RsaPssSha256,
                &hex(v::RSA_SPKI),
                &message,
                &hex(v::RSA_PSS_SHA256_SALT20)
            ),
            Err(SignatureError::Mismatch)
        );
    }
}
