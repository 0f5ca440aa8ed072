//! A public certificate from files, of the webhooks or of enrolment. Whoever renews it writes new
//! files; nobody has to tell us.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::http::CertificateSlot;
use crate::sys::clock;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// Certificates are renewed before this part of their life begins: 15 days of 90, one of 6.
const LAST_PART: i64 = 6;

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
    /// Why what is in the files now is not used.
    trouble: Arc<Mutex<Option<String>>>,
}

/// How a public certificate is, for whoever looks at the gateway.
#[derive(Debug, Clone)]
pub struct CertificateHealth {
    section: &'static str,
    chain: PathBuf,
    slot: Arc<CertificateSlot>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl CertificateHealth {
    /// The section of the configuration that names its files.
    pub const fn section(&self) -> &'static str {
        self.section
    }

    /// What is to be said of it at this instant, seconds since 1970: `Err` when somebody must act.
    /// Whoever renews certificates does so before the last sixth of their life.
    pub fn look(&self, now: i64) -> Result<String, String> {
        let file = self.chain.display();
        let used = self.slot.current();
        let life = used.cert.first().and_then(|leaf| validity(leaf));
        let (from, until) = life.unwrap_or_default();
        let end = clock::rfc3339(until);
        let last = until.saturating_sub(until.saturating_sub(from) / LAST_PART);
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match trouble {
            Some(why) => Err(format!("a new one is not used ({why}); the old one ends at {end}")),
            None if now >= until => Err(format!("{file} ended at {end}: renew it")),
            None if now >= last => {
                Err(format!("{file} ends at {end} and was not renewed: see who renews it"))
            }
            None => Ok(format!("{file} is good until {end}")),
        }
    }
}

/// The first and the last second of a certificate.
fn validity(der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
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
        Ok(Self { section, chain, key, slot, versions, trouble: Arc::default() })
    }

    /// What TLS takes the certificate from.
    pub fn slot(&self) -> Arc<CertificateSlot> {
        Arc::clone(&self.slot)
    }

    /// How it is, also after it moved to where it is watched.
    pub fn health(&self) -> CertificateHealth {
        let (chain, slot) = (self.chain.clone(), Arc::clone(&self.slot));
        CertificateHealth { section: self.section, chain, slot, trouble: Arc::clone(&self.trouble) }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the files; true when a new certificate is in use. While the two do not belong
    /// together, as between the writing of one and the other, the old one stays.
    pub fn refresh(&mut self) -> bool {
        let versions = (version(&self.chain), version(&self.key));
        if versions == self.versions {
            // Also after files that were wrong have given way to the former ones.
            *self.trouble() = None;
            return false;
        }
        match load(&self.chain, &self.key) {
            Ok(next) => {
                self.slot.replace(next);
                self.versions = versions;
                *self.trouble() = None;
                true
            }
            Err(why) => {
                let mut trouble = self.trouble();
                if trouble.as_ref() != Some(&why) {
                    tracing::error!(
                        section = self.section, %why,
                        "the new certificate is not used; the old one stays"
                    );
                    *trouble = Some(why);
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
    fn a_certificate_that_nobody_renews_is_told_before_its_end() {
        const DAY: i64 = 86_400;
        let directory = tempfile::tempdir().unwrap();
        let (chain, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        let own = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(vec!["hooks.example.com".to_owned()]).unwrap();
        let begin = rcgen::date_time_ymd(2026, 1, 1);
        (params.not_before, params.not_after) = (begin, rcgen::date_time_ymd(2026, 4, 1));
        std::fs::write(&chain, params.self_signed(&own).unwrap().pem()).unwrap();
        std::fs::write(&key, own.serialize_pem()).unwrap();
        let health = PublicCertificate::open("[hooks]", &chain, &key).unwrap().health();
        let at = |day: i64| health.look(begin.unix_timestamp() + day * DAY);
        assert_eq!(health.section(), "[hooks]");
        assert!(at(74).unwrap().contains("good until 2026-04-01"));
        assert!(at(75).unwrap_err().contains("was not renewed"));
        assert!(at(90).unwrap_err().contains("ended at 2026-04-01"));
    }

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
        let health = public.health();
        let told = health.look(clock::unix_seconds()).unwrap_err();
        assert!(told.contains("a new one is not used") && told.contains("key.pem"), "{told}");
        assert_eq!(shown(&public), first.2);
        put(&key, &second.1);
        assert!(public.refresh());
        assert_eq!(shown(&public), second.2);
        assert!(health.look(clock::unix_seconds()).is_ok(), "that was seen to");
        put(&chain, "no certificate");
        assert!(!public.refresh());
        assert_eq!(shown(&public), second.2, "the old one stays");
    }
}
