//! Messages such as peers send them: the seeds of the corpus, and a record of their octets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ike::crypto::SignatureScheme;
use ike::wire::*;

use crate::toy::{ToyAead, ToyCbcMac, counting_iv};

const SPI_I: IkeSpi = IkeSpi(0x5d1f_0a21_77c3_9e04);
const SPI_R: IkeSpi = IkeSpi(0x8b02_6613_d9f4_aa51);
const KEY: u64 = 0x0123_4567_89ab_cdef;

/// A sample: the target it seeds, its name and its octets.
pub type Sample = (&'static str, &'static str, Vec<u8>);

/// All samples.
pub fn samples() -> Vec<Sample> {
    let mut out = messages();
    out.extend(encrypted());
    out.extend(fragments());
    out.extend(eap());
    out.extend(eap_peer());
    out.extend(public_keys());
    out
}

/// Keys of each kind with something like a signature, and names of algorithms.
fn public_keys() -> Vec<Sample> {
    let tlv = |tag: u8, parts: &[&[u8]]| {
        let content = parts.concat();
        let length = u16::try_from(content.len()).expect("short").to_be_bytes();
        match content.len() {
            0..0x80 => [&[tag, length[1]][..], &content].concat(),
            0x80..0x100 => [&[tag, 0x81, length[1]][..], &content].concat(),
            _ => [&[tag, 0x82][..], &length, &content].concat(),
        }
    };
    let oid = |octets: &[u8]| tlv(6, &[octets]);
    let spki = |algorithm: &[&[u8]], key: &[u8]| {
        tlv(0x30, &[&tlv(0x30, algorithm), &tlv(3, &[&[0], key])])
    };
    let input = |how: u8, key: &[u8], signature: &[u8]| {
        let length = u16::try_from(key.len()).expect("short").to_be_bytes();
        [&[how], &length[..], key, signature].concat()
    };
    let (ec, p256) = (oid(&[42, 134, 72, 206, 61, 2, 1]), oid(&[42, 134, 72, 206, 61, 3, 1, 7]));
    let p384 = oid(&[43, 129, 4, 0, 34]);
    let (rsa, null) = (oid(&[42, 134, 72, 134, 247, 13, 1, 1, 1]), tlv(5, &[]));
    let pss = oid(&[42, 134, 72, 134, 247, 13, 1, 1, 10]);
    let point = |len: usize| [vec![4], vec![0x6b; len]].concat();
    let modulus = tlv(0x30, &[&tlv(2, &[&[0], &[0xd5; 256]]), &tlv(2, &[&[1, 0, 1]])]);
    let ecdsa = tlv(0x30, &[&tlv(2, &[&[0x55; 32]]), &tlv(2, &[&[0x33; 32]])]);
    let name = SignatureScheme::RsaPssSha256.algorithm_identifier();
    vec![
        ("public-key", "ed25519", input(0, &spki(&[&oid(&[43, 101, 112])], &[0x77; 32]), &[9; 64])),
        ("public-key", "p256", input(1, &spki(&[&ec, &p256], &point(64)), &ecdsa)),
        ("public-key", "p384", input(2, &spki(&[&ec, &p384], &point(96)), &ecdsa)),
        ("public-key", "rsa", input(4, &spki(&[&rsa, &null], &modulus), &[0x41; 256])),
        ("public-key", "rsa_pss", input(7, &spki(&[&pss], &modulus), &[0x41; 256])),
        ("public-key", "pss_name", input(8, &name, &[])),
    ]
}

/// Scripts of [`crate::targets::fuzz_eap`]: the identifier, then length, way and octets of each
/// response.
fn eap() -> Vec<Sample> {
    let script = |entries: &[(u8, &[u8])]| {
        let mut out = vec![7];
        for (way, octets) in entries {
            out.push(u8::try_from(octets.len()).expect("short entries"));
            out.push(*way);
            out.extend_from_slice(octets);
        }
        out
    };
    let hello = [&[0x80, 0, 0, 0, 3][..], &[0x16, 0x03, 0x01]].concat();
    let first = [&[0xc0, 0, 0, 0, 6][..], b"abc"].concat();
    let nak = [2, 7, 0, 6, 3, 26];
    let raw = [2, 7, 0, 9, 13, 0, 0x16, 0x03, 0x01];
    vec![
        ("eap", "handshake", script(&[(97, &hello), (1, &[0]), (1, &[]), (1, &[0])])),
        ("eap", "fragments", script(&[(1, &first), (3, &[0, b'd', b'e', b'f']), (1, &[0])])),
        ("eap", "raw", script(&[(0, &raw), (1, &[0])])),
        ("eap", "another_method", script(&[(0, &nak)])),
        ("eap", "too_long", script(&[(1, &[0x80, 0, 1, 0, 0, 1])])),
        ("eap", "out_of_turn", script(&[(99, &hello), (1, &[0, 1, 2])])),
        ("eap", "start_from_the_peer", script(&[(1, &[0x20])])),
    ]
}

