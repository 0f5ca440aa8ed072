use super::*;
use crate::crypto::vectors;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn decode(text: &str) -> Result<SignatureScheme, SignatureError> {
    SignatureScheme::from_algorithm_identifier(&hex(text))
}

/// RFC 7427 appendix A.4.3.
const PSS_SHA256: &str = "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c\
    301a06092a864886f70d010108300d06096086480165030402010500a203020120";

#[test]
fn identifiers_are_those_of_rfc_7427_appendix_a() {
    for (scheme, der) in [
        (SignatureScheme::RsaPkcs1Sha256, "300d06092a864886f70d01010b0500"),
        (SignatureScheme::RsaPkcs1Sha384, "300d06092a864886f70d01010c0500"),
        (SignatureScheme::RsaPkcs1Sha512, "300d06092a864886f70d01010d0500"),
        (SignatureScheme::EcdsaSha256, "300a06082a8648ce3d040302"),
        (SignatureScheme::EcdsaSha384, "300a06082a8648ce3d040303"),
        (SignatureScheme::EcdsaSha512, "300a06082a8648ce3d040304"),
        (SignatureScheme::RsaPssSha256, PSS_SHA256),
        (SignatureScheme::Ed25519, "300506032b6570"),
    ] {
        assert_eq!(scheme.algorithm_identifier(), hex(der));
    }
    for scheme in SignatureScheme::ALL {
        let der = scheme.algorithm_identifier();
        assert_eq!(SignatureScheme::from_algorithm_identifier(&der), Ok(scheme));
    }
}

#[test]
fn weak_identifiers_are_refused_by_name() {
    assert_eq!(decode("300d06092a864886f70d0101050500"), Err(SignatureError::Sha1));
    assert_eq!(decode("300906072a8648ce3d0401"), Err(SignatureError::Sha1));
    let pss = "06092a864886f70d01010a";
    assert_eq!(decode(&format!("300b{pss}")), Err(SignatureError::PssDefaultParameters));
    assert_eq!(decode(&format!("300d{pss}3000")), Err(SignatureError::PssDefaultParameters));
    // The hash is stated, the mask function is not.
    assert_eq!(
        decode(&format!("301e{pss}3011a00f300d06096086480165030402010500")),
        Err(SignatureError::PssDefaultParameters)
    );
    // SHA-1 stated in full: hash, mask function, salt 20.
    assert_eq!(
        decode(&format!(
            "3039{pss}302ca00b300906052b0e03021a0500a118301606092a864886f70d0101083009\
             06052b0e03021a0500a203020114"
        )),
        Err(SignatureError::Sha1)
    );
    assert_eq!(decode("300506032b6571"), Err(SignatureError::Unsupported("Ed448".to_owned())));
    assert_eq!(
        decode("300d06092a864886f70d0101040500"),
        Err(SignatureError::Unsupported("OID 1.2.840.113549.1.1.4".to_owned()))
    );
}

#[test]
fn pss_parameters_must_be_one_hash_and_its_salt() {
    assert_eq!(
        decode(&PSS_SHA256.replace("a203020120", "a203020114")),
        Err(SignatureError::PssParameters)
    );
    // Hash SHA2-256, mask function SHA2-512.
    let mixed = PSS_SHA256.replacen(
        "010108300d06096086480165030402010500",
        "010108300d06096086480165030402030500",
        1,
    );
    assert_ne!(mixed, PSS_SHA256);
    assert_eq!(decode(&mixed), Err(SignatureError::PssParameters));
    // The default trailer spelled out is the same scheme.
    let trailer = PSS_SHA256.replace("3041", "3046").replace("3034a0", "3039a0") + "a303020101";
    assert_eq!(decode(&trailer), Ok(SignatureScheme::RsaPssSha256));
    let trailer = trailer.replace("a303020101", "a303020102");
    assert_eq!(decode(&trailer), Err(SignatureError::PssParameters));
    // Without NULL beside the hashes (RFC 4055 2.1).
    let absent = "303d06092a864886f70d01010a3030a00d300b0609608648016503040201a11a\
        301806092a864886f70d010108300b0609608648016503040201a203020120";
    assert_eq!(decode(absent), Ok(SignatureScheme::RsaPssSha256));
}

