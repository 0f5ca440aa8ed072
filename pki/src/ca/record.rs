//! The stored CA: roots, issuing CAs, and a request that waits for its certificate.

use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Ca, Issuing, Root, issuer_id, make};
use crate::error::Error;
use crate::issue::base64_bytes;
use crate::record::key;
use crate::seal::Sealer;
use crate::serial::Serial;
use crate::signer::SharedSigner;
use crate::time::UnixTime;
use crate::validate::path;

pub(crate) const ROOT_KEY: &str = "ca/root-key";
pub(super) const ISSUING_KEY: &str = "ca/issuing-key";

/// Everything about the CA in one record, so that every change of it is whole or not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub(crate) struct CaRecord {
    /// Those in force, the oldest first: it is the one that runners pin.
    pub(super) roots: Vec<RootRecord>,
    /// The one that issues first, then those whose certificates still live.
    pub(super) issuing: Vec<IssuingRecord>,
    /// A key whose certificate was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<PendingRecord>,
    /// The short names of issuing CAs that are no more, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) forgotten: Vec<String>,
    pub(super) created: UnixTime,
}

/// A trust anchor of ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RootRecord {
    #[serde(with = "base64_bytes")]
    pub(super) der: Vec<u8>,
    /// Sealed; a root that is kept offline has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Octets>,
    /// Its name in URLs.
    pub(super) place: String,
    /// The same root certified by older ones, for those who know only these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) cross: Vec<Octets>,
    /// The revocation list of a root that is kept offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) crl: Option<Octets>,
}

/// An issuing CA.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct IssuingRecord {
    #[serde(with = "base64_bytes")]
    pub(super) der: Vec<u8>,
    /// CAs between it and its root, from below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) above: Vec<Octets>,
    /// Sealed.
    #[serde(with = "base64_bytes")]
    pub(super) key: Vec<u8>,
    /// Its name in URLs.
    pub(super) place: String,
    /// The short name of its root.
    pub(super) root: String,
    /// It issues no more, and what it issued has ended then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ends: Option<UnixTime>,
}

/// A key that waits for its certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PendingRecord {
    /// Sealed.
    #[serde(with = "base64_bytes")]
    pub(super) key: Vec<u8>,
    /// The certification request, DER.
    #[serde(with = "base64_bytes")]
    pub(super) csr: Vec<u8>,
    pub(super) created: UnixTime,
}

/// Octets, as base64 in the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Octets(#[serde(with = "base64_bytes")] pub(super) Vec<u8>);

/// What may lie in the store.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Now {
        roots: Vec<RootRecord>,
        issuing: Vec<IssuingRecord>,
        #[serde(default)]
        pending: Option<PendingRecord>,
        #[serde(default)]
        forgotten: Vec<String>,
        created: UnixTime,
    },
    /// Before there could be several of each.
    One {
        #[serde(with = "base64_bytes")]
        root_der: Vec<u8>,
        #[serde(with = "base64_bytes")]
        root_key: Vec<u8>,
        #[serde(with = "base64_bytes")]
        issuing_der: Vec<u8>,
        #[serde(with = "base64_bytes")]
        issuing_key: Vec<u8>,
        created: UnixTime,
    },
}

impl From<Stored> for CaRecord {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Now { roots, issuing, pending, forgotten, created } => {
                Self { roots, issuing, pending, forgotten, created }
            }
            Stored::One { root_der, root_key, issuing_der, issuing_key, created } => {
                // A root that does not parse is found when the CA is loaded.
                let root = make::id_of(&root_der).unwrap_or_default();
                Self {
                    roots: vec![RootRecord::own(root_der, root_key, "root")],
                    issuing: vec![IssuingRecord::new(issuing_der, issuing_key, "issuing", &root)],
                    pending: None,
                    forgotten: Vec::new(),
                    created,
                }
            }
        }
    }
}

impl RootRecord {
    pub(super) fn own(der: Vec<u8>, key: Vec<u8>, place: &str) -> Self {
        let place = place.to_owned();
        Self { der, key: Some(Octets(key)), place, cross: Vec::new(), crl: None }
    }

    pub(super) fn offline(der: Vec<u8>, place: &str) -> Self {
        Self { der, key: None, place: place.to_owned(), cross: Vec::new(), crl: None }
    }

    /// Opens the key, which signs once in a while: issuing CAs, the revocation list, the
    /// certificate of its OCSP signer. `None` for a root that is kept offline.
    pub(super) fn open(&self, sealer: &Sealer) -> Result<Option<SharedSigner>, Error> {
        let Some(key) = &self.key else { return Ok(None) };
        let signer = sealer.open_key(ROOT_KEY, &key.0)?;
        if parse(&self.der)?.public_key().raw != signer.public_key_der() {
            return Err(damaged("a root's key does not belong to its certificate"));
        }
        Ok(Some(signer))
    }
}

impl IssuingRecord {
    pub(super) fn new(der: Vec<u8>, key: Vec<u8>, place: &str, root: &str) -> Self {
        let (place, root) = (place.to_owned(), root.to_owned());
        Self { der, above: Vec::new(), key, place, root, ends: None }
    }
}

impl CaRecord {
    /// The public keys of its CAs (SubjectPublicKeyInfo, DER).
    pub(super) fn public_keys(&self) -> Result<Vec<Vec<u8>>, Error> {
        let roots = self.roots.iter().map(|root| &root.der);
        let all = roots.chain(self.issuing.iter().map(|issuing| &issuing.der));
        all.map(|der| Ok(parse(der)?.public_key().raw.to_vec())).collect()
    }