/// Scripts of [`crate::targets::fuzz_eap_peer`]: length, way and octets of each request.
fn eap_peer() -> Vec<Sample> {
    let script = |entries: &[(u8, &[u8])]| {
        let mut out = Vec::new();
        for (way, octets) in entries {
            out.push(u8::try_from(octets.len()).expect("short entries"));
            out.push(*way);
            out.extend_from_slice(octets);
        }
        out
    };
    let start: (u8, &[u8]) = (3, &[0x20]);
    let long: (u8, &[u8]) = (97, &[0x20]);
    let hello = [&[0x80, 0, 0, 0, 3][..], &[0x16, 0x03, 0x01]].concat();
    let first = [&[0xc0, 0, 0, 0, 6][..], b"abc"].concat();
    let identity = [1, 1, 0, 5, 1];
    let peap = [1, 2, 0, 6, 25, 0x20];
    let notification = [1, 3, 0, 7, 2, b'h', b'i'];
    let (success, failure) = ([3, 9, 0, 4], [4, 9, 0, 4]);
    vec![
        ("eap-peer", "handshake", script(&[start, (1, &hello), (1, &hello), (0, &success)])),
        ("eap-peer", "fragments", script(&[start, (1, &first), (3, &[0, b'd', b'e', b'f'])])),
        (
            "eap-peer",
            "ours_in_fragments",
            script(&[long, (1, &[0]), (1, &[]), (1, &[0]), (1, &hello)]),
        ),
        ("eap-peer", "identity", script(&[(0, &identity), start, (1, &hello)])),
        ("eap-peer", "another_method", script(&[(0, &peap), start, (0, &peap)])),
        ("eap-peer", "notification", script(&[(0, &notification), start, (0, &notification)])),
        ("eap-peer", "nothing_of_length_0", script(&[start, (1, &[0x80, 0, 0, 0, 0])])),
        ("eap-peer", "failure", script(&[start, (0, &failure)])),
        ("eap-peer", "out_of_turn", script(&[long, (1, &hello)])),
        ("eap-peer", "too_long", script(&[start, (1, &[0x80, 0, 1, 0, 0, 1])])),
        ("eap-peer", "success_at_once", script(&[(0, &success)])),
    ]
}

