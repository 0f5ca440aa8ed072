//! Sealing of secrets at rest: AES-256-GCM under a key that lives outside the store.
//!
//! A sealed value names its purpose in the authenticated data, so that one secret cannot be put
//! in another's place. Layout: version octet, 12-octet random nonce, ciphertext with tag.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use zeroize::Zeroizing;

use crate::audit::checkpoint::CheckpointKey;
use crate::entropy::Entropy;
use crate::error::Error;
use crate::failpoint;
use crate::signer::{
    FileSigner, KeyKind, SharedSigner, TokenKey, TokenSigner, TokenUri, Wanted, take_or_make,
};
use crate::store::LogSeal;

/// The name of the sealing key's file in the state directory.
pub(crate) const KEY_FILE: &str = "seal.key";
const VERSION: u8 = 1;
/// Octets of an AES-256 key.
pub(crate) const KEY_LEN: usize = 32;

/// A sealing key.
pub(crate) type SealKey = Zeroizing<[u8; KEY_LEN]>;

/// Seals and opens secrets.
pub(crate) struct Sealer {
    aead: LessSafeKey,
    /// Of the same key, for another purpose.
    mac: hmac::Key,
    /// What the ends of the store's logs are sealed with.
    logs: LogSeal,
    /// What secrets are made of that need no keeping.
    secrets: hmac::Key,
    /// What signs the checkpoints of the audit trail.
    checkpoints: CheckpointKey,
    /// Where the CA's keys are made and reached, when not here.
    token: Option<TokenUri>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({KEY_LEN} bytes)")
    }
}

impl Sealer {
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Result<Self, Error> {
        let aead = UnboundKey::new(&AES_256_GCM, key)
            .map_err(|_| Error::Crypto("the sealing key is not usable"))?;
        let root = hmac::Key::new(hmac::HMAC_SHA256, key);
        let of =
            |purpose: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, purpose).as_ref());
        Ok(Self {
            aead: LessSafeKey::new(aead),
            mac: of(b"runnel tags"),
            logs: LogSeal::derive(key),
            checkpoints: CheckpointKey::derive(key)?,
            secrets: of(b"runnel secrets"),
            token: None,
        })
    }

    /// Makes the CA's keys in a token, and reaches there what was made before.
    pub(crate) fn with_token(mut self, token: Option<TokenUri>) -> Self {
        self.token = token;
        self
    }

    /// 128 bits that only the holder of the sealing key can make of a purpose and a text.
    pub(crate) fn tag(&self, purpose: &str, text: &[u8]) -> [u8; 16] {
        let tag = hmac::sign(&self.mac, &[purpose.as_bytes(), &[0], text].concat());
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        short
    }

    /// 256 bits that only the holder of the sealing key can make of a name: always the same, so that
    /// nothing need be kept.
    pub(crate) fn secret(&self, name: &str) -> SealKey {
        let made = hmac::sign(&self.secrets, name.as_bytes());
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        for (to, from) in secret.iter_mut().zip(made.as_ref()) {
            *to = *from;
        }
        secret
    }

    /// What the ends of the store's logs are sealed with.
    pub(crate) fn log_seal(&self) -> LogSeal {
        self.logs.clone()
    }

    /// What signs the checkpoints of the audit trail.
    pub(crate) fn checkpoints(&self) -> &CheckpointKey {
        &self.checkpoints
    }

    pub(crate) fn seal(
        &self,
        purpose: &str,
        secret: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<u8>, Error> {
        let mut nonce = [0u8; NONCE_LEN];
        entropy.fill(&mut nonce)?;
        let mut body = secret.to_vec();
        self.aead
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose),
                &mut body,
            )
            .map_err(|_| Error::Crypto("sealing a secret failed"))?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    pub(crate) fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let damaged = || {
            Error::Seal(format!(
                "the sealing key does not open {purpose}: give the key it was sealed with \
                 (--seal-key) or restore seal.key"
            ))
        };
        let (version, rest) = sealed.split_first().ok_or_else(damaged)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        if *version != VERSION {
            return Err(damaged());
        }
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .aead
            .open_in_place(nonce, Aad::from(purpose), &mut body)
            .map_err(|_| damaged())?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

/// Keys of CAs: sealed here, or in a token, of which a sealed reference is kept.
impl Sealer {
    /// A key for a CA: the signer, and what is kept of it.
    pub(crate) fn make_key(
        &self,
        kind: KeyKind,
        purpose: &str,
        taken: &[Vec<u8>],
        entropy: &mut dyn Entropy,
    ) -> Result<(SharedSigner, Vec<u8>), Error> {
        let Some(uri) = &self.token else {
            let signer = FileSigner::generate(kind)?;
            let sealed = self.seal(purpose, signer.pkcs8(), entropy)?;
            return Ok((Arc::new(signer), sealed));
        };
        let mut fresh_id = vec![0; 16];
        entropy.fill(&mut fresh_id)?;
        let root = purpose == crate::ca::ROOT_KEY;
        let wanted = Wanted {
            label: if root { format!("{}-root", uri.object) } else { uri.object.clone() },
            id: uri.id.clone().filter(|_| !root),
            kind,
            taken: taken.to_vec(),
            fresh_id,
        };
        let key = take_or_make(uri, wanted)?;
        let sealed = self.seal(purpose, &key.encode(), entropy)?;
        Ok((Arc::new(TokenSigner::new(key, self.token.clone())), sealed))
    }

