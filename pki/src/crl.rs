//! The certificate revocation list.

use serde::{Deserialize, Serialize};

use crate::time::UnixTime;

/// A revocation list, DER, with its number and times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crl {
    /// Rises with every list.
    pub number: u64,
    /// When it was made.
    pub this_update: UnixTime,
    /// When a newer one is promised.
    pub next_update: UnixTime,
    /// How many certificates it lists.
    pub entries: usize,
    /// The list.
    #[serde(with = "crate::issue::base64_bytes")]
    pub der: Vec<u8>,
}