fn messages() -> Vec<Sample> {
    let init = |flags, spi_r, payloads| {
        let header = Header::new(SPI_I, spi_r, ExchangeType::IkeSaInit, flags, 0);
        encode(Message { header, payloads })
    };
    let request = |payloads| init(Flags::REQUEST, IkeSpi::ZERO, payloads);
    let response = |payloads| init(Flags::RESPONSE, SPI_R, payloads);
    let mut cookie = sa_init(KeMethod::Curve25519, 32);
    cookie.push_front(Payload::Notify(Notify::cookie(vec![0xc0; 32])));
    let mut chosen = sa_init(KeMethod::Curve25519, 32);
    chosen.push(Payload::CertReq(CertRequest::x509(&[[0x11; 20], [0x22; 20]])));
    let refused = |notify| Payloads::from(vec![Payload::Notify(notify)]);
    let mut unknown = sa_init(KeMethod::Ecp256, 64);
    unknown.push_item(Item {
        critical: true,
        payload: Payload::Unknown { kind: PayloadType::from(200), body: vec![1, 2, 3, 4] },
    });
    let mut vendor = sa_init(KeMethod::Modp2048, 256);
    vendor.push(Payload::VendorId(VendorId(b"an unlikely vendor".to_vec())));
    vec![
        ("message", "init_x25519", request(sa_init(KeMethod::Curve25519, 32))),
        ("message", "init_p256", request(sa_init(KeMethod::Ecp256, 64))),
        ("message", "init_modp2048_vendor", request(vendor)),
        ("message", "init_cookie", request(cookie)),
        ("message", "init_many_proposals", request(many_proposals())),
        ("message", "init_critical", request(unknown)),
        ("message", "init_response", response(chosen)),
        ("message", "init_response_cookie", response(refused(Notify::cookie(vec![0xc0; 20])))),
        (
            "message",
            "init_response_invalid_ke",
            response(refused(Notify::invalid_ke(KeMethod::Ecp384))),
        ),
        (
            "message",
            "init_response_no_proposal",
            response(refused(Notify::new(NotifyType::NoProposalChosen))),
        ),
        (
            "message",
            "init_response_redirect",
            response(refused(
                Notify::redirect(&RedirectGateway::Fqdn(b"gw2.example.com".to_vec()), &[7; 32])
                    .unwrap_or_else(|_| Notify::new(NotifyType::Redirect)),
            )),
        ),
        ("message", "plain_auth", plain(ExchangeType::IkeAuth, auth_payloads())),
        ("message", "plain_config_reply", plain(ExchangeType::IkeAuth, config_reply())),
        ("message", "plain_child", plain(ExchangeType::CreateChildSa, child_payloads())),
        ("message", "plain_informational", plain(ExchangeType::Informational, information())),
        ("message", "plain_eap", plain(ExchangeType::IkeAuth, eap_payloads())),
        ("message", "plain_empty", plain(ExchangeType::Informational, Payloads::new())),
    ]
}

fn encrypted() -> Vec<Sample> {
    let mut out = Vec::new();
    let contents = [
        ("auth", auth_payloads()),
        ("config_reply", config_reply()),
        ("child", child_payloads()),
        ("information", information()),
        ("empty", Payloads::new()),
    ];
    let ciphers: [(&str, Box<dyn SkCipher>); 2] =
        [("aead", Box::new(ToyAead(KEY))), ("cbc", Box::new(ToyCbcMac(KEY)))];
    for (name, payloads) in contents {
        for (cipher_name, cipher) in &ciphers {
            let sealed =
                seal(established(ExchangeType::IkeAuth), &payloads, &**cipher, &mut counting_iv());
            out.push(("encrypted", leak(name, cipher_name), sealed.unwrap_or_default()));
        }
        let (first, chain) = payloads.encode().unwrap_or_default_chain();
        out.push(("encrypted", leak(name, "inner"), [vec![first.value()], chain].concat()));
    }
    out
}

fn fragments() -> Vec<Sample> {
    let (first, chain) = auth_payloads().encode().unwrap_or_default_chain();
    let sealed = seal_fragments(
        established(ExchangeType::IkeAuth),
        first,
        &chain,
        300,
        &ToyAead(KEY),
        &mut counting_iv(),
    );
    let names = ["first", "second", "third", "fourth"];
    let pieces = names.into_iter().zip(sealed.unwrap_or_default());
    let mut out: Vec<Sample> =
        pieces.map(|(name, datagram)| ("fragments", name, datagram)).collect();
    for (name, size, order) in
        [("small", 20, 0), ("shuffled", 60, 0x35), ("repeated", 120, 0x71), ("whole", 255, 0)]
    {
        out.push(("fragments", name, [vec![size, order], chain.clone()].concat()));
    }
    out
}

/// An encoded chain, or nothing: samples are built of valid payloads.
trait ChainOrNothing {
    fn unwrap_or_default_chain(self) -> (PayloadType, Vec<u8>);
}

impl ChainOrNothing for Result<(PayloadType, Vec<u8>), WireError> {
    fn unwrap_or_default_chain(self) -> (PayloadType, Vec<u8>) {
        self.unwrap_or((PayloadType::None, Vec::new()))
    }
}

fn leak(name: &str, suffix: &str) -> &'static str {
    Box::leak(format!("{name}_{suffix}").into_boxed_str())
}

fn established(exchange: ExchangeType) -> Header {
    Header::new(SPI_I, SPI_R, exchange, Flags::REQUEST, 1)
}

fn plain(exchange: ExchangeType, payloads: Payloads) -> Vec<u8> {
    encode(Message { header: established(exchange), payloads })
}

fn encode(message: Message) -> Vec<u8> {
    message.encode().unwrap_or_default()
}

