//! The keys that peers share with the gateway, from the files the configuration names.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use ike::crypto::SecretBytes;
use ike::wire::Identification;
use pki::{IkeId, KeyHolder, Lease};
use zeroize::Zeroizing;

use crate::config::{Config, Ppk, Psk, hex};
use crate::sys;

/// Octets of a key at least: what is shorter can be guessed from one recorded handshake
/// (RFC 7296 2.15).
const SHORTEST: usize = 16;

/// Octets of a key file at most.
const LONGEST: usize = 4096;

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
            match read(&psk.file) {
                Ok(key) => keys.psks.push(PeerKey { psk: psk.clone(), key }),
                Err(error) => errors.push(format!("[[psk]] {}: {error}", psk.id)),
            }
        }
        for ppk in &config.ppks {
            match read(&ppk.file) {
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
        self.psks.iter().find(|key| key.psk.id.is(id))
    }

    /// The post-quantum preshared key of this name, when the peer may have it.
    pub fn ppk(&self, id: &[u8], peer: &Identification) -> Option<&SecretBytes> {
        let found = self.ppks.iter().find(|(ppk, _)| {
            ppk.id.as_bytes() == id && ppk.client.as_ref().is_none_or(|client| client.is(peer))
        });
        found.map(|(_, key)| key)
    }

    /// The post-quantum preshared key that this peer must use.
    pub fn required_ppk(&self, peer: &Identification) -> Option<&Ppk> {
        let mut ppks = self.ppks.iter().map(|(ppk, _)| ppk);
        ppks.find(|ppk| ppk.required && ppk.client.as_ref().is_none_or(|client| client.is(peer)))
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

/// Reads a key file: text as it is, without the line's end, or `0x` and hexadecimal digits.
fn read(path: &Path) -> Result<SecretBytes, String> {
    let shown = path.display();
    let failed = |error: &std::io::Error| {
        let reason = sys::reason(error);
        format!("cannot read {shown}: {reason}; create it with `openssl rand -hex 32 > {shown}`")
    };
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let about = file.metadata().map_err(|error| failed(&error))?;
    let mode = about.permissions().mode() & 0o777;
    if !about.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} can be read or changed by others (mode {mode:04o}); run `chmod 600 {shown}`"
        ));
    }
    if about.size() > LONGEST as u64 {
        return Err(format!("{shown} has {} bytes; a key has at most {LONGEST}", about.size()));
    }
    // Room for the whole file at once: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    file.by_ref().take(LONGEST as u64).read_to_end(&mut text).map_err(|error| failed(&error))?;
    parse(&text).map_err(|why| format!("{shown} {why}"))
}

fn parse(text: &[u8]) -> Result<SecretBytes, String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let key = match text.strip_prefix(b"0x") {
        Some(digits) => hex(digits)
            .map(SecretBytes::new)
            .ok_or("begins with 0x, and what follows are not pairs of hexadecimal digits")?,
        None => SecretBytes::copy_from(text),
    };
    if key.len() < SHORTEST {
        return Err(format!(
            "holds a key of {} octets; use at least {SHORTEST} random ones (`openssl rand -hex 32`)",
            key.len()
        ));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;

    #[test]
    fn keys_are_text_or_hexadecimal_digits() {
        assert_eq!(parse(b"correct horse battery\n").unwrap().expose(), b"correct horse battery");
        assert_eq!(parse(b" sixteen octets \r\n").unwrap().expose(), b" sixteen octets ");
        let hex = parse(format!("0x{}\n", "00ff".repeat(8)).as_bytes()).unwrap();
        assert_eq!(hex.expose(), [0, 0xff].repeat(8));
        for (text, part) in [
            (&b"short\n"[..], "key of 5 octets"),
            (b"", "key of 0 octets"),
            (b"0x00ff00ff00ff00ff00ff00ff00ff00f", "pairs"),
            (b"0xhh", "pairs"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

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
