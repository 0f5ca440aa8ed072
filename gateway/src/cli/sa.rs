//! `runnel sa`

use clap::Subcommand;

use super::output::{OutputArg, line, pairs, table};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{Ended, Sa};

const LIST: &str = "\
Examples:
  runnel sa list
  runnel sa list -o json | jq '.[].children[].bytes_in'";
const SHOW: &str = "\
Examples:
  runnel sa show 12";
const REKEY: &str = "\
Examples:
  runnel sa rekey 12       fresh keys now; no packet is lost, and the IKE SA gets another id";
const CLOSE: &str = "\
Examples:
  runnel sa close 12       the lease stays: the runner may reconnect";

/// Tunnels: IKE SAs and their child SAs
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Established IKE SAs with their children
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Everything about one IKE SA
    #[command(after_help = SHOW)]
    Show {
        /// Its id, from `sa list`
        id: u64,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Rekey one IKE SA and its children now
    #[command(after_help = REKEY)]
    Rekey {
        /// Its id, from `sa list`
        id: u64,
    },
    /// Close one IKE SA with its children
    #[command(after_help = CLOSE)]
    Close {
        /// Its id, from `sa list`
        id: u64,
        #[command(flatten)]
        output: OutputArg,
    },
}

pub(super) fn run(context: &Context, command: &Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::List { output } => {
            let sas: Vec<Sa> = client.ask(Request::SaList)?;
            output.print(&sas, |sas| list(sas));
        }
        Command::Show { id, output } => {
            let sa: Sa = client.ask(Request::SaShow { id: *id })?;
            output.print(&sa, show);
        }
        Command::Rekey { id } => {
            let done: String = client.ask(Request::SaRekey { id: *id })?;
            line(&done);
        }
        Command::Close { id, output } => {
            let ended: Ended = client.ask(Request::SaClose { id: *id })?;
            output.print(&ended, |ended| {
                format!("closed {} IKE SA(s), {} ms", ended.sas_closed, ended.elapsed_ms)
            });
        }
    }
    Ok(())
}

fn list(sas: &[Sa]) -> String {
    let rows: Vec<_> = sas
        .iter()
        .map(|sa| {
            let (bytes_in, bytes_out) = sa
                .children
                .iter()
                .fold((0u64, 0u64), |(i, o), c| (i + c.bytes_in, o + c.bytes_out));
            vec![
                sa.id.to_string(),
                sa.lease.clone().unwrap_or_default(),
                sa.role.clone().unwrap_or_default(),
                sa.remote.clone(),
                sa.addresses.join(","),
                sa.children.len().to_string(),
                bytes_in.to_string(),
                bytes_out.to_string(),
                packets(sa),
                sa.children.iter().map(|child| child.drops).sum::<u64>().to_string(),
                sa.refused.to_string(),
                last(sa.children.iter().filter_map(|child| child.idle_seconds).min()),
                sa.established.clone(),
            ]
        })
        .collect();
    let header = [
        "ID",
        "LEASE",
        "ROLE",
        "PEER",
        "ADDRESSES",
        "CHILDREN",
        "IN",
        "OUT",
        "PACKETS",
        "DROPPED",
        "REFUSED",
        "LAST",
        "ESTABLISHED",
    ];
    table(&header, &rows)
}

/// Packets in and out.
fn packets(sa: &Sa) -> String {
    let children = sa.children.iter();
    let (packets_in, packets_out) =
        children.fold((0u64, 0u64), |(i, o), c| (i + c.packets_in, o + c.packets_out));
    format!("{packets_in}/{packets_out}")
}

/// When the last packet came from the peer.
fn last(idle_seconds: Option<u64>) -> String {
    idle_seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds} s ago"))
}

fn show(sa: &Sa) -> String {
    let mut text = pairs(&[
        ("id", sa.id.to_string()),
        ("identity", sa.identity.clone()),
        ("lease", sa.lease.clone().unwrap_or_else(|| "none".to_owned())),
        ("role", sa.role.clone().unwrap_or_else(|| "none".to_owned())),
        ("local", sa.local.clone()),
        ("peer", sa.remote.clone()),
        ("suite", sa.suite.clone()),
        ("SPIs", format!("{} {}", sa.spi_i, sa.spi_r)),
        ("addresses", sa.addresses.join(", ")),
        ("established", sa.established.clone()),
        ("ends", sa.ends.clone().unwrap_or_else(|| "never".to_owned())),
        ("our side", sa.side.clone()),
        ("NAT", sa.nat.clone()),
        ("refused", format!("{} packet(s) that the role does not allow", sa.refused)),
    ]);
    for child in &sa.children {
        let idle = last(child.idle_seconds);
        text.push_str(&format!("\nchild {}\n", child.id));
        text.push_str(&pairs(&[
            ("  SPIs", format!("in {} out {}", child.spi_in, child.spi_out)),
            ("  suite", format!("{}, {} mode", child.suite, child.mode)),
            ("  offload", child.offload.clone()),
            ("  MTU", child.mtu.map_or_else(|| "unknown".to_owned(), |mtu| mtu.to_string())),
            ("  our side", child.ts_local.clone()),
            ("  peer's side", child.ts_remote.clone()),
            ("  in", format!("{} bytes, {} packets, {idle}", child.bytes_in, child.packets_in)),
            ("  out", format!("{} bytes, {} packets", child.bytes_out, child.packets_out)),
            (
                "  dropped",
                format!(
                    "{} (replayed {}, forged {}, not of this SA {})",
                    child.drops, child.drops_replay, child.drops_auth, child.drops_selector
                ),
            ),
        ]));
    }
    if !sa.timers.is_empty() {
        text.push_str("\nwaits for\n");
        for timer in &sa.timers {
            text.push_str(&format!("  in {} s: {}\n", timer.seconds, timer.what));
        }
    }
    if !sa.history.is_empty() {
        text.push_str("\nwhat happened to its lease's tunnels\n");
        for moment in &sa.history {
            text.push_str(&format!("  {}  {}\n", moment.time, moment.what));
        }
    }
    text
}