#[test]
fn identifiers_with_anything_extra_are_malformed() {
    for der in [
        "",
        "30",
        "3000",
        "300a06082a8648ce3d04030200",
        "300c06082a8648ce3d0403020500",
        "300706032b65700500",
        "30810a06082a8648ce3d040302",
        "310a06082a8648ce3d040302",
        "300d06092a864886f70d01010b0501",
        "300f06092a864886f70d01010b05000500",
    ] {
        assert!(
            matches!(decode(der), Err(SignatureError::MalformedAlgorithm(_))),
            "{der}: {:?}",
            decode(der)
        );
    }
    // Absent parameters of RSA are accepted (RFC 4055 5).
    assert_eq!(decode("300b06092a864886f70d01010b"), Ok(SignatureScheme::RsaPkcs1Sha256));
}

#[test]
fn every_prefix_of_a_key_or_identifier_is_refused_without_panic() {
    for spki in [vectors::RSA_SPKI, vectors::P256_SPKI, vectors::P521_SPKI, vectors::ED25519_SPKI] {
        let spki = hex(spki);
        assert!(PublicKey::from_spki(&spki).is_ok());
        for len in 0..spki.len() {
            assert!(PublicKey::from_spki(&spki[..len]).is_err());
        }
        assert!(PublicKey::from_spki(&[&spki[..], &[0]].concat()).is_err());
        for at in 0..spki.len().min(64) {
            for bit in 0..8 {
                let mut damaged = spki.clone();
                damaged[at] ^= 1 << bit;
                // Whatever it says, it says it without a panic.
                let _ = PublicKey::from_spki(&damaged);
            }
        }
    }
    let pss = hex(PSS_SHA256);
    for len in 0..pss.len() {
        assert!(SignatureScheme::from_algorithm_identifier(&pss[..len]).is_err());
    }
}

#[test]
fn keys_name_themselves_and_their_schemes() {
    let rsa = hex(vectors::RSA_SPKI);
    let key = PublicKey::from_spki(&rsa).unwrap();
    assert!(matches!(key, PublicKey::Rsa { bits: 2048, usage: RsaUse::Any, .. }));
    assert_eq!(key.name(), "RSA");
    assert_eq!(SignatureScheme::ALL.iter().filter(|scheme| key.fits(**scheme)).count(), 6);
    for (spki, curve, name) in [
        (vectors::P256_SPKI, Curve::P256, "ECDSA P-256"),
        (vectors::P384_SPKI, Curve::P384, "ECDSA P-384"),
        (vectors::P521_SPKI, Curve::P521, "ECDSA P-521"),
    ] {
        let spki = hex(spki);
        let key = PublicKey::from_spki(&spki).unwrap();
        assert!(matches!(key, PublicKey::Ec { curve: found, .. } if found == curve));
        assert_eq!(key.name(), name);
        assert!(key.fits(curve.classic_scheme()) && !key.fits(SignatureScheme::Ed25519));
    }
}

#[test]
fn pss_keys_verify_only_what_they_allow() {
    let plain = hex(vectors::RSA_SPKI);
    let identifier = hex("300d06092a864886f70d0101010500");
    let at = plain.windows(identifier.len()).position(|window| window == identifier).unwrap();
    let with = |identifier: &[u8]| {
        let mut contents = identifier.to_vec();
        contents.extend_from_slice(&plain[at + 15..]);
        let mut spki = Vec::new();
        der::push_element(&mut spki, der::SEQUENCE, &contents);
        spki
    };
    let provider = &crate::crypto::ring::PROVIDER;
    let message = hex(vectors::MESSAGE);
    let verify = |spki: &[u8], scheme, signature: &str| {
        provider.verify(scheme, spki, &message, &hex(signature))
    };
    let only = with(&hex(PSS_SHA256));
    let any = with(&hex("300b06092a864886f70d01010a"));
    for spki in [&only, &any] {
        assert_eq!(verify(spki, SignatureScheme::RsaPssSha256, vectors::RSA_PSS_SHA256), Ok(()));
        assert_eq!(
            verify(spki, SignatureScheme::RsaPkcs1Sha256, vectors::RSA_PKCS1_SHA256),
            Err(SignatureError::KeyMismatch {
                scheme: "RSASSA-PKCS1-v1_5 with SHA2-256",
                key: "RSASSA-PSS"
            })
        );
    }
    assert!(verify(&only, SignatureScheme::RsaPssSha512, vectors::RSA_PSS_SHA512).is_err());
    assert_eq!(verify(&any, SignatureScheme::RsaPssSha512, vectors::RSA_PSS_SHA512), Ok(()));
}

