//! The gateway's own certificate, for IKE and for the enrolment listener.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Ca;
use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{self, BACKDATE, CertRecord, Terms, base64_bytes};
use crate::record::{self, key};
use crate::serial::Serial;
use crate::signer::{FileSigner, KeyKind, SharedSigner, Signer};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

const LIFE: Duration = Duration::from_secs(90 * 86_400);
const GATEWAY: &str = "gateway";
const KEY_PURPOSE: &str = "server/gateway-key";

/// The names in the gateway's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerNames {
    /// The gateway's id: a DNS name, or an address in text; the common name and first SAN.
    pub id: String,
    /// Further DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

impl ServerNames {
    /// Just the id.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), dns: Vec::new(), addresses: Vec::new() }
    }

    /// DNS names and addresses with the id in its place and nothing twice.
    fn sans(&self) -> (Vec<String>, Vec<IpAddr>) {
        let mut dns = Vec::new();
        let mut addresses = Vec::new();
        match self.id.parse::<IpAddr>() {
            Ok(address) => addresses.push(address),
            Err(_) => dns.push(self.id.clone()),
        }
        for name in &self.dns {
            if !dns.contains(name) {
                dns.push(name.clone());
            }
        }
        for address in &self.addresses {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        (dns, addresses)
    }

    fn check(&self) -> Result<(), Error> {
        let (dns, _) = self.sans();
        for name in dns {
            if !crate::profile::is_dns_name(&name.to_ascii_lowercase()) {
                return Err(Error::Invalid(format!(
                    "the gateway name {name:?} is neither a DNS name nor an address: set \
                     gateway.id to one"
                )));
            }
        }
        Ok(())
    }
}

/// The gateway's key and certificate.
#[derive(Clone)]
pub struct ServerIdentity {
    /// Leaf, then issuing CA and what is above it, DER; no root.
    pub chain: Vec<Vec<u8>>,
    /// The private key; [`FileSigner::pkcs8`] is for TLS stacks that want the key itself.
    pub signer: Arc<FileSigner>,
    /// When the certificate ends.
    pub not_after: UnixTime,
    /// When to ask for a new one.
    pub renew_at: UnixTime,
    /// Whether it was issued by this call.
    pub issued_now: bool,
}

impl ServerIdentity {
    /// The key behind the signing seam.
    pub fn shared_signer(&self) -> SharedSigner {
        Arc::clone(&self.signer) as SharedSigner
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity")
            .field("signer", &self.signer)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ServerRecord {
    names: ServerNames,
    issuer: String,
    serial: Serial,
    #[serde(with = "base64_bytes")]
    der: Vec<u8>,
    #[serde(with = "base64_bytes")]
    sealed_key: Vec<u8>,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl ServerRecord {
    /// Two thirds of the certificate's life.
    fn renew_at(&self) -> UnixTime {
        self.not_before.plus(self.not_after.since(self.not_before) * 2 / 3)
    }
}

impl Authority {
    /// The gateway's certificate for IKE and for the enrolment listener's TLS.
    ///
    /// Loads the stored one, or issues a new one when there is none, the names changed, a third
    /// of its life or less remains, or it was revoked. Call it at start and at `renew_at`.
    ///
    /// # Errors
    /// When the names cannot be put in a certificate or the store fails.
    pub fn server_identity(
        &self,
        names: &ServerNames,
        now: UnixTime,
    ) -> Result<ServerIdentity, Error> {
        names.check()?;
        let stored_key = key::server(GATEWAY);
        let ca = self.ca();
        let stored = record::read::<ServerRecord>(self.store.as_ref(), &stored_key)?;
        if let Some(stored) = &stored {
            let record = &stored.value;
            let revoked = self
                .certificate(&record.serial)?
                .is_some_and(|certificate| certificate.revoked.is_some());
            if record.names == *names
                && record.issuer == ca.current().id
                && (record.not_before..record.renew_at()).contains(&now)
                && !revoked
            {
                return self.load_server(&ca, record, false);
            }
        }

        let issuing = ca.current();
        let signer = FileSigner::generate(KeyKind::beside(issuing.signer.algorithm()))?;
        let now = now.floor_to_second();
        let settings = self.settings();
        let terms = Terms {
            serial: self.with_entropy(Serial::random)?,
            not_before: now.minus(BACKDATE),
            not_after: now.plus(LIFE).min(issuing.not_after),
            status_url: settings.status_url.clone(),
        };
        let (dns, addresses) = names.sans();
        let der = issue::server(
            issuing.key(),
            &names.id,
            &settings.trust_domain,
            &dns,
            &addresses,
            &terms,
            signer.public_key_der(),
        )?;
        let certificate = CertRecord::from_der(der.clone(), None)?;
        let sealed_key =
            self.with_entropy(|entropy| self.sealer.seal(KEY_PURPOSE, signer.pkcs8(), entropy))?;
        let record = ServerRecord {
            names: names.clone(),
            issuer: issuing.id.clone(),
            serial: terms.serial.clone(),
            der,
            sealed_key,
            not_before: terms.not_before,
            not_after: terms.not_after,
        };

        let mut txn = Txn::new();
        match &stored {
            Some(stored) => txn.at(&stored_key, stored.revision),
            None => txn.absent(&stored_key),
        };
        let cert_key = key::cert(&issuing.id, &terms.serial);
        txn.absent(&cert_key)
            .put(cert_key, record::encode(&certificate))
            .put(&stored_key, record::encode(&record));
        AuditEvent::new("cert.issue", &Actor::System, now)
            .serial(&terms.serial)
            .reason("gateway certificate")
            .record(&mut txn);
        failpoint::hit("server.before_commit");
        match self.store.transact(txn)? {
            Outcome::Committed(_) => {
                failpoint::hit("server.after_commit");
                self.load_server(&ca, &record, true)
            }
            Outcome::Conflict(_) => Err(Error::Contended("the gateway's certificate")),
        }
    }

    fn load_server(
        &self,
        ca: &Ca,
        record: &ServerRecord,
        issued_now: bool,
    ) -> Result<ServerIdentity, Error> {
        let pkcs8 = self.sealer.open(KEY_PURPOSE, &record.sealed_key)?;
        let mut chain = vec![record.der.clone()];
        chain.extend(ca.chain_for(&record.der));
        Ok(ServerIdentity {
            chain,
            signer: Arc::new(FileSigner::from_pkcs8(pkcs8)?),
            not_after: record.not_after,
            renew_at: record.renew_at(),
            issued_now,
        })
    }
}
