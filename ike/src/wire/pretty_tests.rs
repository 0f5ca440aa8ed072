//! Tests of the printer.

use super::*;
use crate::wire::*;

fn message(exchange: ExchangeType, payloads: Vec<Payload>) -> Message {
    let header = Header::new(IkeSpi(0x11), IkeSpi(0x22), exchange, Flags::REQUEST, 3);
    Message { header, payloads: payloads.into() }
}

#[test]
fn one_line_names_every_payload() {
    let message = message(
        ExchangeType::IkeAuth,
        vec![
            Payload::id_i(Identification::fqdn("runner.example.com")),
            Payload::Ke(KeyExchange::new(KeMethod::Curve25519, vec![9; 32])),
            Payload::Nonce(Nonce::new(vec![9; 32]).unwrap()),
            Payload::Notify(Notify::new(NotifyType::InitialContact)),
            Payload::Delete(Delete::esp(vec![ChildSpi(1); 5])),
            Payload::Cp(Configuration::new(CfgType::Request, vec![])),
            Payload::Eap(Eap::success(1)),
            Payload::Unknown { kind: PayloadType::from(200), body: vec![] },
        ],
    );

    assert_eq!(
        message.one_line().to_string(),
        "IKE_AUTH request 3 [ IDi(runner.example.com) KE(CURVE25519) Nonce N(INITIAL_CONTACT) \
         D(ESP 00000001 00000001 00000001 00000001 ...) CFG_REQUEST EAP(Success) 200 ] \
         0000000000000011 -> 0000000000000022"
    );
}

#[test]
fn detailed_shows_substructures() {
    let proposal = Proposal::new(
        1,
        ProtocolId::Esp,
        vec![Transform::encr(EncrId::AesGcm16, Some(256)), Transform::esn(EsnId::NoEsn)],
    )
    .with_child_spi(ChildSpi(0xc0de_0001));
    let message = message(
        ExchangeType::CreateChildSa,
        vec![
            Payload::Sa(SecurityAssociation::new(vec![proposal])),
            Payload::Nonce(Nonce::new(vec![0xab; 32]).unwrap()),
            Payload::Cp(Configuration::new(
                CfgType::Reply,
                vec![
                    CfgAttr::Ip4Address(Some([10, 77, 0, 5].into())),
                    CfgAttr::DnsDomain(b"ci.example.com".to_vec()),
                ],
            )),
            Payload::TsI(TrafficSelectors::new(vec![TrafficSelector::any_v4()])),
            Payload::Notify(Notify::invalid_ke(KeMethod::Ecp256)),
            Payload::VendorId(VendorId(b"a\nb".to_vec())),
        ],
    );

    assert_eq!(
        message.detailed().to_string(),
        "CREATE_CHILD_SA request 3, from initiator, 0 octets
  SPIs 0000000000000011 0000000000000022
  SA 1 proposals
    1 ESP:AES_GCM_16-256/NO_ESN SPI c0de0001
  Nonce 32 octets
  CP CFG_REPLY
    INTERNAL_IP4_ADDRESS 10.77.0.5
    INTERNAL_DNS_DOMAIN \"ci.example.com\"
  TSi 1 selectors
    0.0.0.0-255.255.255.255
  N INVALID_KE_PAYLOAD ECP_256
  V 610a62"
    );
}

#[test]
fn critical_payloads_are_marked() {
    let mut payloads = Payloads::new();
    payloads.push_item(Item {
        critical: true,
        payload: Payload::Unknown { kind: PayloadType::from(200), body: vec![1] },
    });
    let header = Header::new(IkeSpi(1), IkeSpi(0), ExchangeType::IkeSaInit, Flags::REQUEST, 0);

    let text = Detailed { header: &header, payloads: &payloads }.to_string();

    assert!(text.ends_with("\n  200! 1 octets"), "{text}");
}