    /// The signer of what [`make_key`](Self::make_key) gave to keep.
    pub(crate) fn open_key(&self, purpose: &str, sealed: &[u8]) -> Result<SharedSigner, Error> {
        let secret = self.open(purpose, sealed)?;
        Ok(match TokenKey::decode(&secret) {
            Some(key) => Arc::new(TokenSigner::new(key, self.token.clone())),
            None => Arc::new(FileSigner::from_pkcs8(secret)?),
        })
    }
}

/// Reads a sealing key given by the operator: 32 raw bytes or 64 hexadecimal digits.
pub(crate) fn read_key(path: &Path) -> Result<SealKey, Error> {
    let bytes = std::fs::read(path).map(Zeroizing::new).map_err(|cause| {
        Error::file("read the sealing key", path, &cause, "check the path and its permissions")
    })?;
    parse_key(&bytes).ok_or_else(|| {
        Error::Seal(format!(
            "the sealing key {} has {} bytes: it must be 32 bytes, or 64 hexadecimal digits \
             (openssl rand -hex 32)",
            path.display(),
            bytes.len()
        ))
    })
}

fn parse_key(bytes: &[u8]) -> Option<SealKey> {
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    if let Ok(raw) = <[u8; KEY_LEN]>::try_from(bytes) {
        *key = raw;
        return Some(key);
    }
    let text = bytes.trim_ascii();
    if text.len() != 2 * KEY_LEN {
        return None;
    }
    for (octet, pair) in key.iter_mut().zip(text.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(key)
}

/// Creates `seal.key` (0600) so that it is there whole or not at all, even after a crash.
pub(crate) fn create_key(state_dir: &Path, entropy: &mut dyn Entropy) -> Result<SealKey, Error> {
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    entropy.fill(key.as_mut())?;
    let text = Zeroizing::new(format!("{}\n", crate::issue::hex(key.as_ref())));
    let path = state_dir.join(KEY_FILE);
    let temporary = state_dir.join("seal.key.new");
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        failpoint::hit("seal.before_rename");
        std::fs::rename(&temporary, &path)?;
        sync_directory(state_dir)?;
        failpoint::hit("seal.after_rename");
        Ok(())
    };
    write().map_err(|cause| {
        Error::file("create the sealing key", &path, &cause, "check space and permissions")
    })?;
    Ok(key)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::Counting;

    fn sealer(fill: u8) -> Sealer {
        Sealer::new(&[fill; KEY_LEN]).unwrap()
    }

    #[test]
    fn opens_only_what_it_sealed_for_that_purpose() {
        let sealed = sealer(1).seal("ca/root", b"secret", &mut Counting(0)).unwrap();
        assert_eq!(sealer(1).open("ca/root", &sealed).unwrap().as_slice(), b"secret");
        assert!(matches!(sealer(1).open("ca/issuing", &sealed), Err(Error::Seal(_))));
        assert!(matches!(sealer(2).open("ca/root", &sealed), Err(Error::Seal(_))));
        for position in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[position] ^= 1;
            assert!(sealer(1).open("ca/root", &altered).is_err(), "octet {position}");
            assert!(sealer(1).open("ca/root", &sealed[..position]).is_err());
        }
    }

    #[test]
    fn secrets_are_of_the_key_and_of_their_name() {
        let secret = sealer(1).secret("crash tokens");
        assert_eq!(secret, sealer(1).secret("crash tokens"), "again after a restart");
        assert_ne!(secret, sealer(1).secret("another"));
        assert_ne!(secret, sealer(2).secret("crash tokens"));
    }

    #[test]
    fn reads_raw_and_hexadecimal_keys() {
        assert_eq!(*parse_key(&[7; 32]).unwrap(), [7; 32]);
        assert_eq!(*parse_key(format!("{}\n", "0a".repeat(32)).as_bytes()).unwrap(), [10; 32]);
        for bad in [&b""[..], &[7; 31], &[7; 33], "+a".repeat(32).as_bytes()] {
            assert!(parse_key(bad).is_none());
        }
    }

    #[cfg(unix)]
    #[test]
    fn creates_a_private_file() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let key = create_key(directory.path(), &mut Counting(0)).unwrap();
        let path = directory.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_key(&path).unwrap(), key);
        assert!(!directory.path().join("seal.key.new").exists());
    }
}
