//! Any two cryptography providers can be the two ends of one connection: what one derives and
//! seals, the other derives and opens.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ike::Command;
use ike::crypto::{CryptoProvider, EspSuite, IkeSuite, aws_lc, ring};
use tests::sim::link::Weather;
use tests::sim::node::{Kind, Node};
use tests::sim::setup::config;
use tests::sim::world::{GATEWAY, World, client_address, gateway_address};

const IKE: [&str; 6] = [
    "aes256gcm16-prfsha384-ecp384",
    "aes128gcm16-prfsha256-ecp256",
    "aes256gcm16-prfsha512-curve25519",
    "chacha20poly1305-prfsha256-curve25519",
    "aes256-sha256-modp2048",
    "aes256-sha512-ecp256",
];

fn connect(gateway: &'static CryptoProvider, client: &'static CryptoProvider, suite: &str) {
    let ike: IkeSuite = suite.parse().unwrap();
    let esp: EspSuite = "aes256gcm16".parse().unwrap();
    let mut world = World::new(11, Weather::FINE, 1);
    let now = world.now;
    let settings = |name: &str| {
        let mut settings = config(name);
        settings.ike_suites = vec![ike.clone()];
        settings.esp_suites = vec![esp.clone()];
        settings
    };
    let node = |provider, name: &str, kind, address, seed| {
        Node::with_provider(provider, settings(name), name, kind, address, [seed; 32], now)
    };
    world.nodes[0] = node(gateway, GATEWAY, Kind::Gateway, gateway_address(), 1);
    world.nodes[1] = node(client, "client-0", Kind::Client(0), client_address(0), 2);
    let mut peer = world.nodes[1].peer(gateway_address(), GATEWAY);
    peer.first_ke = ike.kex;
    peer.ike_suites = vec![ike];
    peer.esp_suites = vec![esp];
    world.command(1, Command::Initiate(Box::new(peer)));
    world.run(Duration::from_secs(5));
    let pair = format!("{suite}: {} gateway, {} client", gateway.name, client.name);
    assert_eq!(world.working_children(1), 1, "{pair}");
    // A rekey with its own key exchange inside the connection.
    for id in world.nodes[1].engine.sas().map(|sa| sa.id).collect::<Vec<_>>() {
        world.command(1, Command::RekeyIke(id));
    }
    world.run(Duration::from_secs(5));
    assert_eq!(world.working_children(1), 1, "{pair}: after an IKE rekey");
    assert_eq!(world.leaks_after_shutdown(), Vec::<String>::new(), "{pair}");
}

#[test]
fn engines_with_different_providers_connect_with_every_kind_of_suite() {
    for suite in IKE {
        connect(&ring::PROVIDER, &aws_lc::PROVIDER, suite);
        connect(&aws_lc::PROVIDER, &ring::PROVIDER, suite);
    }
}
