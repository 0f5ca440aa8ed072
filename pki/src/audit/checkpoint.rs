//! Signed checkpoints: records of the trail that sign all that stands before them, for whoever has
//! the public key alone.
//!
//! The seal of the trail's end ([`crate::store::LogSeal`]) proves more, but only to the holder of the
//! sealing key. A checkpoint is signed (Ed25519) with a key that is derived from the sealing key and
//! used for nothing else: its public half may be anywhere. Checkpoints go where records go, into the
//! copy beside the store and to every sink, and each stands for all records up to the one it names,
//! because records are chained.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::issue::hex;
use crate::time::UnixTime;

/// The action of such a record.
pub const CHECKPOINT: &str = "audit.checkpoint";

/// A checkpoint is written this often, also when nothing happened: a copy whose last one is older
/// lacks its end, or the gateway does not run.
pub const EVERY: Duration = Duration::from_secs(3_600);

/// How far before a checkpoint the record may be that it names: what others write between looking
/// at the end and signing it.
const REACH: usize = 65_536;

/// SubjectPublicKeyInfo of an Ed25519 key up to the key (RFC 8410 4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last record it stands for.
    pub record: u64,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// The short name of the key that signed it ([`CheckpointVerifier::id`]).
    pub key: String,
    /// Ed25519 over [`Checkpoint::text`], base64.
    pub signature: String,
}

impl Checkpoint {
    /// What is signed: four lines, the time as the record has it.
    pub fn text(record: u64, hash: &str, at: UnixTime) -> String {
        let at = at.rfc3339_micros();
        format!("runnel audit checkpoint\nrecord {record}\nhash {hash}\ntime {at}\n")
    }
}

/// The key that signs checkpoints.
pub(crate) struct CheckpointKey(Ed25519KeyPair);

impl std::fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CheckpointKey")
    }
}

impl CheckpointKey {
    /// A key of its own for this purpose, from the sealing key.
    pub(crate) fn derive(sealing_key: &[u8; 32]) -> Result<Self, Error> {
        let root = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, sealing_key);
        let seed = ring::hmac::sign(&root, b"runnel: audit checkpoints");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref())
            .map_err(|_| Error::Crypto("the key of audit checkpoints is not usable"))?;
        Ok(Self(pair))
    }

    /// Signs the trail up to a record.
    pub(crate) fn sign(&self, record: u64, hash: &[u8; 32], at: UnixTime) -> Checkpoint {
        let hash = hex(hash);
        let signature = self.sign_text(&Checkpoint::text(record, &hash, at));
        Checkpoint { record, hash, key: self.verifier().id(), signature }
    }

    /// Signs a text; the signature in base64.
    pub(super) fn sign_text(&self, text: &str) -> String {
        STANDARD.encode(self.0.sign(text.as_bytes()).as_ref())
    }

    /// Its public half.
    pub(crate) fn verifier(&self) -> CheckpointVerifier {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        CheckpointVerifier(key)
    }
}

/// The public key of a gateway's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointVerifier([u8; 32]);

impl CheckpointVerifier {
    /// Reads what [`pem`](Self::pem) wrote.
    ///
    /// # Errors
    /// One sentence when it is no Ed25519 public key.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::Invalid(
                "this is no Ed25519 public key in PEM: write it with `runnel audit key`".to_owned(),
            )
        };
        let body: String = text
            .lines()
            .map(str::trim)
            .skip_while(|line| *line != "-----BEGIN PUBLIC KEY-----")
            .skip(1)
            .take_while(|line| *line != "-----END PUBLIC KEY-----")
            .collect();
        let der = STANDARD.decode(body).map_err(|_| wrong())?;
        let key = der.strip_prefix(&SPKI_PREFIX).ok_or_else(wrong)?;
        Ok(Self(key.try_into().map_err(|_| wrong())?))
    }

    /// The key as PEM, as `openssl pkeyutl` takes it.
    pub fn pem(&self) -> String {
        let der = [&SPKI_PREFIX[..], &self.0].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// Its short name: the first sixteen digits of the SHA-256 of its SubjectPublicKeyInfo.
    pub fn id(&self) -> String {
        let der = [&SPKI_PREFIX[..], &self.0].concat();
        let digest = ring::digest::digest(&ring::digest::SHA256, &der);
        hex(digest.as_ref()).chars().take(16).collect()
    }

    fn opens(&self, checkpoint: &Checkpoint, at: UnixTime) -> bool {
        let text = Checkpoint::text(checkpoint.record, &checkpoint.hash, at);
        self.verifies(&text, &checkpoint.signature)
    }

    /// Whether a text was signed, with this signature in base64.
    pub(super) fn verifies(&self, text: &str, signature: &str) -> bool {
        let signature = STANDARD.decode(signature).unwrap_or_default();
        UnparsedPublicKey::new(&ED25519, self.0).verify(text.as_bytes(), &signature).is_ok()
    }
}

