//! A public certificate from files, of the webhooks or of enrolment. Whoever renews it writes new
//! files; nobody has to tell us.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::http::CertificateSlot;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// Which version of a file it is: when it was written, how long it is, and which inode has it.
type Version = Option<(i64, i64, u64, u64)>;

/// A certificate in use, and the files it came from.
#[derive(Debug)]
pub struct PublicCertificate {
    /// The section of the configuration that names the files.
    section: &'static str,
    chain: PathBuf,
    key: PathBuf,
    slot: Arc<CertificateSlot>,
    versions: (Version, Version),
    trouble: Option<String>,
}

impl PublicCertificate {
    /// Reads the files that a section of the configuration names.
    ///
    /// # Errors
    /// As [`load`].
    pub fn open(section: &'static str, chain: &Path, key: &Path) -> Result<Self, String> {
        // Their versions first: what is written meanwhile is read again.
        let versions = (version(chain), version(key));
        let slot = Arc::new(CertificateSlot::new(load(chain, key)?));
        let (chain, key) = (chain.to_owned(), key.to_owned());
        Ok(Self { section, chain, key, slot, versions, trouble: None })
    }

    /// What TLS takes the certificate from.
    pub fn slot(&self) -> Arc<CertificateSlot> {
        Arc::clone(&self.slot)
    }

    /// Looks at the files; true when a new certificate is in use. While the two do not belong
    /// together, as between the writing of one and the other, the old one stays.
    pub fn refresh(&mut self) -> bool {
        let versions = (version(&self.chain), version(&self.key));
        if versions == self.versions {
            return false;
        }
        match load(&self.chain, &self.key) {
            Ok(next) => {
                self.slot.replace(next);
                (self.versions, self.trouble) = (versions, None);
                true
            }
            Err(why) => {
                if self.trouble.as_ref() != Some(&why) {
                    tracing::error!(
                        section = self.section, %why,
                        "the new certificate is not used; the old one stays"
                    );
                    self.trouble = Some(why);
                }
                false
            }
        }
    }

    /// Looks at the files until `stop` becomes true.
    pub async fn watch(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let looked = tokio::task::spawn_blocking(move || {
                let fresh = self.refresh();
                (self, fresh)
            });
            let Ok((itself, fresh)) = looked.await else { return };
            self = itself;
            if fresh {
                tracing::info!(
                    section = self.section, file = %self.chain.display(),
                    "the public certificate was renewed"
                );
            }
        }
    }
}

/// Reads a chain and its key, PEM.
///
/// # Errors
/// One sentence that names the file.
pub fn load(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, String> {
    let of = |path: &Path, what: &str, why: String| {
        format!("{} is no {what}: {why}; write it as PEM", path.display())
    };
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| {
            format!("cannot read {}: {}", path.display(), crate::sys::reason(&error))
        })
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(chain)?)
        .collect::<Result<_, _>>()
        .map_err(|error| of(chain, "certificate chain", format!("{error:?}")))?;
    if certificates.is_empty() {
        return Err(of(chain, "certificate chain", "it holds no certificate".to_owned()));
    }
    let secret = zeroize::Zeroizing::new(read(key)?);
    let private = PrivateKeyDer::from_pem_slice(&secret)
        .map_err(|error| of(key, "private key", format!("{error:?}")))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(certificates, private, &provider).map(Arc::new).map_err(|error| {
        format!(
            "{} is not the key of the certificate in {} ({error}); write both anew",
            key.display(),
            chain.display()
        )
    })
}

fn version(path: &Path) -> Version {
    let about = std::fs::metadata(path).ok()?;
    Some((about.mtime(), about.mtime_nsec(), about.len(), about.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_certificate_is_used_when_its_files_belong_together() {
        let directory = tempfile::tempdir().unwrap();
        let (chain, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        let make = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["hooks.example.com".to_owned()]);
            let certificate = params.unwrap().self_signed(&key).unwrap();
            (certificate.pem(), key.serialize_pem(), certificate.der().clone())
        };
        // As those who renew do it: a new file in the place of the old one.
        let put = |path: &Path, text: &str| {
            let next = path.with_extension("new");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, path).unwrap();
        };
        let (first, second) = (make(), make());
        put(&chain, &first.0);
        assert!(PublicCertificate::open("[hooks]", &chain, &key).unwrap_err().contains("key.pem"));
        put(&key, &second.1);
        let error = PublicCertificate::open("[hooks]", &chain, &key).unwrap_err();
        assert!(error.contains("is not the key of the certificate"), "{error}");
        put(&key, &first.1);
        let mut public = PublicCertificate::open("[hooks]", &chain, &key).unwrap();
        let shown = |public: &PublicCertificate| public.slot().current().cert[0].clone();
        assert_eq!(shown(&public), first.2);
        assert!(!public.refresh(), "nothing changed");
        put(&chain, &second.0);
        assert!(!public.refresh(), "only one of the files is new");
        assert_eq!(shown(&public), first.2);
        put(&key, &second.1);
        assert!(public.refresh());
        assert_eq!(shown(&public), second.2);
        put(&chain, "no certificate");
        assert!(!public.refresh());
        assert_eq!(shown(&public), second.2, "the old one stays");
    }
}
