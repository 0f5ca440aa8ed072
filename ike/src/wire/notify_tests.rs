//! Tests of notifications and their data.

use super::*;

fn parse(body: &[u8]) -> Result<Notify, WireError> {
    Notify::parse(Reader::new(body, Part::Payload(PayloadType::Notify), 0))
}

fn encode(notify: &Notify) -> Vec<u8> {
    let mut w = Writer::new();
    notify.write(&mut w).unwrap();
    w.into_vec()
}

#[test]
fn about_a_child_sa() {
    // RFC 7296 3.10, figure 16; REKEY_SA of RFC 7296 1.3.3.
    let body = [3, 4, 0x40, 0x09, 0xc0, 0xde, 0, 1];

    let notify = parse(&body).unwrap();

    let expected = Notify::about(NotifyType::RekeySa, ProtocolId::Esp, ChildSpi(0xc0de_0001));
    assert_eq!(notify, expected);
    assert_eq!(notify.child_spi(), Some(ChildSpi(0xc0de_0001)));
    assert_eq!(encode(&notify), body);
}

#[test]
fn an_spi_cut_short_is_truncated() {
    assert_eq!(
        parse(&[3, 4, 0x40, 9, 1, 2]),
        Err(WireError::Truncated { part: Part::Payload(PayloadType::Notify), at: 4, missing: 2 })
    );
}

#[test]
fn invalid_ke_payload_names_a_method() {
    // RFC 7296 3.10.1: two octets in network order.
    let notify = Notify::invalid_ke(KeMethod::Ecp384);

    assert_eq!(encode(&notify), [0, 0, 0, 17, 0, 20]);
    assert_eq!(notify.ke_method(), Ok(KeMethod::Ecp384));
    let wrong = Notify::with_data(NotifyType::InvalidKePayload, vec![0, 20, 0]);
    assert_eq!(
        wrong.ke_method(),
        Err(WireError::Trailing {
            part: Part::Notify(NotifyType::InvalidKePayload),
            at: 2,
            extra: 1
        })
    );
}

#[test]
fn unsupported_critical_payload_is_one_octet() {
    // RFC 7296 2.5
    let notify = Notify::unsupported_critical(PayloadType::from(200));

    assert_eq!(notify.data, [200]);
    assert_eq!(notify.critical_payload(), Ok(PayloadType::from(200)));
    assert!(Notify::new(NotifyType::UnsupportedCriticalPayload).critical_payload().is_err());
}

#[test]
fn numbers_have_four_octets() {
    // RFC 4478 3, RFC 7296 2.3
    assert_eq!(encode(&Notify::auth_lifetime(3600)), [0, 0, 0x40, 0x13, 0, 0, 0x0e, 0x10]);
    assert_eq!(Notify::auth_lifetime(3600).number(), Ok(3600));
    assert_eq!(Notify::window_size(4).data, [0, 0, 0, 4]);
    assert!(Notify::with_data(NotifyType::AuthLifetime, vec![1, 2, 3]).number().is_err());
}

#[test]
fn signature_hashes_are_a_list() {
    // RFC 7427 4
    let hashes = [HashAlgorithm::Sha2_512, HashAlgorithm::Identity, HashAlgorithm::Unknown(99)];
    let notify = Notify::signature_hashes(&hashes);

    assert_eq!(encode(&notify), [0, 0, 0x40, 0x2f, 0, 4, 0, 5, 0, 99]);
    assert_eq!(notify.hash_algorithms().unwrap(), hashes);
    let odd = Notify::with_data(NotifyType::SignatureHashAlgorithms, vec![0, 2, 0]);
    assert!(matches!(odd.hash_algorithms(), Err(WireError::Invalid { field: Field::List, .. })));
}

#[test]
fn additional_addresses_gather() {
    // RFC 4555 3.6
    let v4: IpAddr = [192, 0, 2, 7].into();
    let v6: IpAddr = "2001:db8::7".parse().unwrap();
    let list = [Notify::additional_address(v4), Notify::additional_address(v6)];
    let none = [Notify::new(NotifyType::NoAdditionalAddresses)];

    assert_eq!(
        AdditionalAddresses::gather(list.iter()),
        Ok(AdditionalAddresses::List(vec![v4, v6]))
    );
    assert_eq!(AdditionalAddresses::gather(none.iter()), Ok(AdditionalAddresses::None));
    assert_eq!(AdditionalAddresses::gather([].iter()), Ok(AdditionalAddresses::Unstated));
    let wrong = [Notify::with_data(NotifyType::AdditionalIp4Address, vec![0; 16])];
    assert!(AdditionalAddresses::gather(wrong.iter()).is_err());
}

#[test]
fn message_id_sync_has_three_words() {
    // RFC 6311 5.1
    let sync = MessageIdSync { nonce: 0x0102_0304, next_send: 5, next_receive: 6 };
    let notify = Notify::message_id_sync(sync);

    assert_eq!(notify.data, [1, 2, 3, 4, 0, 0, 0, 5, 0, 0, 0, 6]);
    assert_eq!(notify.as_message_id_sync(), Ok(sync));
    assert!(Notify::new(NotifyType::MessageIdSync).as_message_id_sync().is_err());
}

#[test]
fn redirect_names_a_gateway_and_repeats_the_nonce() {
    // RFC 5685 7.2
    let v4 = RedirectGateway::Address([192, 0, 2, 1].into());
    let v6 = RedirectGateway::Address("2001:db8::1".parse().unwrap());
    let name = RedirectGateway::Fqdn(b"gw2.example.com".to_vec());

    assert_eq!(Notify::redirect(&v4, &[7; 2]).unwrap().data, [1, 4, 192, 0, 2, 1, 7, 7]);
    for gateway in [v4, v6, name] {
        let notify = Notify::redirect(&gateway, &[7; 32]).unwrap();
        assert_eq!(notify.as_redirect(), Ok((gateway.clone(), &[7; 32][..])));
        let from = Notify::redirected_from(&gateway).unwrap();
        assert_eq!(from.as_redirect(), Ok((gateway, &[][..])));
    }
}

#[test]
fn malformed_redirects_say_why() {
    let error_of = |data: &[u8]| {
        Notify::with_data(NotifyType::Redirect, data.to_vec()).as_redirect().unwrap_err()
    };
    let part = Part::Notify(NotifyType::Redirect);

    let wrong_type = WireError::Invalid { part, field: Field::GatewayType, at: 2 };
    assert_eq!(error_of(&[9, 1, 0]), wrong_type);
    let wrong_length = WireError::Invalid { part, field: Field::Address, at: 2 };
    assert_eq!(error_of(&[1, 3, 0, 0, 0]), wrong_length);
    assert_eq!(error_of(&[3, 9, 0]), WireError::Truncated { part, at: 2, missing: 8 });
}

#[test]
fn nat_detection_hashes_spis_address_and_port() {
    // RFC 7296 2.23
    let v4 = nat_detection_input(IkeSpi(1), IkeSpi(2), [10, 0, 0, 1].into(), 500);
    assert_eq!(v4, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 10, 0, 0, 1, 0x01, 0xf4]);

    let v6 = nat_detection_input(IkeSpi(1), IkeSpi(2), Ipv6Addr::LOCALHOST.into(), 4500);
    assert_eq!(v6.len(), 8 + 8 + 16 + 2);
}

#[test]
fn debug_hides_the_data() {
    let text = format!("{:?}", Notify::cookie(vec![0xab; 9]));

    assert!(text.contains("octets: 9") && !text.contains("171"), "{text}");
}
