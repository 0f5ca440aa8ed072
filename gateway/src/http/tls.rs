//! TLS of the enrolment listener: 1.2 and 1.3, client certificates asked for and not required.

use std::sync::{Arc, PoisonError, RwLock};

use pki::validate::PeerError;
use pki::{Authority, UnixTime, ecdsa};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime as TlsTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::TlsAcceptor;

/// The certificate in use; replaced while connections live.
#[derive(Debug)]
pub struct CertificateSlot {
    current: RwLock<Arc<CertifiedKey>>,
}

impl CertificateSlot {
    /// A slot with its first certificate.
    pub fn new(first: Arc<CertifiedKey>) -> Self {
        Self { current: RwLock::new(first) }
    }

    /// The one in use.
    pub fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Uses another certificate from the next handshake on.
    pub fn replace(&self, next: Arc<CertifiedKey>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

impl ResolvesServerCert for CertificateSlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// Our own certificate, and a public one for those who ask for one of its names (RFC 6066 3):
/// clients that have our root know us by our name, and others do not have our root.
#[derive(Debug)]
struct ByName {
    own: Arc<CertificateSlot>,
    public: Arc<CertificateSlot>,
}

impl ByName {
    /// Whether the public certificate has this name.
    fn is_public(certificate: &CertifiedKey, name: &str) -> bool {
        let parsed = certificate.end_entity_cert().and_then(ParsedCertificate::try_from);
        let name = ServerName::try_from(name);
        match (parsed, name) {
            (Ok(parsed), Ok(name)) => verify_server_name(&parsed, &name).is_ok(),
            _ => false,
        }
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let public = self.public.current();
        let asked = hello.server_name().is_some_and(|name| Self::is_public(&public, name));
        Some(if asked { public } else { self.own.current() })
    }
}

/// Makes the acceptor of the enrolment listener; `public` is a certificate of another CA beside
/// our own.
///
/// # Errors
/// When the provider lacks a protocol version, which would be a build mistake.
pub fn acceptor(
    authority: Arc<Authority>,
    own: Arc<CertificateSlot>,
    public: Option<Arc<CertificateSlot>>,
) -> Result<TlsAcceptor, Error> {
    let certificate: Arc<dyn ResolvesServerCert> = match public {
        Some(public) => Arc::new(ByName { own, public }),
        None => own,
    };
    Ok(TlsAcceptor::from(server(authority, certificate, Purpose::Enrolment)?))
}

/// The TLS side of EAP-TLS, where a certificate is required and looked at when the handshake is
/// complete: only then the identity it must prove is at hand.
///
/// # Errors
/// As [`acceptor`].
pub fn eap_config(
    authority: Arc<Authority>,
    certificate: Arc<CertificateSlot>,
) -> Result<Arc<ServerConfig>, Error> {
    server(authority, certificate, Purpose::Eap)
}

/// TLS that asks nobody for a certificate, for senders that prove themselves otherwise.
///
/// # Errors
/// As [`acceptor`].
pub fn public_acceptor(certificate: Arc<CertificateSlot>) -> Result<TlsAcceptor, Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What a listener asks certificates for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Enrolment,
    Eap,
}

fn server(
    authority: Arc<Authority>,
    certificate: Arc<dyn ResolvesServerCert>,
    purpose: Purpose,
) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = PeerVerifier::new(authority, Arc::clone(&provider), purpose);
    // strongSwan's own TLS stops at 1.2 (5.9.8 and 6.0.6).
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificate);
    // No resumption: a resumed session would carry a certificate that may be revoked by now.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What the provider lacks: keys on P-521, and SHA-512 with the smaller curves, since TLS 1.2 does
/// not bind a hash to a curve.
static MORE_ECDSA: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        ecdsa::P521_SHA512,
        ecdsa::P521_SHA384,
        ecdsa::P521_SHA256,
        ecdsa::P384_SHA512,
        ecdsa::P256_SHA512,
    ],
    mapping: &[
        (
            SignatureScheme::ECDSA_NISTP521_SHA512,
            &[ecdsa::P521_SHA512, ecdsa::P384_SHA512, ecdsa::P256_SHA512],
        ),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[ecdsa::P521_SHA384]),
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[ecdsa::P521_SHA256]),
    ],
};

/// Accepts certificates of our own CA and lets clients without one in as well; what a certificate
/// is good for, the enrolment rules decide.
#[derive(Debug)]
struct PeerVerifier {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
    purpose: Purpose,
}

impl PeerVerifier {
    fn new(authority: Arc<Authority>, provider: Arc<CryptoProvider>, purpose: Purpose) -> Self {
        Self { authority, provider, purpose }
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.purpose == Purpose::Eap
    }

    /// None: CAs change while this listens, and whoever has a certificate shows it (RFC 8446 4.2.4).
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: TlsTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.purpose == Purpose::Eap {
            return Ok(ClientCertVerified::assertion());
        }
        let chain: Vec<Vec<u8>> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|certificate| certificate.to_vec())
            .collect();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        match self.authority.verify_peer(&chain, None, UnixTime::from_secs(seconds)) {
            // An expired certificate may still renew within its lease's grace: the enrolment
            // rules decide, and say why not.
            Ok(_) | Err(PeerError::Expired { .. }) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                tracing::debug!(%error, "client certificate refused");
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
            .or_else(|_| verify_tls12_signature(message, certificate, signature, &MORE_ECDSA))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // RFC 8446 4.2.3: each scheme has its curve.
        let algorithms = match signature.scheme {
            SignatureScheme::ECDSA_NISTP521_SHA512 => &MORE_ECDSA,
            _ => &self.provider.signature_verification_algorithms,
        };
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.provider.signature_verification_algorithms.supported_schemes();
        schemes.push(SignatureScheme::ECDSA_NISTP521_SHA512);
        schemes
    }
}
