//! The gateway's own key and certificate: for IKE, for TLS, renewed while running.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ike::config::Credential;
use ike::crypto::SignatureScheme;
use ike::io::CredentialId;
use pki::signer::{KeyAlgorithm, SignatureScheme as PkiScheme, Signer};
use pki::{Authority, ServerIdentity, ServerNames, UnixTime};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::actions::{Signers, spki_sha1};
use crate::http::CertificateSlot;
use crate::sys::clock;

/// The only credential so far.
const CREDENTIAL: CredentialId = CredentialId(0);

/// See the module.
#[derive(Debug)]
pub struct GatewayIdentity {
    authority: Arc<Authority>,
    names: ServerNames,
    current: RwLock<Arc<ServerIdentity>>,
    tls: Arc<CertificateSlot>,
    /// One renewal at a time: the latest certificate is the one that stays.
    renewing: Mutex<()>,
}

impl GatewayIdentity {
    /// Loads or issues the certificate.
    ///
    /// # Errors
    /// One sentence.
    pub fn open(
        authority: Arc<Authority>,
        names: ServerNames,
        now: UnixTime,
    ) -> Result<Self, String> {
        let current = authority.server_identity(&names, now).map_err(|e| e.to_string())?;
        let tls = Arc::new(CertificateSlot::new(certified(&current)?));
        Ok(Self {
            authority,
            names,
            current: RwLock::new(Arc::new(current)),
            tls,
            renewing: Mutex::default(),
        })
    }

    /// Issues the next certificate when it is time; true when there is a new one.
    ///
    /// # Errors
    /// One sentence; the current one stays in use.
    pub fn renew(&self, now: UnixTime) -> Result<bool, String> {
        let _turn = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.authority.server_identity(&self.names, now).map_err(|e| e.to_string())?;
        if next.chain == self.current().chain {
            return Ok(false);
        }
        self.tls.replace(certified(&next)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(true)
    }

    /// The certificate slot of the TLS listener.
    pub fn tls(&self) -> Arc<CertificateSlot> {
        Arc::clone(&self.tls)
    }

    /// What the engine needs to know of the key.
    pub fn credential(&self) -> Credential {
        let current = self.current();
        let schemes = match current.signer.algorithm() {
            KeyAlgorithm::EcdsaP256 => vec![SignatureScheme::EcdsaSha256],
            KeyAlgorithm::EcdsaP384 => vec![SignatureScheme::EcdsaSha384],
            KeyAlgorithm::Ed25519 => vec![SignatureScheme::Ed25519],
            KeyAlgorithm::Rsa => vec![
                SignatureScheme::RsaPssSha256,
                SignatureScheme::RsaPssSha384,
                SignatureScheme::RsaPssSha512,
                SignatureScheme::RsaPkcs1Sha256,
                SignatureScheme::RsaPkcs1Sha384,
                SignatureScheme::RsaPkcs1Sha512,
            ],
        };
        let authorities = self.trust_anchor_hashes();
        let chain = current.chain.clone();
        Credential { id: CREDENTIAL, ocsp: self.staples(&chain), chain, schemes, authorities }
    }

    /// OCSP answers about our certificates, leaf first.
    fn staples(&self, chain: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let now = UnixTime::from_micros(clock::wall().0);
        let answer = |der: &Vec<u8>| match self.authority.ocsp_for(der, now) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "no OCSP answer about the gateway's certificate");
                None
            }
        };
        chain.iter().filter_map(answer).collect()
    }

    /// The authorities above our certificate and those of our peers, as CERTREQ names them:
    /// SHA-1 over the SubjectPublicKeyInfo (RFC 7296 3.7).
    pub fn trust_anchor_hashes(&self) -> Vec<[u8; 20]> {
        self.authority.ca_certificates().iter().filter_map(|der| spki_sha1(der)).collect()
    }

    fn current(&self) -> Arc<ServerIdentity> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Signers for GatewayIdentity {
    fn sign(
        &self,
        credential: CredentialId,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, String> {
        if credential != CREDENTIAL {
            return Err(format!("there is no credential {}", credential.0));
        }
        let current = self.current();
        let algorithm = current.signer.algorithm();
        let scheme = match (algorithm, scheme) {
            // The curve's usual hash is the only one these keys sign with.
            (KeyAlgorithm::EcdsaP256, SignatureScheme::EcdsaSha256)
            | (KeyAlgorithm::EcdsaP384, SignatureScheme::EcdsaSha384) => PkiScheme::EcdsaAsn1,
            (KeyAlgorithm::Ed25519, SignatureScheme::Ed25519) => PkiScheme::Ed25519,
            (KeyAlgorithm::Rsa, SignatureScheme::RsaPkcs1Sha256) => PkiScheme::RsaPkcs1Sha256,
            (KeyAlgorithm::Rsa, SignatureScheme::RsaPkcs1Sha384) => PkiScheme::RsaPkcs1Sha384,
            (KeyAlgorithm::Rsa, SignatureScheme::RsaPkcs1Sha512) => PkiScheme::RsaPkcs1Sha512,
            (KeyAlgorithm::Rsa, SignatureScheme::RsaPssSha256) => PkiScheme::RsaPssSha256,
            (KeyAlgorithm::Rsa, SignatureScheme::RsaPssSha384) => PkiScheme::RsaPssSha384,
            (KeyAlgorithm::Rsa, SignatureScheme::RsaPssSha512) => PkiScheme::RsaPssSha512,
            (algorithm, scheme) => {
                return Err(format!("the gateway's {algorithm:?} key cannot do {}", scheme.name()));
            }
        };
        current.signer.sign_with(scheme, message).map_err(|error| error.to_string())
    }
}

fn certified(identity: &ServerIdentity) -> Result<Arc<CertifiedKey>, String> {
    let chain = identity.chain.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.signer.pkcs8().to_vec()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|error| format!("the gateway's key does not serve TLS: {error}"))?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}
