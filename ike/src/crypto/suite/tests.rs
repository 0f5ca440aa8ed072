use super::*;
use crate::crypto::{ring, weak};

fn ike(text: &str) -> IkeSuite {
    text.parse().unwrap()
}

#[test]
fn an_aead_suite_reads_and_writes_as_strongswan_spells_it() {
    let suite = ike("aes256gcm16-prfsha384-ecp384");
    assert_eq!(suite.encryption, Encryption::with_bits(EncrId::AesGcm16, 256));
    assert_eq!((suite.integ, suite.prf), (None, PrfId::HmacSha2_384));
    assert_eq!(suite.kex, KeMethod::Ecp384);
    assert_eq!(suite.to_string(), "aes256gcm16-prfsha384-ecp384");
}

#[test]
fn every_default_survives_its_text_and_is_implemented() {
    let (ike, esp) = (IkeSuite::defaults(), EspSuite::defaults());
    assert_eq!(
        (ike.len(), esp.len()),
        (2 * 3 * 3 * 3 + 2 * 3 * 3 * 3 + 3 * 3 * 7 + 2 * 3 * 3 * 7, 3 * 2 + 2 * 3 * 2)
    );
    for suite in &ike {
        assert_eq!(suite.to_string().parse().as_ref(), Ok(suite));
        let classical = suite.additional_methods().is_empty();
        // `ring` has neither ML-KEM nor P-521.
        let everywhere = classical && suite.kex != KeMethod::Ecp521;
        assert_eq!(suite.supported_by(&ring::PROVIDER), everywhere);
        let lengths = suite.key_lengths(&ring::PROVIDER).unwrap();
        assert_eq!(Some(lengths.encr), suite.encryption.keymat_len());
        assert_eq!(lengths.integ == 0, suite.encryption.is_aead());
    }
    for suite in &esp {
        assert_eq!(suite.to_string().parse().as_ref(), Ok(suite));
        assert!(suite.key_lengths().is_ok());
    }
    assert!(ike[0].encryption.is_aead() && esp[0].esn);
    // ML-KEM comes first; what is without it comes after all that is with it.
    assert_eq!(ike[0].to_string(), "aes256gcm16-prfsha384-x25519-ke1_mlkem768");
    assert!(ike.is_sorted_by_key(|suite| suite.additional_methods().is_empty()));
    // The set every native client shares (RFC 8247).
    assert!(ike.contains(&"aes256-sha256-prfsha256-modp2048".parse().unwrap()));
}

#[test]
fn key_lengths_hold_the_salt() {
    let lengths = |text: &str| text.parse::<EspSuite>().unwrap().key_lengths().unwrap();
    assert_eq!(lengths("aes256gcm16"), (36, 0));
    assert_eq!(lengths("aes192gcm8"), (28, 0));
    assert_eq!(lengths("aes128gcm12"), (20, 0));
    assert_eq!(lengths("chacha20poly1305"), (36, 0));
    assert_eq!(lengths("aes128-sha256"), (16, 32));
    assert_eq!(lengths("aes256-sha512"), (32, 64));
    let lengths = |text: &str| ike(text).key_lengths(&ring::PROVIDER).unwrap();
    assert_eq!(
        lengths("aes256gcm16-prfsha384-x25519"),
        IkeKeyLengths { prf: 48, integ: 0, encr: 36 }
    );
    assert_eq!(
        lengths("aes128-sha384-prfsha512-x25519"),
        IkeKeyLengths { prf: 64, integ: 48, encr: 16 }
    );
}

#[test]
fn packet_lengths_for_the_mtu() {
    let lengths = |text: &str| text.parse::<EspSuite>().unwrap().packet_lengths();
    assert_eq!(lengths("aes256gcm16"), (8, 16, 4));
    assert_eq!(lengths("aes256gcm8"), (8, 8, 4));
    assert_eq!(lengths("chacha20poly1305"), (8, 16, 4));
    assert_eq!(lengths("aes128-sha256"), (16, 16, 16));
    assert_eq!(lengths("aes256-sha512"), (16, 32, 16));
}

