use super::*;
use crate::wire::PrfId;

fn ike(text: &str) -> Vec<IkeSuite> {
    text.split(',').flat_map(|text| IkeSuite::parse_proposal(text).unwrap()).collect()
}

fn esp(text: &str) -> Vec<EspSuite> {
    text.split(',').flat_map(|text| EspSuite::parse_proposal(text).unwrap()).collect()
}

fn proposal(number: u8, transforms: Vec<Transform>) -> Proposal {
    Proposal::new(number, ProtocolId::Ike, transforms)
}

#[test]
fn our_order_decides_unless_the_peer_sent_another_accepted_group() {
    let ours = ike("aes256gcm16-prfsha384-x25519-ecp384");
    let theirs = offer_ike(&ike("aes256gcm16-prfsha384-ecp384-x25519"), None);

    let with_sent = choose_ike(&ours, &theirs, KeMethod::Ecp384).unwrap();
    let without = choose_ike(&ours, &theirs, KeMethod::Modp1024).unwrap();

    assert_eq!(with_sent.suite.kex, KeMethod::Ecp384);
    assert_eq!(without.suite.kex, KeMethod::Curve25519);
}

#[test]
fn one_proposal_with_many_transforms_is_searched_for_every_combination() {
    let ours = ike("aes256-sha256-prfsha256-modp2048");
    let offer = SecurityAssociation::new(vec![proposal(
        1,
        vec![
            Transform::encr(EncrId::TripleDes, None),
            Transform::encr(EncrId::AesCbc, Some(256)),
            Transform::prf(PrfId::HmacSha1),
            Transform::prf(PrfId::HmacSha2_256),
            Transform::integ(IntegId::HmacSha1_96),
            Transform::integ(IntegId::HmacSha2_256_128),
            Transform::ke(KeMethod::Modp1024),
            Transform::ke(KeMethod::Modp2048),
        ],
    )]);

    let chosen = choose_ike(&ours, &offer, KeMethod::Modp1024).unwrap();
    let answer = answer_ike(&chosen, None);

    assert_eq!(chosen.suite, ours[0]);
    assert_eq!(answer.proposals[0].transforms.len(), 4);
}

#[test]
fn key_lengths_unknown_attributes_and_unknown_types_do_not_match() {
    let ours = ike("aes256gcm16-prfsha384-x25519");
    let base = || offer_ike(&ours, None);
    assert!(choose_ike(&ours, &base(), KeMethod::Curve25519).is_some());

    let mut short = base();
    short.proposals[0].transforms[0] = Transform::encr(EncrId::AesGcm16, Some(128));
    assert_eq!(choose_ike(&ours, &short, KeMethod::Curve25519), None);

    let mut unknown = base();
    unknown.proposals[0].transforms.push(Transform::new(TransformId::Unknown { kind: 99, id: 1 }));
    assert_eq!(choose_ike(&ours, &unknown, KeMethod::Curve25519), None);

    // RFC 7296 3.3: an AEAD beside a real integrity algorithm is no valid choice.
    let mut mixed = base();
    mixed.proposals[0].transforms.push(Transform::integ(IntegId::HmacSha2_256_128));
    assert_eq!(choose_ike(&ours, &mixed, KeMethod::Curve25519), None);
}

#[test]
fn additional_key_exchanges_are_declined_only_where_the_peer_allows_none() {
    let ours = ike("aes256gcm16-prfsha384-x25519");
    let mut offer = offer_ike(&ours, None);
    offer.proposals[0].transforms.push(Transform::add_ke(1, KeMethod::MlKem768));
    assert_eq!(choose_ike(&ours, &offer, KeMethod::Curve25519), None);

    offer.proposals[0].transforms.push(Transform::add_ke(1, KeMethod::None));
    assert!(choose_ike(&ours, &offer, KeMethod::Curve25519).is_some());
}

#[test]
fn in_ike_auth_a_group_in_the_esp_proposal_is_ignored() {
    let ours = esp("aes256gcm16-noesn");
    let offer = offer_esp(&esp("aes256gcm16-ecp256-noesn"), 7);

    let chosen = choose_esp(&ours, &offer, EspKex::Ignored).unwrap();

    assert_eq!(chosen.suite.kex, None);
    assert_eq!(chosen.spi, [0, 0, 0, 7]);
}

#[test]
fn a_rekey_uses_the_group_that_came_when_it_is_accepted() {
    let ours = esp("aes256gcm16-noesn");
    let offer = offer_esp(&esp("aes256gcm16-ecp256-x25519-noesn"), 7);
    let accepted = [KeMethod::Curve25519, KeMethod::Ecp256];

    let kex = |sent| choose_esp(&ours, &offer, EspKex::Offered(sent, &accepted)).unwrap().suite.kex;

    assert_eq!(kex(Some(KeMethod::Ecp256)), Some(KeMethod::Ecp256));
    // Only one proposal of each group exists, the first of them decides.
    assert_eq!(kex(Some(KeMethod::Modp1024)), Some(KeMethod::Ecp256));
}

#[test]
fn sequence_number_sizes_must_agree() {
    let offer = offer_esp(&esp("aes256gcm16-esn"), 7);

    assert_eq!(choose_esp(&esp("aes256gcm16-noesn"), &offer, EspKex::Ignored), None);
    assert!(choose_esp(&esp("aes256gcm16-esn"), &offer, EspKex::Ignored).is_some());
}

#[test]
fn an_answer_must_be_one_of_the_offered() {
    let offered = ike("aes256gcm16-prfsha384-x25519");
    let other = ike("aes128gcm16-prfsha384-x25519");

    assert!(accept_ike(&offered, &offer_ike(&offered, None)).is_some());
    assert_eq!(accept_ike(&offered, &offer_ike(&other, None)), None);
}

#[test]
fn advice_names_the_weak_algorithms_and_the_client_setting() {
    let offer = SecurityAssociation::new(vec![proposal(
        1,
        vec![
            Transform::encr(EncrId::TripleDes, None),
            Transform::integ(IntegId::HmacSha1_96),
            Transform::ke(KeMethod::Modp1024),
        ],
    )]);

    let advice = advice(&offer).unwrap();

    assert!(advice.contains("modp1024") && advice.contains("NegotiateDH2048_AES256"), "{advice}");
    assert!(advice.contains("3des") && advice.contains("sha1"), "{advice}");
    assert_eq!(text(&offer), "3DES-HMAC_SHA1_96-MODP_1024");
}
