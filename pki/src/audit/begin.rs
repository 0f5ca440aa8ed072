//! Where the trail begins once its oldest records are forgotten: a position and hash, signed.
//!
//! Whoever removes records without the key cannot write such a beginning, and one that was written
//! before stands for fewer records than were removed: either way they are missed.

use serde::{Deserialize, Serialize};

use super::checkpoint::{CheckpointKey, CheckpointVerifier};
use crate::error::Error;
use crate::issue::hex;
use crate::record::{self, key};
use crate::store::{Revision, Store};
use crate::time::UnixTime;

/// No trail comes to have so many records.
const NO_RECORD: u64 = 1 << 62;

/// The beginning of a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// The last record that was forgotten.
    pub record: u64,
    /// Its hash, hexadecimal: the first that is kept names it.
    pub hash: String,
    /// When it was forgotten.
    pub at: UnixTime,
    /// The short name of the key that signed this.
    pub key: String,
    /// Ed25519 over the above, base64.
    pub signature: String,
}

impl Beginning {
    /// What is signed. Other words than a checkpoint's: one of those must not serve as this.
    fn text(record: u64, hash: &str, at: UnixTime) -> String {
        let at = at.rfc3339_micros();
        format!("runnel audit beginning\nrecord {record}\nhash {hash}\ntime {at}\n")
    }

    /// A trail that begins behind a record.
    pub(super) fn sign(key: &CheckpointKey, record: u64, hash: &[u8; 32], at: UnixTime) -> Self {
        let hash = hex(hash);
        let signature = key.sign_text(&Self::text(record, &hash, at));
        Self { record, hash, at, key: key.verifier().id(), signature }
    }

    /// Whether the gateway with this key signed it.
    pub(super) fn is_of(&self, verifier: &CheckpointVerifier) -> bool {
        verifier.verifies(&Self::text(self.record, &self.hash, self.at), &self.signature)
    }

    /// The hash; `None` when it is none.
    pub(super) fn octets(&self) -> Option<[u8; 32]> {
        super::chain::octets(&self.hash)
    }
}

/// The beginning as it is stored, with its revision; one that cannot be read stands for no record.
pub(super) fn stored(store: &dyn Store) -> Result<Option<(Beginning, Revision)>, Error> {
    let Some(entry) = store.get(key::AUDIT_BEGINNING)? else { return Ok(None) };
    let beginning = match record::decode::<Beginning>(key::AUDIT_BEGINNING, &entry) {
        Ok(stored) if stored.value.record < NO_RECORD => stored.value,
        _ => Beginning {
            record: 0,
            hash: String::new(),
            at: UnixTime::from_secs(0),
            key: String::new(),
            signature: String::new(),
        },
    };
    Ok(Some((beginning, entry.revision)))
}