#[test]
fn a_proposal_stands_for_every_combination_preferred_first() {
    let suites =
        IkeSuite::parse_proposal("aes256gcm16-aes128gcm-prfsha384-prfsha256-x25519-ecp256")
            .unwrap();
    assert_eq!(suites.len(), 8);
    assert_eq!(suites[0].to_string(), "aes256gcm16-prfsha384-x25519");
    assert_eq!(suites[7].to_string(), "aes128gcm16-prfsha256-ecp256");
    assert_eq!(
        "aes256gcm16-aes128gcm16-prfsha256-x25519".parse::<IkeSuite>(),
        Err(SuiteError::Several("aes256gcm16-aes128gcm16-prfsha256-x25519".to_owned()))
    );
}

#[test]
fn a_missing_prf_follows_from_the_integrity_algorithm() {
    assert_eq!(ike("aes256-sha512-modp2048"), ike("aes256-sha512-prfsha512-modp2048"));
    let suites = IkeSuite::parse_proposal("aes256gcm16-x25519").unwrap();
    assert_eq!(suites.len(), 3);
}

#[test]
fn additional_key_exchanges_keep_their_slots() {
    let suite = ike("aes256gcm16-prfsha384-x25519-ke3_mlkem1024-ke1_mlkem768");
    assert_eq!(
        suite.additional,
        [
            AdditionalKex { slot: 1, method: KeMethod::MlKem768 },
            AdditionalKex { slot: 3, method: KeMethod::MlKem1024 },
        ]
    );
    assert_eq!(suite.to_string(), "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_mlkem1024");
    assert!(!suite.supported_by(&ring::PROVIDER));
    let optional =
        IkeSuite::parse_proposal("aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_none").unwrap();
    assert_eq!(optional.len(), 2);
    assert!(optional[1].supported_by(&ring::PROVIDER));
    for token in ["ke0_mlkem768", "ke8_mlkem768", "ke1_kyber", "ke_mlkem768"] {
        let text = format!("aes256gcm16-prfsha384-x25519-{token}");
        assert_eq!(IkeSuite::parse_proposal(&text), Err(SuiteError::Unknown(token.to_owned())));
    }
}

#[test]
fn one_key_exchange_twice_is_no_combination() {
    // RFC 9370 2.2.1.
    let suites =
        IkeSuite::parse_proposal("aes256gcm16-prfsha384-x25519-ecp256-ke1_ecp256-ke1_ecp384")
            .unwrap();
    assert_eq!(suites.len(), 3);
    assert!(suites.iter().all(|suite| suite.additional_methods() != [suite.kex]));
    assert_eq!(
        IkeSuite::parse_proposal("aes256gcm16-prfsha384-x25519-ke1_x25519"),
        Err(SuiteError::Repeated("aes256gcm16-prfsha384-x25519-ke1_x25519".to_owned()))
    );
    assert!(matches!(
        EspSuite::parse_proposal("aes256gcm16-ke1_mlkem768"),
        Err(SuiteError::Missing { missing: "key exchange method", .. })
    ));
}

#[test]
fn esp_proposals_have_sequence_numbers_and_optional_pfs() {
    let suites = EspSuite::parse_proposal("aes256gcm16").unwrap();
    assert_eq!(suites.iter().map(|suite| suite.esn).collect::<Vec<_>>(), [true, false]);
    let suites = EspSuite::parse_proposal("aes256gcm16-x25519-none-noesn").unwrap();
    assert_eq!(
        suites.iter().map(|suite| suite.kex).collect::<Vec<_>>(),
        [Some(KeMethod::Curve25519), None]
    );
    let suite: EspSuite = "aes256-sha256-modp2048-esn".parse().unwrap();
    assert_eq!(suite.to_string(), "aes256-sha256-modp2048-esn");
    assert_eq!("aes256gcm16".parse::<EspSuite>().map(|suite| suite.esn), Ok(false));
}

