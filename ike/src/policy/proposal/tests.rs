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

    let with_sent = choose_ike(&ours, &theirs, KeMethod::Ecp384, true).unwrap();
    let without = choose_ike(&ours, &theirs, KeMethod::Modp1024, true).unwrap();

    assert_eq!(with_sent.suite.kex, KeMethod::Ecp384);
    assert_eq!(without.suite.kex, KeMethod::Curve25519);
}

#[test]
fn one_proposal_with_many_transforms_is_searched_for_every_combination() {
    // RFC 7296 2.7.
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

    let chosen = choose_ike(&ours, &offer, KeMethod::Modp1024, true).unwrap();
    let answer = answer_ike(&chosen, None);

    assert_eq!(chosen.suite, ours[0]);
    assert_eq!(answer.proposals[0].transforms.len(), 4);
}

#[test]
fn key_lengths_unknown_attributes_and_unknown_types_do_not_match() {
    let ours = ike("aes256gcm16-prfsha384-x25519");
    let base = || offer_ike(&ours, None);
    assert!(choose_ike(&ours, &base(), KeMethod::Curve25519, true).is_some());

    let mut short = base();
    short.proposals[0].transforms[0] = Transform::encr(EncrId::AesGcm16, Some(128));
    assert_eq!(choose_ike(&ours, &short, KeMethod::Curve25519, true), None);

    let mut unknown = base();
    unknown.proposals[0].transforms.push(Transform::new(TransformId::Unknown { kind: 99, id: 1 }));
    assert_eq!(choose_ike(&ours, &unknown, KeMethod::Curve25519, true), None);

    // RFC 7296 3.3: an AEAD beside a real integrity algorithm is no valid choice.
    let mut mixed = base();
    mixed.proposals[0].transforms.push(Transform::integ(IntegId::HmacSha2_256_128));
    assert_eq!(choose_ike(&ours, &mixed, KeMethod::Curve25519, true), None);
}

#[test]
fn additional_key_exchanges_are_declined_only_where_the_peer_allows_none() {
    // RFC 9370 2.2.1.
    let ours = ike("aes256gcm16-prfsha384-x25519");
    let mut offer = offer_ike(&ours, None);
    offer.proposals[0].transforms.push(Transform::add_ke(1, KeMethod::MlKem768));
    assert_eq!(choose_ike(&ours, &offer, KeMethod::Curve25519, true), None);

    offer.proposals[0].transforms.push(Transform::add_ke(1, KeMethod::None));
    assert!(choose_ike(&ours, &offer, KeMethod::Curve25519, true).is_some());
}

#[test]
fn several_key_exchanges_are_for_who_announces_ike_intermediate() {
    // RFC 9242 3.1, RFC 9370 2.2.1.
    let ours = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768,aes256gcm16-prfsha384-x25519");
    let offer = offer_ike(&ours, None);

    let chosen = |several| choose_ike(&ours, &offer, KeMethod::Curve25519, several).unwrap();

    assert_eq!(chosen(true).suite, ours[0]);
    assert_eq!(chosen(false).suite, ours[1]);
}

#[test]
fn what_is_left_out_is_said_in_the_answer() {
    // RFC 9370 2.2.1.
    let ours = ike("aes256gcm16-prfsha384-x25519-ke2_mlkem768");
    let mut offer = offer_ike(&ours, None);
    for slot in [1, 3] {
        for method in [KeMethod::MlKem1024, KeMethod::None] {
            offer.proposals[0].transforms.push(Transform::add_ke(slot, method));
        }
    }

    let chosen = choose_ike(&ours, &offer, KeMethod::Curve25519, true).unwrap();
    let answer = answer_ike(&chosen, None);

    assert_eq!(chosen.left_out, [1, 3]);
    let additional = |transform: &&Transform| matches!(transform.id, TransformId::AddKe { .. });
    assert_eq!(
        answer.proposals[0].transforms.iter().filter(additional).cloned().collect::<Vec<_>>(),
        [
            Transform::add_ke(2, KeMethod::MlKem768),
            Transform::add_ke(1, KeMethod::None),
            Transform::add_ke(3, KeMethod::None),
        ]
    );
    // The initiator takes it as one of what it offered.
    assert!(accept_ike(&ours, &answer).is_some());
}

#[test]
fn a_rekey_takes_the_additional_key_exchanges_that_are_accepted() {
    let ours = esp("aes256gcm16-noesn");
    let accepted = |text| Accepted::from(ike(text).as_slice());
    let chosen = |offered: &str, accepted: &Accepted| {
        let offer = offer_esp(&esp(offered), 0x107);
        let kex = EspKex::Offered(Some(KeMethod::Curve25519), accepted);
        choose_esp(&ours, &offer, kex).map(|chosen| chosen.suite.to_string())
    };
    let both = accepted("aes256gcm16-prfsha384-x25519-ke1_mlkem768");
    let one = accepted("aes256gcm16-prfsha384-x25519");

    let wanted = "aes256gcm16-x25519-ke3_mlkem768-noesn";
    assert_eq!(chosen(wanted, &both).as_deref(), Some("aes256gcm16-x25519-ke3_mlkem768"));
    assert_eq!(chosen(wanted, &one), None);
    let optional = "aes256gcm16-x25519-ke3_mlkem768-ke3_none-noesn";
    assert_eq!(chosen(optional, &one).as_deref(), Some("aes256gcm16-x25519"));
}

