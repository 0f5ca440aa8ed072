//! From the parts' values to what listings show.

use std::collections::BTreeMap;

use ike::{ChildView, IkeSaView, Timestamp};
use pki::{CaStatus, CertRecord, Crl, Lease, Token, TokenState, UnixTime};
use xfrm::model::Usage;

use crate::admin::view;
use crate::config::Pool;
use crate::sys::clock;

pub(super) fn token(token: &Token, now: UnixTime) -> view::Token {
    let state = match token.state(now) {
        TokenState::Valid => "usable",
        TokenState::Spent => "spent",
        TokenState::Expired => "expired",
        TokenState::Revoked => "revoked",
    };
    let used = u32::try_from(token.spends.len()).unwrap_or(u32::MAX);
    view::Token {
        id: token.id.clone(),
        role: token.role.clone(),
        state: state.to_owned(),
        uses_left: token.uses.saturating_sub(used),
        created: token.created.to_string(),
        expires: token.expires.to_string(),
        leases: token.spends.iter().map(|spend| spend.lease_id.clone()).collect(),
        from: token.bound_net.map(|net| net.to_string()),
        key: token.bound_spki.clone(),
    }
}

/// A lease that waits, as listed.
pub(super) fn pending(pending: &pki::PendingLease) -> view::Pending {
    let decision = pending.decision.as_ref();
    view::Pending {
        id: pending.id.clone(),
        role: pending.role.clone(),
        state: pending.state().to_owned(),
        door: pending.door.clone(),
        token: pending.token.clone(),
        key: pending.spki_sha256.clone(),
        asked_by: pending.asked_by.to_string(),
        created: pending.created.to_string(),
        expires: pending.expires.to_string(),
        job: pending.ci_ref.clone(),
        claims: pending.claims.clone(),
        decided_by: decision.map(|decision| decision.by.to_string()),
        reason: decision.and_then(|decision| decision.reason.clone()),
    }
}

/// A bar as listed.
pub(super) fn bar(bar: &pki::Bar) -> view::Bar {
    let kind = match bar.what {
        pki::Barred::Key(_) => "key",
        pki::Barred::Run(_) => "run",
        pki::Barred::Client { .. } => "client",
        pki::Barred::Site(_) => "site",
    };
    view::Bar {
        id: bar.what.id(),
        kind: kind.to_owned(),
        what: bar.what.to_string(),
        since: bar.at.to_string(),
        reason: bar.reason.map(|reason| reason.to_string()),
        by: bar.actor.as_ref().map(ToString::to_string),
        lease: bar.lease.clone(),
    }
}

/// An issuer as listed.
pub(super) fn issuer(keys: pki::enrol::jwt::IssuerKeys, now: UnixTime) -> view::IssuerStatus {
    view::IssuerStatus {
        keys_age_seconds: keys.fetched.map(|fetched| now.since(fetched).as_secs()),
        name: keys.name,
        keys: keys.keys,
        stale: keys.stale,
        usable: keys.usable,
        fetches: keys.fetches,
        failures: keys.failures,
        problem: keys.problem,
        clock_skew_seconds: keys.clock_skew,
    }
}

/// What to do about an issuer whose keys cannot be had, if that is so.
pub(super) fn issuer_warning(issuer: &view::IssuerStatus) -> Option<String> {
    let problem = issuer.problem.as_ref()?;
    let name = &issuer.name;
    Some(match issuer.usable {
        true => format!(
            "the keys of issuer {name} could not be had again ({problem}): see that the gateway \
             reaches it; its tokens are accepted until the keys are a day old"
        ),
        false => format!(
            "the keys of issuer {name} cannot be had ({problem}): none of its tokens is accepted; \
             see that the gateway reaches it, or give the keys with static_jwks"
        ),
    })
}

/// Established IKE SAs by the lease they live under.
pub(super) fn by_lease(sas: &[IkeSaView]) -> BTreeMap<String, Vec<u64>> {
    let mut map: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for sa in sas.iter().filter(|sa| sa.state == ike::SaState::Established) {
        if let Some(lease) = &sa.lease {
            map.entry(lease.0.clone()).or_default().push(sa.id.0);
        }
    }
    map
}

