//! Counters, of a child and of the whole namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::KernelPlane;
use super::decode::SaState;
use crate::error::PlaneError;
use crate::model::{ChildId, ChildSpec, PlaneStats, Spi, Usage};

/// From so many on, one listing of all SAs is cheaper than questions about each.
const LISTED_FROM: usize = 32;

impl KernelPlane {
    pub(super) fn usages_of(
        &mut self,
        children: &[ChildId],
    ) -> Result<BTreeMap<ChildId, Usage>, PlaneError> {
        let known: Vec<ChildSpec> =
            children.iter().filter_map(|child| self.children.get(child).cloned()).collect();
        let mut usages = BTreeMap::new();
        if known.len() < LISTED_FROM {
            for spec in known {
                usages.insert(spec.id, self.usage_of(&spec)?);
            }
            return Ok(usages);
        }
        let installed = self.installed()?;
        for spec in known {
            let inbound = installed.get(&(spec.hosts.local.ip(), spec.spi_in));
            let outbound = installed.get(&(spec.hosts.remote.ip(), spec.spi_out));
            usages.insert(spec.id, usage(inbound, outbound));
        }
        Ok(usages)
    }

    /// All SAs of this plane by what names them, without larval ones.
    pub(super) fn installed(&mut self) -> Result<BTreeMap<(IpAddr, Spi), SaState>, PlaneError> {
        let sas = self.dump_sas()?.into_iter().filter(|sa| !sa.larval);
        Ok(sas.map(|sa| ((sa.destination, sa.spi), sa)).collect())
    }

    pub(super) fn usage_of(&mut self, spec: &ChildSpec) -> Result<Usage, PlaneError> {
        let inbound = self.state(spec.hosts.local.ip(), spec.spi_in)?;
        let outbound = self.state(spec.hosts.remote.ip(), spec.spi_out)?;
        Ok(usage(inbound.as_ref(), outbound.as_ref()))
    }
}

pub(super) fn usage(inbound: Option<&SaState>, outbound: Option<&SaState>) -> Usage {
    let level = |sa: Option<&SaState>| sa.and_then(|sa| sa.device).map(|device| device.level);
    let mut usage = Usage {
        // Of two halves the one with less counts.
        offload: level(inbound).min(level(outbound)).unwrap_or_default(),
        ..Usage::default()
    };
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

/// Reads `/proc/net/xfrm_stat`. Several of the kernel's counters make one of our reasons.
pub(super) fn parse_stats(text: &str) -> PlaneStats {
    let mut drops: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut counters = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) else {
            continue;
        };
        let value: u64 = value;
        let reason = match name {
            "XfrmInNoStates" | "XfrmOutNoStates" | "XfrmAcquireError" => "no_sa",
            "XfrmInStateSeqError" | "XfrmOutStateSeqError" => "replay",
            "XfrmInStateProtoError" | "XfrmOutStateProtoError" => "auth",
            "XfrmInHdrError" | "XfrmInBufferError" | "XfrmFwdHdrError" => "malformed",
            "XfrmInStateMismatch" => "ts",
            "XfrmInTmplMismatch" | "XfrmInNoPols" | "XfrmInPolBlock" | "XfrmInPolError"
            | "XfrmOutPolBlock" | "XfrmOutPolDead" | "XfrmOutPolError" => "policy",
            "XfrmInStateExpired"
            | "XfrmOutStateExpired"
            | "XfrmInStateInvalid"
            | "XfrmOutStateInvalid" => "expired",
            name if name.starts_with("Xfrm") => "other",
            _ => continue,
        };
        let count = drops.entry(reason).or_default();
        *count = count.saturating_add(value);
        if value > 0 {
            counters.push((name.to_owned(), value));
        }
    }
    PlaneStats { drops: drops.into_iter().collect(), counters }
}
