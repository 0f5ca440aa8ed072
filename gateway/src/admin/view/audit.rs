//! What is shown of the audit trail.

use serde::{Deserialize, Serialize};

/// `runnel audit verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditVerdict {
    /// Nothing was done to the trail or its copy.
    pub ok: bool,
    /// What was looked at.
    pub parts: Vec<AuditPart>,
}

/// The trail, or a copy of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditPart {
    /// `trail`, or the copy's path.
    pub name: String,
    /// Records in it.
    pub records: u64,
    /// The first record's position.
    pub first: u64,
    /// The last record's.
    pub last: u64,
    /// The last record's hash, hexadecimal.
    pub hash: String,
    /// Whether its end was compared with the seal that only the gateway can make.
    pub sealed: bool,
    /// The last signed checkpoint, when there was a key to verify it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<AuditSigned>,
    /// The trail begins behind this record: those up to it were forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten: Option<u64>,
    /// What is wrong with it.
    pub faults: Vec<AuditFault>,
}

/// A checkpoint whose signature was verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditSigned {
    /// The record that is the checkpoint.
    pub checkpoint: u64,
    /// The last record it stands for.
    pub record: u64,
    /// When it was signed, RFC 3339.
    pub time: String,
}

/// `runnel audit key`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditKey {
    /// Its short name, as checkpoints name it.
    pub id: String,
    /// Ed25519, PEM.
    pub pem: String,
}

/// Something that was done to a trail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditFault {
    /// `edited`, `rewritten`, `missing`, `misplaced`, `truncated`, `added`, `unsealed`,
    /// `unreadable`, `differs`, `forged`, `unsigned` or `stale`.
    pub kind: String,
    /// The record concerned, or the first of several.
    pub record: u64,
    /// In a copy: the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// One sentence.
    pub what: String,
}