pub(super) fn lease(lease: &Lease, sas: &BTreeMap<String, Vec<u64>>) -> view::Lease {
    view::Lease {
        id: lease.id.clone(),
        role: lease.role.clone(),
        state: lease.state.name().to_owned(),
        identity: lease.identity.clone(),
        subject: lease.subject.clone(),
        dns: lease.dns_name.clone(),
        serial: lease.cert().map(|cert| cert.serial.to_string()).unwrap_or_default(),
        addresses: lease.addresses.iter().map(ToString::to_string).collect(),
        created: lease.created.to_string(),
        expires: lease.expires.to_string(),
        door: lease.door.clone(),
        sas: sas.get(&lease.id).cloned().unwrap_or_default(),
        ended: lease.end.as_ref().map(|end| format!("{} by {}, {}", end.at, end.actor, end.cause)),
        claims: lease.claims.clone(),
        job: lease.ci_ref.clone(),
    }
}

/// A lease that waits among those that live: without certificate, addresses and tunnels.
pub(super) fn waiting(pending: &pki::PendingLease) -> view::Lease {
    view::Lease {
        id: pending.id.clone(),
        role: pending.role.clone(),
        state: pending.state().to_owned(),
        identity: pending.identity.clone(),
        subject: String::new(),
        dns: "-".to_owned(),
        serial: String::new(),
        addresses: Vec::new(),
        created: pending.created.to_string(),
        expires: pending.expires.to_string(),
        door: pending.door.clone(),
        sas: Vec::new(),
        ended: None,
        claims: pending.claims.clone(),
        job: pending.ci_ref.clone(),
    }
}

pub(super) fn certificate(record: &CertRecord, now: UnixTime) -> view::Cert {
    let state = if record.revoked.is_some() {
        "revoked"
    } else if now >= record.not_after {
        "expired"
    } else {
        "valid"
    };
    view::Cert {
        serial: record.serial.to_string(),
        subject: record.subject.clone(),
        state: state.to_owned(),
        lease: record.lease_id.clone(),
        not_before: record.not_before.to_string(),
        not_after: record.not_after.to_string(),
        revoked: record.revoked.as_ref().map(|revoked| revoked.at.to_string()),
        reason: record.revoked.as_ref().map(|revoked| revoked.reason.to_string()),
        pem: None,
    }
}

pub(super) fn ca(status: &CaStatus, crl: &Crl) -> view::CaStatus {
    view::CaStatus {
        authorities: status
            .certificates
            .iter()
            .map(|certificate| view::Authority {
                name: certificate.kind.to_owned(),
                subject: certificate.subject.clone(),
                sha256: certificate.sha256.clone(),
                not_before: certificate.not_before.to_string(),
                not_after: certificate.not_after.to_string(),
                offline: certificate.offline,
                token: certificate.token.clone(),
                retires: certificate.retires.map(|retires| retires.to_string()),
                place: certificate.place.clone(),
            })
            .collect(),
        crl_number: crl.number,
        crl_next_update: crl.next_update.to_string(),
        crl_entries: crl.entries,
    }
}

pub(super) fn pool(pool: &Pool) -> view::PoolStatus {
    view::PoolStatus {
        name: pool.name.clone(),
        addresses: pool.addresses.iter().map(ToString::to_string).collect(),
        gateway: pool
            .addresses
            .iter()
            .map(|network| Pool::gateway_address(*network).to_string())
            .collect(),
    }
}

pub(super) fn sa(sa: &IkeSaView, usages: &BTreeMap<u64, Usage>) -> view::Sa {
    view::Sa {
        id: sa.id.0,
        identity: sa.identity.clone().unwrap_or_default(),
        lease: sa.lease.as_ref().map(|lease| lease.0.clone()),
        role: sa.lease_role.clone(),
        local: sa.local.to_string(),
        remote: sa.remote.to_string(),
        suite: sa.suite.clone().unwrap_or_default(),
        spi_i: format!("{:016x}", sa.spis.0),
        spi_r: format!("{:016x}", sa.spis.1),
        addresses: sa.addresses.iter().map(ToString::to_string).collect(),
        established: sa.established_at.map(since).unwrap_or_default(),
        side: match sa.role {
            ike::SaRole::Initiator => "initiator",
            ike::SaRole::Responder => "responder",
        }
        .to_owned(),
        nat: match sa.nat {
            (false, false) => "none",
            (true, false) => "in front of the peer",
            (false, true) => "in front of us",
            (true, true) => "in front of both",
        }
        .to_owned(),
        ends: sa.deadline.map(|end| clock::rfc3339(end.0.div_euclid(1_000_000))),
        refused: 0,
        timers: Vec::new(),
        history: Vec::new(),
        children: sa
            .children
            .iter()
            .map(|child| view_child(child, usages.get(&child.id.0).copied().unwrap_or_default()))
            .collect(),
    }
}

