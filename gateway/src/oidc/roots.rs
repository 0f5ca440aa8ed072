//! Whom we trust when we fetch an issuer's keys: the CA of its section, or the system's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Where distributions keep the CAs they trust: Debian and Alpine, Fedora and Red Hat, SUSE.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// What TLS to an issuer is configured with.
///
/// # Errors
/// Why nobody can be trusted, as a part of a sentence.
pub(super) fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let path = match ca {
        Some(path) => path.to_owned(),
        None => std::env::var_os("SSL_CERT_FILE")
            .map(PathBuf::from)
            .into_iter()
            .chain(BUNDLES.map(PathBuf::from))
            .find(|path| path.exists())
            .ok_or_else(|| {
                "this system has no bundle of CAs: install ca-certificates, or name one with `ca`"
                    .to_owned()
            })?,
    };
    let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| format!("{}: {error:?}", path.display()))?;
        // A bundle may hold one that cannot be an anchor; the others serve.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(format!("{} holds no CA certificate", path.display()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
