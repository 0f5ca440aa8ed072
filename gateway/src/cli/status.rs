//! `runnel status`

use std::collections::BTreeMap;

use super::output::{OutputArg, pairs};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{DataplaneStatus, Status};
use crate::sys::clock::human;

const EXAMPLES: &str = "\
Examples:
  runnel status
  runnel status -o json | jq .sas_without_lease     must always be 0";

/// What runs, since when, and what needs attention
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArg,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let status: Status = context.client()?.ask(Request::Status)?;
    args.output.print(&status, text);
    Ok(())
}

/// Packets the data plane dropped, by reason and by the kernel's counters.
fn plane(plane: &DataplaneStatus) -> String {
    let offload = match plane.offload.as_str() {
        "" | "none" => String::new(),
        wanted => format!("; devices are asked for {wanted} offload"),
    };
    format!("on {}: {}{offload}", plane.interface, plane.why)
}

fn drops(plane: &DataplaneStatus) -> String {
    let list = |counts: &BTreeMap<String, u64>| {
        let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        counts.join(", ")
    };
    if plane.counters.is_empty() {
        return list(&plane.drops);
    }
    format!("{} ({})", list(&plane.drops), list(&plane.counters))
}

fn text(status: &Status) -> String {
    let leases = &status.leases;
    let waiting = match leases.waiting {
        0 => String::new(),
        waiting => format!(", {waiting} waiting for approval (see `runnel lease pending`)"),
    };
    let mut rows = vec![
        ("gateway", status.id.clone()),
        (
            "running",
            format!(
                "{} (pid {}), version {}",
                human(status.uptime_seconds),
                status.pid,
                status.version
            ),
        ),
        ("config", status.config.clone().unwrap_or_else(|| "built-in".to_owned())),
        ("state", status.state.clone()),
        ("data plane", plane(&status.dataplane)),
        (
            "leases",
            format!(
                "{} active, {} issued, {} lost{waiting}",
                leases.active, leases.issued, leases.lost
            ),
        ),
        (
            "tunnels",
            format!(
                "{} IKE SA(s), {} child SA(s), {} half-open, {} without lease",
                status.ike_sas, status.child_sas, status.half_open, status.sas_without_lease
            ),
        ),
        ("sites", format!("{} of {} connected", status.sites.connected, status.sites.configured)),
        ("refused", format!("{} (see `runnel doctor`)", status.refusals)),
        ("CA", format!("until {}, CRL number {}", status.ca_expires, status.crl_number)),
    ];
    if !status.dataplane.drops.is_empty() {
        rows.push(("dropped", drops(&status.dataplane)));
    }
    if !status.limits_met.is_empty() {
        let met: Vec<_> =
            status.limits_met.iter().map(|(limit, count)| format!("{limit} {count}")).collect();
        rows.push(("limits met", met.join(", ")));
    }
    rows.push(match &status.tunnels_end_because {
        Some(why) => ("restart", format!("ends every tunnel: {why}")),
        None => ("restart", format!("keeps tunnels; {} went on at the last", status.resumed)),
    });
    if let Some(to) = &status.draining_to {
        rows.push(("draining", format!("clients are sent to {to}; end with `runnel drain --off`")));
    }
    for pool in &status.pools {
        rows.push(("pool", format!("{} {}", pool.name, pool.addresses.join(", "))));
    }
    for issuer in &status.issuers {
        let age = issuer.keys_age_seconds.map_or("never fetched".to_owned(), |age| {
            format!("{} key(s), {} old", issuer.keys, human(age))
        });
        let skew = issuer.clock_skew_seconds.filter(|skew| skew.abs() > 5);
        let skew = skew.map(|skew| format!(", its clock {skew:+} s")).unwrap_or_default();
        rows.push((
            "issuer",
            format!(
                "{}: {age}, {} of {} fetches failed{skew}",
                issuer.name, issuer.failures, issuer.fetches
            ),
        ));
    }
    for listener in &status.listeners {
        rows.push(("listens", format!("{} {}", listener.service, listener.address)));
    }
    for warning in &status.warnings {
        rows.push(("warning", warning.clone()));
    }
    pairs(&rows)
}
