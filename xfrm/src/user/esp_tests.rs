//! ESP against published vectors, against an independent implementation, and against damage.

use super::*;

const SUITES: [EspSuite; 7] = [
    EspSuite::Aes128Gcm16,
    EspSuite::Aes256Gcm16,
    EspSuite::ChaCha20Poly1305,
    EspSuite::Aes128CbcSha256,
    EspSuite::Aes256CbcSha256,
    EspSuite::Aes256CbcSha384,
    EspSuite::Aes256CbcSha512,
];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn keys(suite: EspSuite) -> SaKeys {
    let (encr, integ) = suite.key_lengths();
    SaKeys { encr: (1..=encr as u8).collect(), integ: (101..101 + integ as u8).collect() }
}

fn transform(suite: EspSuite, esn: bool) -> Transform {
    Transform::new(suite, &keys(suite), 0xdead_beef, esn).unwrap()
}

fn sealed(transform: &Transform, seq: u64, inner: &[u8]) -> Vec<u8> {
    let mut out = vec![0; transform.sealed_len(inner.len())];
    let at = transform.payload_offset();
    out[at..at + inner.len()].copy_from_slice(inner);
    transform.seal(seq, NEXT_IPV4, inner.len(), &mut out).unwrap();
    out
}

#[test]
fn every_suite_round_trips_every_length_with_and_without_esn() {
    for suite in SUITES {
        for esn in [false, true] {
            let transform = transform(suite, esn);
            for len in 0..200usize {
                let inner: Vec<u8> = (0..len).map(|n| n as u8).collect();
                let seq = (1 << 33) + len as u64;
                let mut packet = sealed(&transform, seq, &inner);
                assert_eq!(header(&packet), Some((0xdead_beef, len as u32)));
                // RFC 4303 2.4: the ICV starts on a four-byte boundary.
                assert_eq!(packet.len() % 4, 0);
                let (next, range) = transform.open(seq, &mut packet).unwrap();
                assert_eq!((next, &packet[range]), (NEXT_IPV4, &inner[..]), "{}", suite.name());
            }
        }
    }
}

#[test]
fn every_damaged_byte_and_every_truncation_is_refused() {
    for suite in SUITES {
        let transform = transform(suite, false);
        let packet = sealed(&transform, 7, b"a packet of some bytes");
        for at in 0..packet.len() {
            let mut damaged = packet.clone();
            damaged[at] ^= 1;
            let result = transform.open(7, &mut damaged);
            assert_eq!(result, Err(OpenError::Auth), "{} byte {at}", suite.name());
        }
        for len in 0..packet.len() {
            let mut short = packet[..len].to_vec();
            assert!(transform.open(7, &mut short).is_err(), "{} length {len}", suite.name());
        }
    }
}

#[test]
fn the_unsent_half_of_an_extended_number_is_authenticated() {
    for suite in SUITES {
        let transform = transform(suite, true);
        let mut packet = sealed(&transform, (5 << 32) | 9, b"inner");
        assert_eq!(transform.open((6 << 32) | 9, &mut packet), Err(OpenError::Auth));
    }
}

#[test]
fn cbc_initialisation_vectors_are_neither_constant_nor_the_counter() {
    let transform = transform(EspSuite::Aes256CbcSha256, false);
    let ivs: Vec<Vec<u8>> =
        (1..=100).map(|seq| sealed(&transform, seq, b"x")[HEADER..HEADER + 16].to_vec()).collect();
    let distinct: std::collections::BTreeSet<_> = ivs.iter().collect();
    assert_eq!(distinct.len(), 100);
    assert!(ivs.iter().all(|iv| iv[..8] != [0; 8]));
}

