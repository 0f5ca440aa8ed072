//! `runnel audit`

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use super::output::{OutputArg, table};
use super::sealing::SealKeyArg;
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{AuditKey, AuditPart, AuditSigned, AuditVerdict};
use crate::service::{OffMachine, audit_key_offline, verify_audit_files, verify_audit_offline};
use crate::sys::clock::parse_duration;

const TAIL: &str = "\
Examples:
  runnel audit tail
  runnel audit tail --lease r-7f3k9q -o json
  runnel audit tail --action ike.sa. -n 100
  runnel audit tail --after 4711 -o json       what came after record 4711";
const VERIFY: &str = "\
Examples:
  runnel audit verify                          the trail of this gateway and its copy audit.jsonl
  runnel audit verify --file audit-000000004711.jsonl   a rotated or shipped copy by itself
  runnel audit verify --file audit-000000004711.jsonl --file audit.jsonl --key audit.pub --max-age 2h
                                               on another machine: what runnel audit key gave
  runnel audit verify --seal-key /etc/runnel/seal.key    while the gateway does not run

Finds every edit, removal, addition and change of order, and says at which record. Exit code 1 when
there is one.";
const KEY: &str = "\
Examples:
  runnel audit key > audit.pub                 keep it on another machine, for runnel audit verify --key

The trail is signed with it at every start and stop, every hour and when its file is rotated.";

/// The audit trail: what changed, by whom, for which job
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The latest events, oldest first
    #[command(after_help = TAIL)]
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        number: usize,
        /// The first ones after this record instead of the latest
        #[arg(long, value_name = "RECORD")]
        after: Option<u64>,
        /// Of one lease
        #[arg(long, value_name = "ID")]
        lease: Option<String>,
        /// Whose action begins so, like lease. or ike.sa.up
        #[arg(long, value_name = "PREFIX")]
        action: Option<String>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// See whether anything was done to the trail since it was written
    #[command(after_help = VERIFY)]
    Verify {
        /// A copy of the trail instead of the trail itself; several files, the oldest first
        #[arg(long, value_name = "FILE", conflicts_with = "seal_key")]
        file: Vec<PathBuf>,
        /// The gateway's public key, which signed the checkpoints
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The copy's last checkpoint is not older: nothing is missing at its end
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "key", requires = "file")]
        max_age: Option<Duration>,
        #[command(flatten)]
        sealing: SealKeyArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// The public key that proves the trail on other machines
    #[command(after_help = KEY)]
    Key {
        #[command(flatten)]
        sealing: SealKeyArg,
        #[command(flatten)]
        output: OutputArg,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Tail { number, after, lease, action, output } => {
            let request = Request::AuditTail { after, last: number, lease, action };
            let events: Vec<Value> = context.client()?.ask(request)?;
            output.print(&events, |events| list(events));
            Ok(())
        }
        Command::Verify { file, key, max_age, sealing, output } => {
            let wanted = OffMachine { key: key.as_deref(), max_age };
            let verdict = verify(context, &file, &sealing, &wanted)?;
            output.print(&verdict, verdict_text);
            match verdict.ok {
                true => Ok(()),
                false => Err(Failure::failed("the audit trail was tampered with")),
            }
        }
        Command::Key { sealing, output } => {
            let key: AuditKey = match context.client() {
                Ok(mut client) => client.ask(Request::AuditKey)?,
                Err(Failure::NotRunning(_)) => {
                    audit_key_offline(&context.state, sealing.file().as_deref())
                        .map_err(Failure::failed)?
                }
                Err(other) => return Err(other),
            };
            output.print(&key, |key| key.pem.clone());
            Ok(())
        }
    }
}

fn verify(
    context: &Context,
    files: &[PathBuf],
    sealing: &SealKeyArg,
    wanted: &OffMachine<'_>,
) -> Result<AuditVerdict, Failure> {
    if !files.is_empty() {
        return verify_audit_files(files, wanted).map_err(Failure::failed);
    }
    match context.client() {
        Ok(mut client) => {
            if wanted.key.is_some() {
                let running: AuditKey = client.ask(Request::AuditKey)?;
                wanted.expects(&running).map_err(Failure::failed)?;
            }
            Ok(client.ask(Request::AuditVerify)?)
        }
        Err(Failure::NotRunning(_)) => {
            verify_audit_offline(&context.state, sealing.file().as_deref(), wanted)
                .map_err(Failure::failed)
        }
        Err(other) => Err(other),
    }
}

fn list(events: &[Value]) -> String {
    let text = |event: &Value, name: &str| match event.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            let who = match text(event, "runnel.actor").as_str() {
                "operator" => format!("uid {}", text(event, "process.user.id")),
                "peer" => text(event, "source.ip"),
                other => other.to_owned(),
            };
            vec![
                text(event, "event.sequence"),
                text(event, "@timestamp"),
                text(event, "event.action"),
                text(event, "event.outcome"),
                who,
                text(event, "runnel.lease_id"),
                text(event, "event.reason"),
            ]
        })
        .collect();
    table(&["RECORD", "TIME", "ACTION", "OUTCOME", "BY", "LEASE", "REASON"], &rows)
}

fn verdict_text(verdict: &AuditVerdict) -> String {
    let mut text = String::new();
    for part in &verdict.parts {
        text.push_str(&part_text(part));
    }
    text
}

fn part_text(part: &AuditPart) -> String {
    let AuditPart { name, records, first, last, hash, sealed, signed, forgotten, faults } = part;
    let end = if *sealed { "its end is sealed" } else { "its end was not compared with a seal" };
    let mut text = match records {
        0 => format!("{name}: empty\n"),
        _ => format!("{name}: {records} record(s), {first} to {last}, {end}\n  last hash {hash}\n"),
    };
    if let Some(signed) = signed {
        let AuditSigned { checkpoint, record, time } = signed;
        text.push_str(&format!("  signed up to record {record} at {time} (record {checkpoint})\n"));
    }
    if let Some(forgotten) = forgotten {
        text.push_str(&format!("  records up to {forgotten} were forgotten when they were old\n"));
    }
    for fault in faults {
        let line = fault.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        text.push_str(&format!("  {}: {line}{}\n", fault.kind, fault.what));
    }
    if faults.is_empty() {
        text.push_str("  nothing was changed, removed, moved or added\n");
    }
    text
}