/// What an IKE SA waits for, soonest first.
pub(super) fn timers(deadlines: &[ike::Deadline]) -> Vec<view::Timer> {
    use ike::io::TimerKind;
    let now = clock::mono();
    let what = |kind| match kind {
        TimerKind::Retransmit => "send the request again",
        TimerKind::HalfOpen => "give the handshake up",
        TimerKind::Action => "give our own work up",
        TimerKind::Dpd => "see whether the peer lives",
        TimerKind::RekeyIke => "rekey the IKE SA",
        TimerKind::RekeyChild => "rekey a child SA",
        TimerKind::CreateChild => "ask for a child SA again",
        TimerKind::Deadline => "the end of lease or certificate",
        TimerKind::Activate => "send on the new child SA",
        TimerKind::Keepalive => "keep the NAT open",
        TimerKind::Tombstone => "forget the closed SA",
        TimerKind::CookieSecret => "new cookie secret",
        TimerKind::Reassembly => "give the fragments up",
        TimerKind::Reauth => "authenticate again",
        TimerKind::Overlap => "give way to a newer SA",
        TimerKind::FollowupKe => "give up a rekey whose next key exchange does not come",
    };
    let mut timers: Vec<_> = deadlines
        .iter()
        .map(|deadline| view::Timer {
            what: what(deadline.reason).to_owned(),
            seconds: deadline.at.since(now).as_secs(),
        })
        .collect();
    timers.sort_by_key(|timer| timer.seconds);
    timers
}

fn view_child(child: &ChildView, usage: Usage) -> view::Child {
    let selectors = |list: &[ike::wire::TrafficSelector]| {
        list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    view::Child {
        id: child.id.0,
        spi_in: format!("{:08x}", child.spi_in),
        spi_out: format!("{:08x}", child.spi_out),
        suite: child.suite.to_string(),
        ts_local: selectors(&child.ts_local),
        ts_remote: selectors(&child.ts_remote),
        bytes_in: usage.bytes_in,
        bytes_out: usage.bytes_out,
        packets_in: usage.packets_in,
        packets_out: usage.packets_out,
        idle_seconds: usage.idle_in_micros.map(|micros| micros / 1_000_000),
        drops: usage
            .drops_replay
            .saturating_add(usage.drops_auth)
            .saturating_add(usage.drops_selector),
        drops_replay: usage.drops_replay,
        drops_auth: usage.drops_auth,
        drops_selector: usage.drops_selector,
        mode: if child.transport { "transport" } else { "tunnel" }.to_owned(),
        offload: usage.offload.name().to_owned(),
        mtu: None,
        installed: since(child.installed_at),
    }
}

/// A monotonic instant of the past as wall-clock text.
pub(super) fn since(at: Timestamp) -> String {
    let now = clock::now();
    let ago = i64::try_from(now.mono.since(at).as_micros()).unwrap_or(0);
    clock::rfc3339(now.wall.0.saturating_sub(ago).div_euclid(1_000_000))
}

pub(super) fn check(name: &str, ok: bool, detail: &str) -> view::Check {
    view::Check { name: name.to_owned(), ok, detail: detail.to_owned() }
}

/// DER as PEM (RFC 7468), lines of 64 characters.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, symbol) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(symbol);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_pads_and_wraps() {
        assert_eq!(pem("X", b"M"), "-----BEGIN X-----\nTQ==\n-----END X-----\n");
        assert_eq!(pem("X", b"Ma"), "-----BEGIN X-----\nTWE=\n-----END X-----\n");
        assert_eq!(pem("X", b"Man"), "-----BEGIN X-----\nTWFu\n-----END X-----\n");
        let long = pem("X", &[0; 49]);
        assert_eq!(long.lines().nth(1).unwrap().len(), 64);
        assert_eq!(long.lines().count(), 4);
    }
}