#[test]
fn unknown_keys_are_named() {
    // secp256k1
    let k256 = hex(vectors::P256_SPKI);
    let swapped: Vec<u8> = {
        let oid = hex("2a8648ce3d030107");
        let at = k256.windows(8).position(|window| window == oid).unwrap();
        let mut contents = hex("301006072a8648ce3d020106052b8104000a");
        contents.extend_from_slice(&k256[at + 8..]);
        let mut spki = Vec::new();
        der::push_element(&mut spki, der::SEQUENCE, &contents);
        spki
    };
    assert_eq!(
        PublicKey::from_spki(&swapped),
        Err(SignatureError::Unsupported("curve OID 1.3.132.0.10".to_owned()))
    );
    // A compressed point.
    let mut contents = hex("301306072a8648ce3d020106082a8648ce3d030107032200");
    contents.push(2);
    contents.extend_from_slice(&[7; 32]);
    let mut spki = Vec::new();
    der::push_element(&mut spki, der::SEQUENCE, &contents);
    assert!(matches!(PublicKey::from_spki(&spki), Err(SignatureError::MalformedKey(_))));
}

#[test]
fn an_rsa_modulus_beyond_the_bound_is_refused_before_it_costs_anything() {
    let mut modulus = vec![0xff; 1025];
    modulus[0] = 1;
    let mut pkcs1 = Vec::new();
    der::push_unsigned(&mut pkcs1, &modulus);
    der::push_unsigned(&mut pkcs1, &[1, 0, 1]);
    let mut bits = vec![0];
    der::push_element(&mut bits, der::SEQUENCE, &pkcs1);
    let mut contents = hex("300d06092a864886f70d0101010500");
    der::push_element(&mut contents, der::BIT_STRING, &bits);
    let mut spki = Vec::new();
    der::push_element(&mut spki, der::SEQUENCE, &contents);
    assert_eq!(PublicKey::from_spki(&spki), Err(SignatureError::RsaTooLong(8193)));
}

/// A provider that accepts everything it is asked.
#[derive(Debug)]
struct Gullible;

impl SignatureVerifier for Gullible {
    fn supports(&self, _: SignatureScheme, _: &PublicKey<'_>) -> bool {
        true
    }

    fn verify(
        &self,
        _: SignatureScheme,
        _: &PublicKey<'_>,
        _: &[u8],
        _: &[u8],
    ) -> Result<(), SignatureError> {
        Ok(())
    }
}

#[test]
fn what_must_hold_for_every_provider_does_not_depend_on_it() {
    let ring = &crate::crypto::ring::PROVIDER;
    let provider = CryptoProvider {
        name: "gullible",
        kex: ring.kex,
        prfs: ring.prfs,
        ciphers: ring.ciphers,
        integs: ring.integs,
        signatures: &Gullible,
        hashes: ring.hashes,
    };
    let verify = |scheme, spki: &str, signature: &[u8]| {
        provider.verify(scheme, &hex(spki), b"anything", signature)
    };
    let der = hex(vectors::P256_SHA256);
    assert_eq!(verify(SignatureScheme::EcdsaSha256, vectors::P256_SPKI, &der), Ok(()));
    let trailing = [&der[..], &[0]].concat();
    assert!(verify(SignatureScheme::EcdsaSha256, vectors::P256_SPKI, &trailing).is_err());
    assert!(verify(SignatureScheme::EcdsaSha256, vectors::P256_SPKI, b"").is_err());
    assert!(verify(SignatureScheme::Ed25519, vectors::P256_SPKI, &der).is_err());
    assert_eq!(
        verify(SignatureScheme::RsaPkcs1Sha256, vectors::RSA1024_SPKI, b""),
        Err(SignatureError::RsaTooShort(1024))
    );
}
