//! Which tunnels of an earlier process go on.

use std::net::IpAddr;
use std::sync::Arc;

use ike::config::EngineConfig;
use ike::crypto::CryptoProvider;
use ike::io::Grant;
use ike::snapshot::Snapshot;
use ike::{Engine, EngineError};
use pki::{Authority, Lease, LeaseState, UnixTime};

use super::Checkpoints;
use crate::actions::Peers;
use crate::lease::LeaseRegistry;
use crate::policy;
use crate::sys::clock;

/// The tunnels that go on, with what their leases grant under the configuration of now: their lease
/// may connect, its role is configured as it was, and their address of ours is still served
/// (`serves`). The others are forgotten; their clients find out by themselves and connect again.
pub fn choose(
    saved: Vec<Snapshot>,
    checkpoints: &Checkpoints,
    authority: &Authority,
    peers: &Peers,
    registry: &LeaseRegistry,
    serves: impl Fn(IpAddr) -> bool,
) -> Vec<Snapshot> {
    let mut chosen = Vec::new();
    for snapshot in saved {
        let (ike, lease) = (snapshot.ike, snapshot.grant.lease.clone());
        let went_on = go_on(&snapshot, authority, peers, registry, &serves);
        match went_on {
            Ok(grant) => chosen.push(Snapshot { grant: Arc::new(grant), ..snapshot }),
            Err(why) => {
                tracing::info!(ike = ike.0, lease = %lease.0, why, "tunnel does not go on");
                checkpoints.forget(ike);
            }
        }
    }
    chosen
}

/// An engine that goes on with them, and those with which it does.
///
/// # Errors
/// As [`Engine::new`].
pub fn engine(
    config: EngineConfig,
    provider: &'static CryptoProvider,
    seed: [u8; 32],
    resumed: Vec<Snapshot>,
    checkpoints: &Checkpoints,
) -> Result<(Engine, Vec<Snapshot>), EngineError> {
    match Engine::restore(config.clone(), provider, seed, clock::now(), resumed.clone()) {
        Ok(engine) => Ok((engine, resumed)),
        // Another build, without an algorithm that one of them runs with: none goes on, but the
        // gateway starts.
        Err(EngineError::Snapshot(error)) => {
            tracing::warn!(%error, "no tunnel goes on; clients connect again");
            for snapshot in &resumed {
                checkpoints.forget(snapshot.ike);
            }
            Ok((Engine::new(config, provider, seed, clock::now())?, Vec::new()))
        }
        Err(error) => Err(error),
    }
}

fn go_on(
    snapshot: &Snapshot,
    authority: &Authority,
    peers: &Peers,
    registry: &LeaseRegistry,
    serves: &impl Fn(IpAddr) -> bool,
) -> Result<Grant, String> {
    let before = &*snapshot.grant;
    // First, and for good: what the data plane still has of a tunnel that does not go on must not
    // be another lease's.
    if !registry.take(&before.lease, before.reqid) {
        return Err("another lease has its request id".to_owned());
    }
    if policy::site_of_role(&before.role).is_some() {
        return Err("sites prove anew who they are".to_owned());
    }
    if snapshot.client {
        return Err("we had made it, and make it again".to_owned());
    }
    if !serves(snapshot.local.ip()) {
        return Err(format!("{} is not served any more", snapshot.local.ip()));
    }
    let lease = authority.lease(&before.lease.0).map_err(|error| error.to_string())?;
    let connects = |lease: &Lease| {
        matches!(lease.state, LeaseState::Issued | LeaseState::Active | LeaseState::Lost)
    };
    let lease = lease.filter(connects).ok_or("its lease has ended")?;
    if before.deadline.until(clock::wall()).is_zero() {
        return Err("its lease or certificate has run out".to_owned());
    }
    if !authority.certificates_hold(&lease, UnixTime::from_micros(clock::wall().0)) {
        return Err("the CA of a certificate of it is good no more".to_owned());
    }
    let grant = peers
        .regrant(&lease, &before.role, before.deadline)
        .ok_or("what it was let in with is not configured any more")?;
    let same = |a: &Grant, b: &Grant| a.addresses == b.addresses && a.networks == b.networks;
    if !same(&grant, before) {
        return Err("its addresses are others now".to_owned());
    }
    Ok(grant)
}