fn ike_transforms(method: KeMethod) -> Vec<Transform> {
    vec![
        Transform::encr(EncrId::AesGcm16, Some(256)),
        Transform::prf(PrfId::HmacSha2_256),
        Transform::ke(method),
    ]
}

fn sa_init(method: KeMethod, public_len: usize) -> Payloads {
    let proposal = Proposal::new(1, ProtocolId::Ike, ike_transforms(method));
    sa_init_offering(vec![proposal], method, public_len)
}

fn sa_init_offering(proposals: Vec<Proposal>, method: KeMethod, public_len: usize) -> Payloads {
    Payloads::from(vec![
        Payload::Sa(SecurityAssociation::new(proposals)),
        Payload::Ke(KeyExchange::new(method, vec![0x5a; public_len])),
        nonce(32),
        Payload::Notify(Notify::with_data(NotifyType::NatDetectionSourceIp, vec![0xa1; 20])),
        Payload::Notify(Notify::with_data(NotifyType::NatDetectionDestinationIp, vec![0xa2; 20])),
        Payload::Notify(Notify::new(NotifyType::FragmentationSupported)),
        Payload::Notify(Notify::signature_hashes(&[
            HashAlgorithm::Sha2_256,
            HashAlgorithm::Sha2_384,
            HashAlgorithm::Sha2_512,
            HashAlgorithm::Identity,
        ])),
        Payload::Notify(Notify::new(NotifyType::RedirectSupported)),
    ])
}

fn many_proposals() -> Payloads {
    let mut hybrid = ike_transforms(KeMethod::Curve25519);
    hybrid.push(Transform::add_ke(1, KeMethod::MlKem768));
    hybrid.push(Transform::add_ke(1, KeMethod::None));
    let classic = vec![
        Transform::encr(EncrId::AesCbc, Some(128)),
        Transform::encr(EncrId::AesCbc, Some(256)),
        Transform::integ(IntegId::HmacSha2_256_128),
        Transform::integ(IntegId::HmacSha2_512_256),
        Transform::prf(PrfId::HmacSha2_256),
        Transform::prf(PrfId::HmacSha2_512),
        Transform::ke(KeMethod::Curve25519),
        Transform::ke(KeMethod::Modp2048),
    ];
    let odd = vec![
        Transform {
            id: TransformId::Encr(EncrId::ChaCha20Poly1305),
            attributes: vec![
                Attribute::Tv { kind: 300, value: 7 },
                Attribute::Tlv { kind: 301, value: vec![1, 2, 3] },
            ],
        },
        Transform::new(TransformId::Unknown { kind: 99, id: 1 }),
    ];
    let proposals = [hybrid, classic, odd];
    let numbered = (1..)
        .zip(proposals)
        .map(|(number, transforms)| Proposal::new(number, ProtocolId::Ike, transforms));
    sa_init_offering(numbered.collect(), KeMethod::Curve25519, 32)
}

fn nonce(length: usize) -> Payload {
    match Nonce::new(vec![0x33; length]) {
        Ok(nonce) => Payload::Nonce(nonce),
        Err(_) => Payload::VendorId(VendorId(Vec::new())),
    }
}

fn esp(number: u8) -> Proposal {
    let transforms = vec![
        Transform::encr(EncrId::AesGcm16, Some(256)),
        Transform::esn(EsnId::Esn),
        Transform::esn(EsnId::NoEsn),
    ];
    Proposal::new(number, ProtocolId::Esp, transforms).with_child_spi(ChildSpi(0xc0de_0001))
}

fn selectors() -> (Payload, Payload) {
    let web = TrafficSelector {
        protocol: 6,
        start_port: 443,
        end_port: 443,
        start: Ipv4Addr::new(10, 20, 0, 10).into(),
        end: Ipv4Addr::new(10, 20, 0, 10).into(),
    };
    let opaque = TrafficSelector { protocol: 17, start_port: 65_535, end_port: 0, ..web };
    let here = TrafficSelectors::new(vec![TrafficSelector::any_v4(), TrafficSelector::any_v6()]);
    (Payload::TsI(here), Payload::TsR(TrafficSelectors::new(vec![web, opaque])))
}