/// draft-mcgrew-gcm-test-01, cited by RFC 4106: an IPv4 packet in tunnel mode, AES-128-GCM-ESP.
#[test]
fn gcm_128_test_vector_of_rfc_4106_opens() {
    let keys = SaKeys { encr: hex("4c80cdefbb5d10da906ac73c3613a6342e443b68"), integ: Vec::new() };
    let transform = Transform::new(EspSuite::Aes128Gcm16, &keys, 0x0000_4321, true).unwrap();
    let plain = hex("45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
         00000000045f736970045f756470037369700963796265726369747902646b00
         0021000101020201");
    // AAD of the vector is SPI and a 64-bit sequence number 0x8765432100000000.
    let iv = hex("4956ed7e3b244cfe");
    let want = hex("fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
         cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
         61bc17d768fd9732459018148f6cbe722fd04796562dfdb4");
    let mut packet = hex("0000432100000000");
    packet.extend_from_slice(&iv);
    packet.extend_from_slice(&want);
    let (next, range) = transform.open(0x8765_4321_0000_0000, &mut packet).unwrap();
    assert_eq!(next, 1); // The vector's trailer: two bytes of padding, next header 1.
    assert_eq!(packet[range], plain[..plain.len() - 4]);
}

/// RFC 7634 appendix A: an ICMP packet with ChaCha20-Poly1305.
#[test]
fn chacha_example_of_rfc_7634_opens() {
    let keys = SaKeys {
        encr: hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f a0a1a2a3"),
        integ: Vec::new(),
    };
    let transform = Transform::new(EspSuite::ChaCha20Poly1305, &keys, 0x0102_0304, false).unwrap();
    let mut packet = hex("01020304000000051011121314151617
         24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6
         14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3
         cbec163fac469b502773f6fb94e664da9165b82829f641e076aaa8266b7fb0f7
         b11b369907e1ad43");
    let plain = hex("45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
         0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
         2425262728292a2b2c2d2e2f3031323334353637");
    let (next, range) = transform.open(5, &mut packet).unwrap();
    assert_eq!((next, &packet[range]), (NEXT_IPV4, &plain[..]));
}

/// AES-CBC of RFC 3602 4 case 2 (the cipher alone), through our block handling.
#[test]
fn cbc_known_answer_of_rfc_3602() {
    let aes = Aes128::new_from_slice(&hex("c286696d887c9aa0611bbb3e2025a45a")).unwrap();
    let iv = Block::try_from(&hex("562e17996d093d28ddb3ba695a2e6f58")[..]).unwrap();
    let mut data: Vec<u8> = (0..32).collect();
    let (blocks, _) = Block::slice_as_chunks_mut(&mut data);
    cbc::Encryptor::inner_iv_init(&aes, &iv).encrypt_blocks(blocks);
    assert_eq!(data, hex("d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1"));
}

/// The wire form of the CBC suites rebuilt by hand from its parts (RFC 4303, RFC 4868).
#[test]
fn cbc_packets_equal_an_independent_construction() {
    for suite in &SUITES[3..] {
        let transform = transform(*suite, true);
        let inner = b"forty-two bytes of payload, more or less..";
        let seq = (3 << 32) | 77;
        let packet = sealed(&transform, seq, inner);
        let keys = keys(*suite);
        let icv_len = suite.wire_lengths().1;
        let (covered, icv) = packet.split_at(packet.len() - icv_len);
        let algorithm = match icv_len {
            16 => hmac::HMAC_SHA256,
            24 => hmac::HMAC_SHA384,
            _ => hmac::HMAC_SHA512,
        };
        let mut signed = covered.to_vec();
        signed.extend_from_slice(&3u32.to_be_bytes());
        let tag = hmac::sign(&hmac::Key::new(algorithm, &keys.integ), &signed);
        assert_eq!(icv, &tag.as_ref()[..icv_len]);
        // Decrypt block by block with the bare cipher.
        let mut previous = covered[HEADER..HEADER + 16].to_vec();
        let mut plain = Vec::new();
        for chunk in covered[HEADER + 16..].chunks(16) {
            use cbc::cipher::BlockCipherDecrypt;
            let mut block = Block::try_from(chunk).unwrap();
            if keys.encr.len() == 16 {
                Aes128::new_from_slice(&keys.encr).unwrap().decrypt_block(&mut block);
            } else {
                Aes256::new_from_slice(&keys.encr).unwrap().decrypt_block(&mut block);
            }
            plain.extend(block.iter().zip(&previous).map(|(a, b)| a ^ b));
            previous = chunk.to_vec();
        }
        let mut want = inner.to_vec();
        want.extend([1, 2, 3, 4, 4, NEXT_IPV4]);
        assert_eq!(plain, want);
    }
}

#[test]
fn wrong_padding_is_refused_although_authentic() {
    let transform = transform(EspSuite::Aes256Gcm16, false);
    let LessSafe { key, salt } = raw_key(&transform);
    let build = |body: &[u8]| {
        let mut packet = 0xdead_beef_u32.to_be_bytes().to_vec();
        packet.extend(1u32.to_be_bytes());
        let aad: [u8; 8] = packet[..8].try_into().unwrap();
        packet.extend(1u64.to_be_bytes());
        let mut body = body.to_vec();
        let nonce = nonce(salt, &1u64.to_be_bytes()).unwrap();
        key.seal_in_place_append_tag(nonce, aead::Aad::from(aad), &mut body).unwrap();
        packet.extend(body);
        packet
    };
    let mut good = build(&[9, 9, 1, 2, 2, 4]);
    assert_eq!(transform.open(1, &mut good), Ok((4, 16..18)));
    let mut wrong = build(&[9, 9, 1, 3, 2, 4]);
    assert_eq!(transform.open(1, &mut wrong), Err(OpenError::Padding));
    let mut longer_than_packet = build(&[9, 9, 1, 2, 200, 4]);
    assert_eq!(transform.open(1, &mut longer_than_packet), Err(OpenError::Padding));
    let mut only_trailer = build(&[0, 59]);
    assert_eq!(transform.open(1, &mut only_trailer), Ok((NEXT_NONE, 16..16)));
    let mut nothing = build(&[]);
    assert_eq!(transform.open(1, &mut nothing), Err(OpenError::Length));
}

struct LessSafe<'a> {
    key: &'a LessSafeKey,
    salt: &'a [u8; 4],
}

fn raw_key(transform: &Transform) -> LessSafe<'_> {
    match &transform.cipher {
        Cipher::Aead { key, salt } => LessSafe { key, salt },
        Cipher::Cbc { .. } => panic!("an AEAD is needed"),
    }
}

#[test]
fn keys_of_wrong_length_are_refused_without_showing_them() {
    for suite in SUITES {
        let mut keys = keys(suite);
        keys.encr.push(0xab);
        let error = Transform::new(suite, &keys, 1, false).unwrap_err().to_string();
        assert!(error.contains(suite.name()) && !error.contains("171"), "{error}");
    }
    assert_eq!(format!("{:?}", transform(EspSuite::Aes128Gcm16, false)), "Transform(deadbeef)");
}
