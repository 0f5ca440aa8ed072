//! The certificates of the authority: its CAs', and those on record.

use super::Authority;
use crate::ca::CaStatus;
use crate::error::Error;
use crate::issue::{self, CertRecord};
use crate::record::{self, key};
use crate::serial::Serial;
use crate::store;
use crate::time::UnixTime;
use crate::validate::{IkeId, PeerError, VerifiedPeer};

impl Authority {
    /// The root certificate, PEM.
    pub fn root_pem(&self) -> String {
        issue::pem(&self.ca().root().der, "CERTIFICATE")
    }

    /// The issuing certificate, PEM.
    pub fn issuing_pem(&self) -> String {
        issue::pem(&self.ca().current().der, "CERTIFICATE")
    }

    /// The root certificate, DER.
    pub fn root_der(&self) -> Vec<u8> {
        self.ca().root().der.clone()
    }

    /// The issuing certificate, DER.
    pub fn issuing_der(&self) -> Vec<u8> {
        self.ca().current().der.clone()
    }

    /// Every CA certificate in use, DER, the root that runners pin first.
    pub fn ca_certificates(&self) -> Vec<Vec<u8>> {
        self.ca().certificates()
    }

    /// What goes with a certificate of ours (DER), PEM: its issuing CA first, roots not.
    pub fn chain_pem(&self, certificate: &[u8]) -> Vec<String> {
        let chain = self.ca().chain_for(certificate);
        chain.iter().map(|der| issue::pem(der, "CERTIFICATE")).collect()
    }

    /// The certificate of one of our CAs (DER) by its name in URLs.
    pub fn ca_certificate_at(&self, place: &str) -> Option<Vec<u8>> {
        let ca = self.ca();
        let root = ca.roots.iter().find(|root| root.place == place).map(|root| &root.der);
        let issuing = ca.issuing.iter().find(|issuing| issuing.place == place);
        root.or(issuing.map(|issuing| &issuing.der)).cloned()
    }

    /// The SHA-256 fingerprint of the root certificate's DER, lower-case hexadecimal.
    pub fn root_fingerprint(&self) -> String {
        issue::sha256_hex(&self.ca().root().der)
    }

    /// Looks whether the keys of CAs that are in tokens can be used. May block.
    ///
    /// # Errors
    /// The first that cannot, with what to do.
    pub fn probe_ca_keys(&self) -> Result<(), Error> {
        let ca = self.ca();
        let roots = ca.roots.iter().filter_map(|root| root.token.as_ref());
        let mut signers = ca.issuing.iter().map(|issuing| &issuing.signer).chain(roots);
        signers.try_for_each(|signer| signer.probe())
    }

    /// Names, fingerprints and validity of the CA certificates.
    pub fn ca_status(&self) -> CaStatus {
        self.ca().status()
    }

    /// Verifies a peer's chain up to a root of the embedded CA and, when given, that its IKE identity is
    /// the certificate's. The issuing CA's certificate need not be sent.
    ///
    /// `chain` is as sent: the first certificate is the leaf (RFC 7296 3.6), the rest in any
    /// order. Says nothing about access; that is [`authorise`](Self::authorise).
    ///
    /// # Errors
    /// What differed and what to do.
    pub fn verify_peer(
        &self,
        chain: &[Vec<u8>],
        id: Option<IkeId<'_>>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        self.ca().verify_peer(chain, id, now)
    }

    /// The certificates on record, by issuer and serial; those of CAs are in
    /// [`ca_status`](Self::ca_status).
    ///
    /// # Errors
    /// When the store fails.
    pub fn certificates(&self) -> Result<Vec<CertRecord>, Error> {
        let mut certificates = Vec::new();
        for (key, entry) in store::scan(self.store.as_ref(), key::CERT)? {
            let certificate = record::decode::<CertRecord>(&key, &entry)?.value;
            certificates.extend((!certificate.ca).then_some(certificate));
        }
        Ok(certificates)
    }

    /// A certificate issued by the embedded CA.
    ///
    /// # Errors
    /// When the store fails.
    pub fn certificate(&self, serial: &Serial) -> Result<Option<CertRecord>, Error> {
        for issuer in self.ca().issuer_ids() {
            let stored = record::read(self.store.as_ref(), &key::cert(issuer, serial))?;
            if let Some(stored) = stored {
                return Ok(Some(stored.value));
            }
        }
        Ok(None)
    }
}
