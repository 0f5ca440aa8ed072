//! Counters, of a child and of the whole namespace.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::KernelPlane;
use super::decode::SaState;
use crate::error::PlaneError;
use crate::model::{ChildSpec, Usage};

impl KernelPlane {
    pub(super) fn usage_of(&mut self, spec: &ChildSpec) -> Result<Usage, PlaneError> {
        let inbound = self.state(spec.hosts.local.ip(), spec.spi_in)?;
        let outbound = self.state(spec.hosts.remote.ip(), spec.spi_out)?;
        Ok(usage(inbound.as_ref(), outbound.as_ref()))
    }
}

fn usage(inbound: Option<&SaState>, outbound: Option<&SaState>) -> Usage {
    let mut usage = Usage::default();
    if let Some(sa) = inbound {
        usage.bytes_in = sa.bytes;
        usage.packets_in = sa.packets;
        usage.drops_replay = sa.drops_replay;
        usage.drops_auth = sa.drops_auth;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        usage.idle_in_micros =
            sa.last_used.map(|at| now.saturating_sub(at).saturating_mul(1_000_000));
    }
    if let Some(sa) = outbound {
        usage.bytes_out = sa.bytes;
        usage.packets_out = sa.packets;
        usage.seq_out = sa.sequence.sent;
    }
    usage
}

/// Turns `/proc/net/xfrm_stat` into drop counters by reason; several of the kernel's counters
/// make one of ours.
pub(super) fn parse_stats(text: &str) -> Vec<(&'static str, u64)> {
    let mut drops: BTreeMap<&'static str, u64> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let reason = match name {
            "XfrmInNoStates" | "XfrmOutNoStates" | "XfrmAcquireError" => "no_sa",
            "XfrmInStateSeqError" | "XfrmOutStateSeqError" => "replay",
            "XfrmInStateProtoError" | "XfrmOutStateProtoError" => "auth",
            "XfrmInHdrError" | "XfrmInBufferError" => "malformed",
            "XfrmInStateMismatch" => "ts",
            "XfrmInTmplMismatch" | "XfrmInNoPols" | "XfrmInPolBlock" | "XfrmInPolError"
            | "XfrmOutPolBlock" | "XfrmOutPolError" | "XfrmFwdHdrError" => "policy",
            "XfrmInStateExpired"
            | "XfrmOutStateExpired"
            | "XfrmInStateInvalid"
            | "XfrmOutStateInvalid" => "expired",
            "XfrmInError"
            | "XfrmOutError"
            | "XfrmOutBundleGenError"
            | "XfrmOutBundleCheckError"
            | "XfrmOutStateModeError"
            | "XfrmInStateModeError" => "other",
            _ => continue,
        };
        let count = drops.entry(reason).or_default();
        *count = count.saturating_add(value.parse().unwrap_or_default());
    }
    drops.into_iter().collect()
}