    /// Opens the issuing keys and checks that keys and certificates belong together.
    ///
    /// # Errors
    /// [`Error::Invalid`] while the CA waits for its certificate.
    pub(crate) fn load(&self, sealer: &Sealer) -> Result<Ca, Error> {
        if self.issuing.is_empty() || self.roots.is_empty() {
            return Err(Error::Invalid(
                "the CA waits for its certificate: print the request with `runnel ca csr`, have it \
                 signed, and bring the certificate with its chain by `runnel ca import FILE`"
                    .to_owned(),
            ));
        }
        let roots = self.roots.iter().map(|root| Root::load(root, sealer));
        let roots: Vec<Root> = roots.collect::<Result<_, _>>()?;
        let issuing = self.issuing.iter().map(|issuing| {
            let root = roots.iter().find(|root| root.id == issuing.root);
            Issuing::load(issuing, root, sealer)
        });
        let issuing = issuing.collect::<Result<_, _>>()?;
        Ok(Ca { roots, issuing, forgotten: self.forgotten.clone() })
    }

    /// Opens the key of a root by its short name.
    ///
    /// # Errors
    /// When there is no such root or it is kept offline.
    pub(crate) fn open_root(&self, root_id: &str, sealer: &Sealer) -> Result<SharedSigner, Error> {
        for root in &self.roots {
            if issuer_id(parse(&root.der)?.subject().as_raw()) == root_id {
                return root.open(sealer)?.ok_or(Error::RootOffline);
            }
        }
        Err(Error::not_found("root", root_id))
    }
}

impl Root {
    fn load(record: &RootRecord, sealer: &Sealer) -> Result<Self, Error> {
        let certificate = parse(&record.der)?;
        // One that does not open is told of where it is used, which is rarely.
        let signer = record.open(sealer).ok().flatten();
        Ok(Self {
            id: issuer_id(certificate.subject().as_raw()),
            der: record.der.clone(),
            place: record.place.clone(),
            offline: record.key.is_none(),
            cross: record.cross.iter().map(|cross| cross.0.clone()).collect(),
            crl: record.crl.as_ref().map(|crl| crl.0.clone()),
            token: signer.filter(|signer| signer.place().is_some()),
        })
    }
}

impl Issuing {
    fn load(record: &IssuingRecord, root: Option<&Root>, sealer: &Sealer) -> Result<Self, Error> {
        let signer = sealer.open_key(ISSUING_KEY, &record.key)?;
        let certificate = parse(&record.der)?;
        if certificate.public_key().raw != signer.public_key_der() {
            return Err(damaged("an issuing key does not belong to its certificate"));
        }
        // Nothing outlives its chain.
        let mut not_after = path::validity(&certificate).1;
        let above = record.above.iter().map(|above| above.0.as_slice());
        for der in above.chain(root.map(|root| root.der.as_slice())) {
            not_after = not_after.min(path::validity(&parse(der)?).1);
        }
        // What the root issued itself: the issuing CA, or the highest of those above it.
        let below = record.above.last().map_or(&record.der, |above| &above.0);
        let list = root.and_then(|root| root.crl.as_deref());
        Ok(Self {
            listed: list.is_some_and(|list| lists(list, below)),
            id: issuer_id(certificate.subject().as_raw()),
            der: record.der.clone(),
            above: record.above.iter().map(|above| above.0.clone()).collect(),
            place: record.place.clone(),
            signer,
            not_after,
            ends: record.ends,
        })
    }
}

/// Whether a list (DER), which was judged at its import, has a certificate. That it has ended by now
/// makes the certificate no better.
fn lists(list: &[u8], certificate: &[u8]) -> bool {
    let (Ok((_, list)), Ok(certificate)) =
        (CertificateRevocationList::from_der(list), parse(certificate))
    else {
        return false;
    };
    let wanted = Serial::from_bytes(certificate.raw_serial());
    let mut listed = list.iter_revoked_certificates();
    listed.any(|entry| Serial::from_bytes(entry.raw_serial()) == wanted)
}

pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|_| damaged("a CA's certificate does not parse"))
}

fn damaged(cause: &str) -> Error {
    Error::Damaged { key: key::CA.to_owned(), cause: cause.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Maker;
    use crate::entropy::SystemEntropy;
    use crate::profile::Settings;
    use crate::signer::KeyKind;

    #[test]
    fn a_ca_of_before_there_could_be_several_is_read() {
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let settings = Settings::new("example.com");
        let now = UnixTime::from_secs(1_800_000_000);
        let mut entropy = SystemEntropy::new();
        let (settings, sealer) = (&settings, &sealer);
        let taken = Vec::new();
        let maker = Maker { settings, sealer, entropy: &mut entropy, now, taken };
        let made = CaRecord::create(maker, KeyKind::EcdsaP256).unwrap();
        let octets = |octets: &[u8]| serde_json::to_value(Octets(octets.to_vec())).unwrap();
        let (root, issuing) = (&made.roots[0], &made.issuing[0]);
        let before = serde_json::json!({
            "root_der": octets(&root.der),
            "root_key": root.key,
            "issuing_der": octets(&issuing.der),
            "issuing_key": octets(&issuing.key),
            "created": now,
        });
        let read: CaRecord = serde_json::from_value(before).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&made).unwrap());
        let ca = read.load(sealer).unwrap();
        assert_eq!((ca.root().place.as_str(), ca.current().place.as_str()), ("root", "issuing"));
        assert!(read.open_root(&ca.root().id, sealer).is_ok());
    }
}