#[test]
fn suites_that_are_every_combination_are_one_proposal() {
    let count = |text: &str| offer_ike(&ike(text), None).proposals.len();
    let all = "aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp256";

    assert_eq!(count(all), 1);
    assert_eq!(offer_ike(&ike(all), None).proposals[0].transforms.len(), 6);
    // Two that have little in common are two: together they would mean four.
    assert_eq!(count("aes256gcm16-prfsha384-ecp384,aes128gcm16-prfsha256-x25519"), 2);
    // AEADs and others, and other additional key exchanges, never share one.
    assert_eq!(count("aes256gcm16-prfsha256-x25519,aes256-sha256-prfsha256-x25519"), 2);
    assert_eq!(count("aes256gcm16-prfsha256-x25519,aes256gcm16-prfsha256-x25519-ke1_ecp256"), 2);
    // Every one of them is still found.
    let offer = offer_ike(&ike(all), None);
    for suite in ike(all) {
        assert!(
            choose_ike(std::slice::from_ref(&suite), &offer, suite.kex, true).is_some(),
            "{suite}"
        );
    }
}

#[test]
fn in_ike_auth_a_group_in_the_esp_proposal_is_ignored() {
    let ours = esp("aes256gcm16-noesn");
    let offer = offer_esp(&esp("aes256gcm16-ecp256-noesn"), 0x107);

    let chosen = choose_esp(&ours, &offer, EspKex::Ignored).unwrap();

    assert_eq!(chosen.suite.kex, None);
    assert_eq!(chosen.spi, [0, 0, 1, 7]);
}

#[test]
fn a_rekey_uses_the_group_that_came_when_it_is_accepted() {
    let ours = esp("aes256gcm16-noesn");
    let offer = offer_esp(&esp("aes256gcm16-ecp256-x25519-noesn"), 0x107);
    let accepted = Accepted::from(ike("aes256gcm16-prfsha384-x25519-ecp256").as_slice());

    let kex = |sent| choose_esp(&ours, &offer, EspKex::Offered(sent, &accepted)).unwrap().suite.kex;

    assert_eq!(kex(Some(KeMethod::Ecp256)), Some(KeMethod::Ecp256));
    // One it did not send costs a round trip; our order decides.
    assert_eq!(kex(Some(KeMethod::Modp1024)), Some(KeMethod::Curve25519));
}

#[test]
fn sequence_number_sizes_must_agree() {
    // RFC 7296 3.3.2.
    let offer = offer_esp(&esp("aes256gcm16-esn"), 0x107);

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

#[test]
fn a_long_offer_is_reduced_to_what_can_matter() {
    let ours = ike("aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp256-ecp384-modp2048,\
         aes256-sha256-prfsha256-x25519");
    let mut transforms: Vec<Transform> =
        (100..200).map(|id| Transform::ke(KeMethod::from(id))).collect();
    transforms.extend((100..200).map(|id| Transform::integ(IntegId::from(id))));
    transforms.extend((100..200).map(|id| Transform::prf(PrfId::from(id))));
    transforms.extend((100..200).map(|id| Transform::add_ke(3, KeMethod::from(id))));
    transforms.extend(vec![Transform::encr(EncrId::AesGcm16, Some(256)); 50]);
    let offer = SecurityAssociation::new(vec![proposal(1, transforms.clone())]);

    let [reduced] = &relevant(&ours, &offer)[..] else { panic!("one proposal") };
    let kinds: Vec<_> = reduced.transforms.iter().map(Transform::kind).collect();
    assert_eq!(
        kinds.len(),
        3,
        "a cipher, and that there are integrity and a third slot: {kinds:?}"
    );
    assert_eq!(choose_ike(&ours, &offer, KeMethod::Curve25519, true), None);

    // Nothing that fits is lost, and what has to be refused still is.
    let ours = ike("aes256gcm16-prfsha384-x25519");
    transforms.extend([
        Transform::prf(PrfId::HmacSha2_384),
        Transform::ke(KeMethod::Curve25519),
        Transform::integ(IntegId::None),
    ]);
    let offer = SecurityAssociation::new(vec![proposal(1, transforms.clone())]);
    assert_eq!(choose_ike(&ours, &offer, KeMethod::Curve25519, true), None, "slot 3 is a must");
    transforms.push(Transform::add_ke(3, KeMethod::None));
    let offer = SecurityAssociation::new(vec![proposal(1, transforms)]);
    let chosen = choose_ike(&ours, &offer, KeMethod::Curve25519, true).unwrap();
    assert_eq!((chosen.suite, chosen.left_out), (ours[0].clone(), vec![3]));
}

#[test]
fn reserved_spis_are_not_accepted() {
    let ours = esp("aes256gcm16-noesn");
    for spi in [0, 1, 255] {
        let offer = offer_esp(&ours, spi);
        assert_eq!(choose_esp(&ours, &offer, EspKex::Ignored), None);
        assert_eq!(accept_esp(&ours, &offer, None), None);
    }
    let offer = offer_esp(&ours, 256);
    assert!(choose_esp(&ours, &offer, EspKex::Ignored).is_some());
}