#[test]
fn mistakes_are_named() {
    let error = |text: &str| IkeSuite::parse_proposal(text).unwrap_err();
    assert_eq!(error("aes256gcm16-prfsha384-ecp38"), SuiteError::Unknown("ecp38".to_owned()));
    assert_eq!(error(""), SuiteError::Unknown(String::new()));
    assert!(matches!(
        error("aes256gcm16-prfsha384"),
        SuiteError::Missing { missing: "key exchange method", .. }
    ));
    assert!(matches!(
        error("aes256-prfsha384-x25519"),
        SuiteError::Missing { missing: "integrity algorithm", .. }
    ));
    assert!(matches!(
        error("sha256-prfsha384-x25519"),
        SuiteError::Missing { missing: "encryption algorithm", .. }
    ));
    assert!(matches!(error("aes256gcm16-sha256-x25519"), SuiteError::MixedAead(_)));
    assert!(matches!(error("aes256gcm16-aes256-x25519"), SuiteError::MixedAead(_)));
    assert!(matches!(error("aes256gcm16-x25519-esn"), SuiteError::Misplaced { .. }));
    let esp = EspSuite::parse_proposal("aes256gcm16-prfsha256");
    assert!(matches!(esp, Err(SuiteError::Misplaced { .. })));
}

#[test]
fn a_proposal_of_too_many_combinations_is_refused() {
    let mut text = "aes256gcm16-aes192gcm16-aes128gcm16-prfsha256-prfsha384-x25519".to_owned();
    for slot in 1..=7 {
        text.push_str(&format!("-ke{slot}_mlkem512-ke{slot}_mlkem768-ke{slot}_mlkem1024"));
    }
    assert_eq!(IkeSuite::parse_proposal(&text), Err(SuiteError::TooMany(text)));
}

#[test]
fn weak_algorithms_say_what_to_change() {
    let refusal = |text: &str| IkeSuite::parse_proposal(text).unwrap_err().to_string();
    assert!(refusal("aes256-sha256-modp1024").contains("NegotiateDH2048_AES256"));
    assert!(refusal("3des-sha256-modp2048").contains("-EncryptionMethod AES256"));
    assert!(refusal("aes256-sha1-modp2048").contains("-IntegrityCheckMethod SHA256"));
    assert!(refusal("aes256-sha-modp2048").contains("sha1 is refused"));
    assert!(refusal("aes256-sha256-prfmd5-modp2048").contains("prfmd5 is refused"));
    for (text, weak) in [
        ("modp1024", weak::kex(KeMethod::Modp1024)),
        ("modp1536", weak::kex(KeMethod::Modp1536)),
        ("3des", weak::encryption(EncrId::TripleDes)),
        ("null", weak::encryption(EncrId::Null)),
        ("md5", weak::integrity(IntegId::HmacMd5_96)),
        ("sha1", weak::integrity(IntegId::HmacSha1_96)),
        ("prfsha1", weak::prf(PrfId::HmacSha1)),
    ] {
        assert_eq!(weak, weak::by_token(text));
        assert_eq!(weak.map(|weak| weak.name), Some(text));
        assert!(weak.unwrap().advice.contains("strongSwan"));
    }
}

#[test]
fn nothing_refused_as_weak_is_implemented() {
    for group in ring::PROVIDER.kex {
        assert_eq!(weak::kex(group.method()), None);
    }
    for cipher in ring::PROVIDER.ciphers {
        assert_eq!(weak::encryption(cipher.encryption().id), None);
    }
    for integ in ring::PROVIDER.integs {
        assert_eq!(weak::integrity(integ.id()), None);
    }
    for prf in ring::PROVIDER.prfs {
        assert_eq!(weak::prf(prf.id()), None);
    }
}
