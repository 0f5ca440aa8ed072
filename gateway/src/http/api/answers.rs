//! What `/v1/leases` answers.

use std::collections::BTreeMap;

use pki::{Authority, Enrolled, UnixTime};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::http::Reply;
use crate::http::problem::problem;
use crate::policy;
use crate::service::pem;

/// A lease.
#[derive(Serialize)]
pub(super) struct Lease {
    id: String,
    role: String,
    state: String,
    identity: String,
    subject: String,
    dns_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    addresses: Vec<String>,
    created: String,
    expires: String,
    hard_cap: String,
    door: String,
    #[serde(flatten)]
    job: pki::CiRef,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    claims: BTreeMap<String, String>,
}

impl Lease {
    fn new(lease: &pki::Lease) -> Self {
        Self {
            id: lease.id.clone(),
            role: lease.role.clone(),
            state: lease.state.name().to_owned(),
            identity: lease.identity.clone(),
            subject: lease.subject.clone(),
            dns_name: lease.dns_name.clone(),
            serial: lease.cert().map(|cert| cert.serial.to_string()),
            addresses: lease.addresses.iter().map(ToString::to_string).collect(),
            created: lease.created.to_string(),
            expires: lease.expires.to_string(),
            hard_cap: lease.hard_cap.to_string(),
            door: lease.door.clone(),
            job: lease.ci_ref.clone(),
            claims: lease.claims.clone(),
        }
    }
}

/// A lease and what it may reach.
#[derive(Serialize)]
pub(super) struct Shown {
    lease: Lease,
    allow: Vec<String>,
}

impl Shown {
    pub(super) fn new(config: &Config, lease: &pki::Lease) -> Self {
        Self { allow: allow(config, lease), lease: Lease::new(lease) }
    }
}

/// A lease with everything its holder needs to connect.
#[derive(Serialize)]
pub(super) struct Issued<'k> {
    lease: Lease,
    replayed: bool,
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<&'k String>,
    chain: Vec<String>,
    root: String,
    not_after: String,
    renew_at: String,
    gateway: String,
    allow: Vec<String>,
    dns: Vec<String>,
    swanctl_conf: String,
    release_token: String,
}

impl<'k> Issued<'k> {
    pub(super) fn new(
        authority: &Authority,
        config: &Config,
        gateway: &str,
        enrolled: &Enrolled,
        private_key: Option<&'k String>,
        swanctl_conf: String,
    ) -> Self {
        let lease = &enrolled.lease;
        let dns = config.role(&lease.role).and_then(|role| config.pool(&role.pool));
        let now = super::now();
        // Two thirds of what is left.
        let renew_at: UnixTime = now.plus(enrolled.not_after.since(now) / 3 * 2);
        Self {
            lease: Lease::new(lease),
            replayed: enrolled.replayed,
            certificate: pem("CERTIFICATE", &enrolled.certificate),
            private_key,
            chain: authority.chain_pem(&enrolled.certificate),
            root: authority.root_pem(),
            not_after: enrolled.not_after.to_string(),
            renew_at: renew_at.to_string(),
            gateway: gateway.to_owned(),
            allow: allow(config, lease),
            dns: dns.map(|p| p.dns.iter().map(ToString::to_string).collect()).unwrap_or_default(),
            swanctl_conf,
            release_token: authority.release_token(&lease.id).expose().to_owned(),
        }
    }
}

/// A lease that waits for an operator.
#[derive(Serialize)]
struct Waiting<'p> {
    lease_id: &'p str,
    role: &'p str,
    state: &'static str,
    expires: String,
    retry_after: u64,
    release_token: String,
}

/// Tells the holder of a lease that waits when to ask again.
pub(super) fn waiting(
    authority: &Authority,
    pending: &pki::PendingLease,
    retry_after: Option<u64>,
) -> Reply {
    let retry_after = retry_after.unwrap_or(1);
    let mut reply = json(
        202,
        &Waiting {
            lease_id: &pending.id,
            role: &pending.role,
            state: pending.state(),
            expires: pending.expires.floor_to_second().to_string(),
            retry_after,
            release_token: authority.release_token(&pending.id).expose().to_owned(),
        },
    );
    reply.headers.push(("retry-after", retry_after.to_string()));
    reply
}

/// What the lease's role may reach now.
fn allow(config: &Config, lease: &pki::Lease) -> Vec<String> {
    let Some(role) = config.role(&lease.role) else { return Vec::new() };
    let Some(pool) = config.pool(&role.pool) else { return Vec::new() };
    policy::reach(role, pool).iter().map(ToString::to_string).collect()
}

/// A JSON answer.
pub(super) fn json(status: u16, value: &impl Serialize) -> Reply {
    match written(value) {
        Ok(mut body) => {
            let body = std::mem::take(&mut *body);
            let mut reply = Reply::new(status, "application/json", body);
            // Answers hold secrets and standings.
            reply.headers.push(("cache-control", "no-store".to_owned()));
            reply
        }
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            problem(500, "internal", "the request failed inside")
        }
    }
}

/// A value as JSON, measured before it is written: a vector that grows leaves copies behind, and
/// some answers hold a key.
fn written(value: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value)?;
    let mut body = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *body, value)?;
    Ok(body)
}

/// Counts what is written.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(octets.len());
        Ok(octets.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_into_room_for_all_of_it() {
        // Escapes make it longer than the text.
        let value = serde_json::json!({"private_key": "line\n\"".repeat(1_000), "n": [1, 2, 3]});
        let body = written(&value).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), value);
        assert_eq!(body.capacity(), body.len(), "it grew while it was written");
    }

    #[test]
    fn what_is_logged_of_an_answer_is_not_its_body() {
        let reply = json(201, &serde_json::json!({"private_key": "secret-of-the-client"}));
        let shown = format!("{reply:?}");
        assert!(!shown.contains("secret") && shown.contains("octets"), "{shown}");
        // Nor its octets one by one.
        assert!(!shown.contains("115, 101"), "{shown}");
    }
}
