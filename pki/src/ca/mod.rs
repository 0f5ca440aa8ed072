//! The embedded CA: its stored form (`record`), how certificates of CAs are made (`make`), its life
//! (`change`: first start, request, rotation, retirement; `import`: what comes from elsewhere;
//! `revoke`), and the gateway's own certificate (`server`).
//!
//! There is one issuing CA that issues, and there may be others whose certificates still live. There
//! is one root, or two while runners learn to know the second. Every change is one transaction on
//! one record, so a crash leaves the CA as it was before or as it is after.

#[cfg(test)]
mod away;
mod change;
mod import;
mod make;
mod offline;
mod record;
mod revoke;
mod server;

use serde::Serialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

pub use change::{CaChange, Imported};
pub use import::certificates_of;
pub(crate) use make::{Maker, key_identifier};
pub use offline::CaSetup;
pub(crate) use record::{CaRecord, ROOT_KEY};
pub use server::{ServerIdentity, ServerNames};

use crate::issue;
use crate::serial::Serial;
use crate::signer::{KeyAlgorithm, SharedSigner, Signer};
use crate::time::UnixTime;
use crate::validate::{self, IkeId, MAX_CHAIN, PeerError, VerifiedPeer, name, path};

/// One CA certificate for `ca status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaCertificate {
    /// "root" or "issuing".
    pub kind: &'static str,
    /// The subject.
    pub subject: String,
    /// The serial number.
    pub serial: Serial,
    /// SHA-256 of the DER, hexadecimal.
    pub sha256: String,
    /// First instant of validity.
    pub not_before: UnixTime,
    /// Last instant of validity.
    pub not_after: UnixTime,
    /// Its key is elsewhere.
    pub offline: bool,
    /// The token that holds its key.
    pub token: Option<String>,
    /// Why its key could not be used the last time.
    pub trouble: Option<String>,
    /// It issues no more, and goes when what it issued has ended, which is then.
    pub retires: Option<UnixTime>,
    /// The imported list of its root says that it is revoked.
    pub revoked: bool,
    /// Where its revocation list and its certificate are served, as `/crl/PLACE.crl`.
    pub place: String,
}

/// The CA's certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaStatus {
    /// Roots first, the oldest first; then issuing CAs, the current one first.
    pub certificates: Vec<CaCertificate>,
    /// The current issuing key's kind.
    pub algorithm: KeyAlgorithm,
    /// The newest root's key is elsewhere: another issuing CA needs a request.
    pub offline: bool,
}

/// The short name of an issuer in the store: the first 16 hexadecimal digits of SHA-256 over
/// its name's DER. Certificates are identified by issuer and serial (RFC 5280 4.1.2.2).
pub fn issuer_id(issuer_name_der: &[u8]) -> String {
    let mut hash = issue::sha256_hex(issuer_name_der);
    hash.truncate(16);
    hash
}

/// A CA's certificate with its key: what signs certificates, lists and delegations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CaKey<'a> {
    pub(crate) certificate: &'a [u8],
    pub(crate) signer: &'a dyn Signer,
    /// Its name in the URLs that its certificates carry.
    pub(crate) place: &'a str,
}

/// A trust anchor.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) id: String,
    pub(crate) der: Vec<u8>,
    pub(crate) place: String,
    pub(crate) offline: bool,
    /// The same root, certified by older ones.
    pub(crate) cross: Vec<Vec<u8>>,
    /// The imported revocation list of an offline root.
    pub(crate) crl: Option<Vec<u8>>,
    /// Its key, when that is in a token: one that is here is opened for each use.
    pub(crate) token: Option<SharedSigner>,
}

impl Root {
    /// Whether the last use of its key did not fail.
    pub(crate) fn works(&self) -> bool {
        self.token.as_ref().is_none_or(|signer| signer.trouble().is_none())
    }
}

/// An issuing CA with its key.
#[derive(Debug)]
pub(crate) struct Issuing {
    pub(crate) id: String,
    pub(crate) der: Vec<u8>,
    /// CAs between it and its root, from below.
    pub(crate) above: Vec<Vec<u8>>,
    pub(crate) place: String,
    pub(crate) signer: SharedSigner,
    pub(crate) not_after: UnixTime,
    pub(crate) ends: Option<UnixTime>,
    /// The imported list of its root says that it is revoked.
    pub(crate) listed: bool,
}

impl Issuing {
    pub(crate) fn key(&self) -> CaKey<'_> {
        CaKey { certificate: &self.der, signer: self.signer.as_ref(), place: &self.place }
    }
}

/// The loaded CA. Neither list is empty.
#[derive(Debug)]
pub(crate) struct Ca {
    /// The oldest first.
    pub(crate) roots: Vec<Root>,
    /// The current one first.
    pub(crate) issuing: Vec<Issuing>,
    /// The short names of issuing CAs that are no more, whose certificates are still on record.
    pub(crate) forgotten: Vec<String>,
}

impl Ca {
    /// The root that runners pin.
    #[expect(clippy::indexing_slicing, reason = "a loaded CA has a root")]
    pub(crate) fn root(&self) -> &Root {
        &self.roots[0]
    }

    /// The CA that issues.
    #[expect(clippy::indexing_slicing, reason = "a loaded CA has an issuing CA")]
    pub(crate) fn current(&self) -> &Issuing {
        &self.issuing[0]
    }