fn auth_payloads() -> Payloads {
    let algorithm = [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2].to_vec();
    let signature = SignatureData { algorithm, signature: vec![0x51; 70] };
    let (ts_i, ts_r) = selectors();
    Payloads::from(vec![
        Payload::id_i(Identification::fqdn("runner-17.builder.ci.example.com")),
        Payload::Cert(Certificate::x509(vec![0x30; 260])),
        Payload::CertReq(CertRequest::x509(&[[0x11; 20]])),
        Payload::Notify(Notify::new(NotifyType::InitialContact)),
        Payload::id_r(Identification::fqdn("gw.example.com")),
        Payload::Auth(
            Authentication::digital_signature(&signature)
                .unwrap_or(Authentication::new(AuthMethod::Null, Vec::new())),
        ),
        Payload::Cp(Configuration::new(
            CfgType::Request,
            vec![CfgAttr::Ip4Address(None), CfgAttr::Ip6Address(None), CfgAttr::Ip4Dns(None)],
        )),
        Payload::Sa(SecurityAssociation::new(vec![esp(1)])),
        ts_i,
        ts_r,
        Payload::Notify(Notify::new(NotifyType::MobikeSupported)),
        Payload::Notify(Notify::additional_address(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)))),
        Payload::Notify(Notify::new(NotifyType::EapOnlyAuthentication)),
        Payload::Notify(Notify::new(NotifyType::MessageIdSyncSupported)),
    ])
}

fn config_reply() -> Payloads {
    let v6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 5);
    let attributes = vec![
        CfgAttr::Ip4Address(Some(Ipv4Addr::new(10, 77, 0, 5))),
        CfgAttr::Ip4Netmask(Some(Ipv4Addr::BROADCAST)),
        CfgAttr::Ip4Dns(Some(Ipv4Addr::new(10, 20, 0, 53))),
        CfgAttr::Ip4Subnet(Some((Ipv4Addr::new(10, 20, 0, 0), Ipv4Addr::new(255, 255, 0, 0)))),
        CfgAttr::Ip6Address(Some((v6, 128))),
        CfgAttr::Ip6Subnet(Some((v6, 64))),
        CfgAttr::DnsDomain(b"ci.example.com".to_vec()),
        CfgAttr::ApplicationVersion(b"example 1".to_vec()),
        CfgAttr::Supported(vec![CfgAttrType::InternalIp4Address]),
        CfgAttr::Other { kind: CfgAttrType::from(23_456), value: vec![1, 2, 3, 4] },
    ];
    Payloads::from(vec![
        Payload::id_r(Identification::dn(vec![0x30, 0x0c, 0x31, 0x0a])),
        Payload::Auth(Authentication::new(AuthMethod::EcdsaSha256P256, vec![0x52; 64])),
        Payload::Cp(Configuration::new(CfgType::Reply, attributes)),
        Payload::Notify(Notify::auth_lifetime(3600)),
    ])
}

fn child_payloads() -> Payloads {
    let (ts_i, ts_r) = selectors();
    let rekeyed = Notify::about(NotifyType::RekeySa, ProtocolId::Esp, ChildSpi(0xc0de_0000));
    Payloads::from(vec![
        Payload::Notify(rekeyed),
        Payload::Sa(SecurityAssociation::new(vec![esp(1), esp(2)])),
        nonce(16),
        Payload::Ke(KeyExchange::new(KeMethod::Curve25519, vec![0x5a; 32])),
        ts_i,
        ts_r,
    ])
}

fn information() -> Payloads {
    let sync = MessageIdSync { nonce: 9, next_send: 4, next_receive: 7 };
    Payloads::from(vec![
        Payload::Delete(Delete::esp(vec![ChildSpi(1), ChildSpi(2)])),
        Payload::Delete(Delete::Ike),
        Payload::Notify(Notify::message_id_sync(sync)),
        Payload::Notify(Notify::window_size(4)),
        Payload::Notify(Notify::unsupported_critical(PayloadType::from(200))),
        Payload::Notify(Notify::new(NotifyType::NoAdditionalAddresses)),
    ])
}

fn eap_payloads() -> Payloads {
    Payloads::from(vec![
        Payload::id_i(Identification::rfc822("ci@example.com")),
        Payload::id_r(Identification::key_id(vec![1, 2, 3])),
        Payload::Eap(Eap::request(1, EapType::Tls, vec![0x20])),
        Payload::Cert(Certificate::new(
            CertEncoding::HashAndUrlX509,
            [&[7; 20][..], b"http://ca.example.com/1"].concat(),
        )),
    ])
}
