//! The engine's words in the data plane's words. Neither crate knows the other.

use ike::WallTime;
use ike::crypto::EspSuite;
use ike::io::{ChildUse, InstallChild};
use ike::wire::{EncrId, IntegId, TrafficSelector};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use xfrm::model;

use crate::policy;

/// Anti-replay window in packets; many cores on the peer's side reorder more than 32.
const REPLAY_WINDOW: u32 = 1024;

/// How long after its lease a child may work in a plane that is left alone: enough that the gateway,
/// when there is one, ends it first.
const SLACK: Duration = Duration::from_secs(2);

/// The data plane's suite; `None` when it has no such.
pub fn suite(suite: &EspSuite) -> Option<model::EspSuite> {
    use model::EspSuite as Plane;
    let bits = suite.encryption.key_bits;
    Some(match (suite.encryption.id, bits, suite.integ) {
        (EncrId::AesGcm16, Some(128), None) => Plane::Aes128Gcm16,
        (EncrId::AesGcm16, Some(256), None) => Plane::Aes256Gcm16,
        (EncrId::ChaCha20Poly1305, _, None) => Plane::ChaCha20Poly1305,
        (EncrId::AesCbc, Some(128), Some(IntegId::HmacSha2_256_128)) => Plane::Aes128CbcSha256,
        (EncrId::AesCbc, Some(256), Some(IntegId::HmacSha2_256_128)) => Plane::Aes256CbcSha256,
        (EncrId::AesCbc, Some(256), Some(IntegId::HmacSha2_384_192)) => Plane::Aes256CbcSha384,
        (EncrId::AesCbc, Some(256), Some(IntegId::HmacSha2_512_256)) => Plane::Aes256CbcSha512,
        _ => return None,
    })
}

/// A child SA and its lease's filter. A plane that goes on without this process ends it after
/// `life`, and with its lease, whichever comes first.
///
/// # Errors
/// A sentence when the plane has no such suite.
pub(super) fn child(
    request: &InstallChild,
    capabilities: &model::Capabilities,
    life: Duration,
    now: WallTime,
) -> Result<(model::ChildSpec, model::LeaseFilter), String> {
    let suite = suite(&request.suite)
        .filter(|suite| capabilities.suites.contains(suite))
        .ok_or_else(|| "the data plane does not have the negotiated ESP suite".to_owned())?;
    let networks = networks(&request.networks);
    let remote = request.hosts.remote.ip().to_canonical();
    // Only a site in transport mode has its gateway's own address for a network.
    if !request.transport && networks.iter().any(|net| *net == IpNet::from(remote)) {
        return Err("the site is in transport mode, and the peer agreed to tunnel mode only; set \
                    transport mode there too (strongSwan: `mode = transport`)"
            .to_owned());
    }
    let spec = model::ChildSpec {
        id: model::ChildId(request.child.0),
        reqid: request.reqid,
        spi_in: model::Spi(request.spi_in),
        spi_out: model::Spi(request.spi_out),
        suite,
        keys_in: keys(&request.keys_in),
        keys_out: keys(&request.keys_out),
        mode: if request.transport { model::Mode::Transport } else { model::Mode::Tunnel },
        hosts: hosts(&request.hosts),
        local_selectors: request.ts_local.iter().map(selector).collect(),
        remote_selectors: request.ts_remote.iter().map(selector).collect(),
        esn: request.suite.esn,
        replay_window: REPLAY_WINDOW.min(capabilities.max_replay_window),
        first_seq_out: 0,
        limits: model::Limits {
            soft_bytes: request.limits.soft_bytes,
            hard_bytes: request.limits.hard_bytes,
            soft_packets: request.limits.soft_packets,
            hard_packets: request.limits.hard_packets,
            ends: Instant::now().checked_add(life.min(request.deadline.until(now) + SLACK)),
        },
        outbound_active: request.outbound_active,
    };
    let filter = model::LeaseFilter {
        reqid: request.reqid,
        addresses: request.addresses.clone(),
        networks,
        role: policy::site_of_role(&request.role).unwrap_or(&request.role).to_owned(),
    };
    Ok((spec, filter))
}

/// Selectors of whole networks as networks; the configuration made them of such.
fn networks(selectors: &[TrafficSelector]) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for selector in selectors {
        match (selector.start, selector.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => {
                networks.extend(Ipv4Subnets::new(start, end, 0).map(IpNet::V4));
            }
            (IpAddr::V6(start), IpAddr::V6(end)) => {
                networks.extend(Ipv6Subnets::new(start, end, 0).map(IpNet::V6));
            }
            // Mixed families match nothing.
            _ => {}
        }
    }
    networks
}

/// Outer addresses.
pub(super) fn hosts(hosts: &ike::io::Hosts) -> model::Hosts {
    model::Hosts { local: hosts.local, remote: hosts.remote, encap: hosts.encap }
}

/// Counters.
pub(super) fn usage(usage: &model::Usage) -> ChildUse {
    ChildUse {
        bytes_in: usage.bytes_in,
        bytes_out: usage.bytes_out,
        packets_in: usage.packets_in,
        packets_out: usage.packets_out,
        idle_in: usage.idle_in_micros.map(Duration::from_micros),
    }
}

fn keys(keys: &ike::io::ChildKeys) -> model::SaKeys {
    model::SaKeys { encr: keys.encr.clone(), integ: keys.integ.clone() }
}

fn selector(ts: &TrafficSelector) -> model::Selector {
    model::Selector {
        start: ts.start,
        end: ts.end,
        protocol: ts.protocol,
        start_port: ts.start_port,
        end_port: ts.end_port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_esp_suite_of_both_sides_is_known() {
        let mut known = 0;
        for wire in EspSuite::defaults() {
            let Some(plane) = suite(&wire) else { continue };
            known += 1;
            let (encr, integ) = wire.key_lengths().unwrap();
            assert_eq!(plane.key_lengths(), (encr, integ), "{}", plane.name());
        }
        assert!(known >= 6, "{known}");
    }
}