    /// Every trust anchor.
    pub(crate) fn anchors(&self) -> Vec<Vec<u8>> {
        self.roots.iter().map(|root| root.der.clone()).collect()
    }

    /// The issuing CA of a short name.
    pub(crate) fn issuing_of(&self, id: &str) -> Option<&Issuing> {
        self.issuing.iter().find(|issuing| issuing.id == id)
    }

    /// Nothing more can be signed with the newest root here.
    pub(crate) fn is_offline(&self) -> bool {
        self.roots.last().is_none_or(|root| root.offline)
    }

    /// The root of a short name.
    pub(crate) fn root_of(&self, id: &str) -> Option<&Root> {
        self.roots.iter().find(|root| root.id == id)
    }

    /// The short names of those that issue certificates, the current one first, and of those that
    /// did and are forgotten.
    pub(crate) fn issuer_ids(&self) -> impl Iterator<Item = &str> {
        let roots = self.roots.iter().map(|root| root.id.as_str());
        let issuing = self.issuing.iter().map(|issuing| issuing.id.as_str());
        issuing.chain(roots).chain(self.forgotten.iter().map(String::as_str))
    }

    /// What goes with a certificate of one of our issuing CAs: everything below a root that whoever
    /// receives it may know. Roots themselves are not sent.
    pub(crate) fn chain_for(&self, certificate: &[u8]) -> Vec<Vec<u8>> {
        let issuer = validate::issued_as(certificate).map(|(issuer, _)| issuer);
        let issuing = issuer.and_then(|issuer| self.issuing_of(&issuer));
        self.chain_of(issuing.unwrap_or(self.current()))
    }

    fn chain_of(&self, issuing: &Issuing) -> Vec<Vec<u8>> {
        let mut chain = vec![issuing.der.clone()];
        chain.extend(issuing.above.iter().cloned());
        chain.extend(self.roots.iter().flat_map(|root| root.cross.iter().cloned()));
        chain
    }

    /// Roots, what certifies one by another, and issuing CAs with what is above them: what EST
    /// calls the CA certificates (RFC 7030 4.1.3).
    pub(crate) fn certificates(&self) -> Vec<Vec<u8>> {
        let mut all = self.anchors();
        for issuing in &self.issuing {
            for certificate in self.chain_of(issuing) {
                if !all.contains(&certificate) {
                    all.push(certificate);
                }
            }
        }
        all
    }

    /// A peer's chain with what the peer left out between its certificate and a root of ours.
    pub(crate) fn complete(&self, chain: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut chain = chain.to_vec();
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let issuer = leaf.map(|(_, leaf)| issuer_id(leaf.issuer().as_raw()));
        let issuing = issuer.as_deref().and_then(|id| self.issuing_of(id));
        for certificate in
            issuing.into_iter().flat_map(|found| [&found.der].into_iter().chain(&found.above))
        {
            if chain.len() < MAX_CHAIN && !chain.contains(certificate) {
                chain.push(certificate.clone());
            }
        }
        chain
    }

    /// Verifies a peer's chain up to a root of ours. Only what one of our issuing CAs issued is
    /// ours: a root that is kept elsewhere may have other CAs below it.
    pub(crate) fn verify_peer(
        &self,
        chain: &[Vec<u8>],
        id: Option<IkeId<'_>>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let peer = validate::verify_peer(&self.complete(chain), &self.anchors(), id, now)?;
        let issuer = peer.path.get(1);
        let ours = self.issuing.iter().find(|ours| issuer.is_some_and(|der| ours.der == *der));
        match ours {
            Some(ours) if !ours.listed => return Ok(peer),
            Some(_) => {
                return Err(PeerError::IssuerRevoked {
                    subject: peer.subject,
                    issuer: peer.issuer,
                });
            }
            None => {}
        }
        let names = self.issuing.iter().filter_map(|ours| {
            let (_, certificate) = X509Certificate::from_der(&ours.der).ok()?;
            Some(name::render(certificate.subject()))
        });
        Err(PeerError::UnknownIssuer {
            subject: peer.subject,
            issuer: peer.issuer,
            trusted: names.collect::<Vec<_>>().join("; "),
        })
    }

    pub(crate) fn status(&self) -> CaStatus {
        let roots = self
            .roots
            .iter()
            .map(|root| (&root.der, "root", root.offline, &root.place, root.token.as_ref(), None));
        let issuing = self.issuing.iter().map(|issuing| {
            let signer = Some(&issuing.signer);
            (&issuing.der, "issuing", false, &issuing.place, signer, Some(issuing))
        });
        let certificates =
            roots.chain(issuing).filter_map(|(der, kind, offline, place, signer, issuing)| {
                let (_, certificate) = X509Certificate::from_der(der).ok()?;
                let (not_before, not_after) = path::validity(&certificate);
                Some(CaCertificate {
                    kind,
                    subject: name::render(certificate.subject()),
                    serial: Serial::from_bytes(certificate.raw_serial()),
                    sha256: issue::sha256_hex(der),
                    not_before,
                    not_after,
                    offline,
                    token: signer.and_then(|signer| signer.place()),
                    trouble: signer.and_then(|signer| signer.trouble()),
                    retires: issuing.and_then(|issuing| issuing.ends),
                    revoked: issuing.is_some_and(|issuing| issuing.listed),
                    place: place.clone(),
                })
            });
        CaStatus {
            certificates: certificates.collect(),
            algorithm: self.current().signer.algorithm(),
            offline: self.is_offline(),
        }
    }
}