/// The last checkpoint of a trail whose signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The record that is the checkpoint.
    pub checkpoint: u64,
    /// The last record it stands for.
    pub record: u64,
    /// When it was signed.
    pub at: UnixTime,
}

/// Why a checkpoint does not hold.
pub(super) enum Broken {
    /// It cannot be read, or its signature is not of this key.
    Forged(String),
    /// It is signed, and the trail before it is another one.
    Other(String),
}

/// Follows the checkpoints of a trail beside its chain.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    pub(super) verifier: Option<CheckpointVerifier>,
    /// Positions and hashes a checkpoint may name.
    recent: VecDeque<(u64, [u8; 32])>,
    /// The first record of what is looked at; a checkpoint of an earlier one says nothing about it.
    first: Option<u64>,
    pub(super) signed: Option<Signed>,
}

impl Checkpoints {
    pub(super) fn with(verifier: Option<CheckpointVerifier>) -> Self {
        Self { verifier, ..Self::default() }
    }

    /// What is looked at begins with this record; the one before it is known by its hash alone.
    pub(super) fn begin(&mut self, seq: u64, prev: [u8; 32]) {
        self.first = Some(seq);
        if seq > 1 {
            self.passed(seq - 1, prev);
        }
    }

    /// A record is part of the trail.
    pub(super) fn passed(&mut self, seq: u64, hash: [u8; 32]) {
        if self.recent.len() >= REACH {
            self.recent.pop_front();
        }
        self.recent.push_back((seq, hash));
    }

    /// Whether this looks like one; what a value says is escaped, so that nothing else does.
    pub(super) fn is_one(value: &[u8]) -> bool {
        const WANTED: &[u8] = b"\"event.action\":\"audit.checkpoint\"";
        value.windows(WANTED.len()).any(|window| window == WANTED)
    }

    /// A checkpoint in record `seq`, before that is passed.
    pub(super) fn met(&mut self, seq: u64, value: &[u8]) -> Result<(), Broken> {
        let read = super::ecs::decode(value).ok();
        let Some((checkpoint, at)) = read.and_then(|event| Some((event.checkpoint?, event.at)))
        else {
            return Err(Broken::Forged(format!("the checkpoint in record {seq} says nothing")));
        };
        if let Some(verifier) = &self.verifier
            && !verifier.opens(&checkpoint, at)
        {
            return Err(Broken::Forged(match checkpoint.key == verifier.id() {
                true => {
                    format!("the checkpoint in record {seq} was forged: its signature is wrong")
                }
                false => format!(
                    "the checkpoint in record {seq} was forged, or signed by another gateway: it \
                     names key {}, not {}",
                    checkpoint.key,
                    verifier.id()
                ),
            }));
        }
        let record = checkpoint.record;
        // A copy may begin behind what a checkpoint names; then there is nothing to compare.
        let begins_later = self.recent.front().is_none_or(|(first, _)| *first > record)
            && self.recent.len() < REACH;
        let same = self.recent.binary_search_by_key(&record, |(seq, _)| *seq).is_ok_and(|index| {
            self.recent.get(index).is_some_and(|(_, hash)| hex(hash) == checkpoint.hash)
        });
        if !same && !begins_later {
            return Err(Broken::Other(format!(
                "record {record} or one before it was rewritten: the checkpoint in record {seq} \
                 stands for another"
            )));
        }
        // Whoever makes up a trail can put a true checkpoint of another into it.
        let covers = self.first.is_some_and(|first| first <= record);
        if self.verifier.is_some() && covers {
            self.signed = Some(Signed { checkpoint: seq, record, at });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_written_and_sign_what_they_verify() {
        let key = CheckpointKey::derive(&[7; 32]).unwrap();
        let verifier = key.verifier();
        assert_eq!(CheckpointVerifier::from_pem(&verifier.pem()).unwrap(), verifier);
        let with_words = format!("# gw.example.com\n{}", verifier.pem().replace('\n', "\r\n"));
        assert_eq!(CheckpointVerifier::from_pem(&with_words).unwrap(), verifier);
        for wrong in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(CheckpointVerifier::from_pem(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format!("{key:?}"), "CheckpointKey");

        let at = UnixTime::from_secs(1_795_305_600);
        let checkpoint = key.sign(9, &[1; 32], at);
        assert!(verifier.opens(&checkpoint, at));
        assert!(!verifier.opens(&checkpoint, at.plus(Duration::from_micros(1))));
        assert!(!verifier.opens(&Checkpoint { record: 10, ..checkpoint.clone() }, at));
        let other = CheckpointKey::derive(&[8; 32]).unwrap().verifier();
        assert!(!other.opens(&checkpoint, at) && other.id() != verifier.id());
    }
}
