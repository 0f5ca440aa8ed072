//! The keys that peers share with the gateway, from the files the configuration names.

use ike::crypto::SecretBytes;
use ike::wire::Identification;
use pki::{IkeId, KeyHolder, Lease};

use crate::config::{Config, PeerId, Ppk, Psk, read_key};

/// See the module.
#[derive(Debug, Default)]
pub struct PeerKeys {
    psks: Vec<PeerKey>,
    ppks: Vec<(Ppk, SecretBytes)>,
}

/// One peer's key.
#[derive(Debug)]
pub struct PeerKey {
    /// Whose it is.
    pub psk: Psk,
    /// The key.
    pub key: SecretBytes,
}

impl PeerKeys {
    /// Reads every key.
    ///
    /// # Errors
    /// One sentence for each file that cannot be used.
    pub fn load(config: &Config) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut keys = Self::default();
        for psk in &config.psks {
            match read_key(&psk.file) {
                Ok(key) => keys.psks.push(PeerKey { psk: psk.clone(), key }),
                Err(error) => errors.push(format!("[[psk]] {}: {error}", psk.id)),
            }
        }
        for ppk in &config.ppks {
            match read_key(&ppk.file) {
                Ok(key) => keys.ppks.push((ppk.clone(), key)),
                Err(error) => errors.push(format!("[[ppk]] {}: {error}", ppk.id)),
            }
        }
        if errors.is_empty() { Ok(keys) } else { Err(errors) }
    }

    /// Whether no client authenticates with a shared key.
    pub fn is_empty(&self) -> bool {
        self.psks.is_empty()
    }

    /// The key of a peer.
    pub fn psk(&self, id: &Identification) -> Option<&PeerKey> {
        let id = PeerId::of(id)?;
        self.psks.iter().find(|key| key.psk.id.is(&id))
    }

    /// The post-quantum preshared key of this name, when the peer may have it.
    pub fn ppk(&self, id: &[u8], peer: &Identification) -> Option<&SecretBytes> {
        let peer = PeerId::of(peer);
        let found =
            self.ppks.iter().find(|(ppk, _)| ppk.id.as_bytes() == id && is_of(ppk, peer.as_ref()));
        found.map(|(_, key)| key)
    }

    /// The post-quantum preshared key that this peer must use.
    pub fn required_ppk(&self, peer: &Identification) -> Option<&Ppk> {
        let peer = PeerId::of(peer);
        let mut ppks = self.ppks.iter().map(|(ppk, _)| ppk);
        ppks.find(|ppk| ppk.required && is_of(ppk, peer.as_ref()))
    }

    /// The key that a lease was opened with, by the identity it is named after.
    pub fn psk_of(&self, lease: &Lease) -> Option<&PeerKey> {
        self.psks.iter().find(|key| key.psk.id.to_string() == lease.subject)
    }
}

impl PeerKey {
    /// The peer in the PKI's words.
    pub fn holder<T>(&self, with: impl FnOnce(&KeyHolder<'_>) -> T) -> T {
        let (kind, data) = self.psk.id.key();
        let name = self.psk.id.to_string();
        with(&KeyHolder {
            id: IkeId { kind, data: &data },
            name: &name,
            role: &self.psk.role,
            key: self.key.expose(),
            door: KeyHolder::DOOR,
        })
    }
}

/// Whether a peer may have this key.
fn is_of(ppk: &Ppk, peer: Option<&PeerId>) -> bool {
    ppk.client.as_ref().is_none_or(|client| peer.is_some_and(|peer| client.is(peer)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ci.key");
        fs::write(&path, "correct horse battery staple\n").unwrap();
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let text = format!("[[psk]]\nid = \"ci\"\nfile = \"{}\"\n", path.display());
        let config = Config::parse(&text, "f").unwrap();

        for mode in [0o644, 0o640, 0o602] {
            set(mode);
            let errors = PeerKeys::load(&config).unwrap_err();
            assert!(errors[0].starts_with("[[psk]] ci: "), "{errors:?}");
            assert!(errors[0].contains("chmod 600"), "{errors:?}");
        }
        set(0o600);
        let keys = PeerKeys::load(&config).unwrap();

        let found = keys.psk(&Identification::fqdn("CI")).unwrap();
        assert_eq!(found.key.expose(), b"correct horse battery staple");
        assert!(keys.psk(&Identification::fqdn("ci-2")).is_none());
        assert!(!format!("{keys:?}").contains("battery"));
        fs::remove_file(&path).unwrap();
        assert!(PeerKeys::load(&config).unwrap_err()[0].contains("openssl rand"));
    }
}
