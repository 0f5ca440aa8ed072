//! `runnel lease`

use clap::{ArgGroup, Args, Subcommand};

use super::output::{OutputArg, pairs, table};
use super::paging::PageArgs;
use super::{Context, Failure};
use crate::admin::proto::{Request, Selector};
use crate::admin::view::{Ended, Lease, Pending};
use crate::obs::plain;

const LIST: &str = "\
Examples:
  runnel lease list
  runnel lease list --all -o json    ended ones too
  runnel lease list --limit 100      the first hundred, and where the rest begins";
const SHOW: &str = "\
Examples:
  runnel lease show r-7f3k9q";
const PENDING: &str = "\
Examples:
  runnel lease pending
  runnel lease pending -o json";
const APPROVE: &str = "\
Examples:
  runnel lease approve r-7f3k9q      its client gets a certificate when it asks again";
const DENY: &str = "\
Examples:
  runnel lease deny r-7f3k9q --reason 'not on release day'";
const RELEASE: &str = "\
Examples:
  runnel lease release r-7f3k9q      its job is done; packets stop before this answers
  runnel lease release --role builder";
const REVOKE: &str = "\
Examples:
  runnel lease revoke r-7f3k9q --reason key-compromise
  runnel lease revoke --identity spiffe://ci.example.com/ci/github/
  runnel lease revoke --serial 4f2a...";

/// Leases: one workload's identity, certificate, address and tunnels
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Live leases
    #[command(after_help = LIST)]
    List {
        /// Ended leases too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        pages: PageArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Everything about one lease
    #[command(after_help = SHOW)]
    Show {
        /// Lease id
        id: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Leases that wait for approval (roles with approval = "manual")
    #[command(after_help = PENDING)]
    Pending {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Let a lease that waits be opened
    #[command(after_help = APPROVE)]
    Approve {
        /// Lease id
        id: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Refuse a lease that waits
    #[command(after_help = DENY)]
    Deny {
        /// Lease id
        id: String,
        /// Why; its client is told
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// End leases whose work is done; tunnels end before this answers
    #[command(after_help = RELEASE)]
    Release {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: OutputArg,
    },
    /// End leases that must not be trusted any more, and revoke their certificates
    #[command(after_help = REVOKE)]
    Revoke {
        #[command(flatten)]
        which: Which,
        /// Why, as in RFC 5280: unspecified, key-compromise, superseded, cessation-of-operation, ...
        #[arg(long, default_value = "unspecified")]
        reason: String,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// Which leases; exactly one way of saying so.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("selector").multiple(false))]
pub(super) struct Which {
    /// Lease id
    #[arg(group = "selector")]
    id: Option<String>,
    /// By certificate serial, hexadecimal
    #[arg(long, group = "selector")]
    serial: Option<String>,
    /// By the identity, with those below it (whole segments)
    #[arg(long, group = "selector", value_name = "PREFIX")]
    identity: Option<String>,
    /// Every lease of a role
    #[arg(long, group = "selector")]
    role: Option<String>,
    /// By public key: SHA-256 of its SubjectPublicKeyInfo
    #[arg(long, group = "selector", value_name = "SHA256")]
    key: Option<String>,
    /// By the CI run they were opened for: its id or URL
    #[arg(long, group = "selector")]
    run: Option<String>,
    /// By the issuer (name or URL) of the token that opened them; with --run, whose run is meant
    #[arg(long, value_name = "ISSUER", conflicts_with_all = ["id", "serial", "identity", "role", "key"])]
    issuer: Option<String>,
}

impl Which {
    pub(super) fn selector(self) -> Result<Selector, Failure> {
        if let Some(run) = self.run {
            return Ok(Selector::Run { run, issuer: self.issuer });
        }
        self.id
            .map(Selector::Id)
            .or(self.serial.map(Selector::Serial))
            .or(self.identity.map(Selector::Identity))
            .or(self.role.map(Selector::Role))
            .or(self.key.map(Selector::Key))
            .or(self.issuer.map(Selector::Issuer))
            .ok_or_else(|| {
                let ways = "an id, --serial, --identity, --role, --key, --run or --issuer";
                Failure::Usage(format!("say which lease: give {ways}"))
            })
    }
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { all, pages, output } => {
            let request = |paging| Request::LeaseList { all, paging };
            let leases: Vec<Lease> = pages.list(&mut context.client()?, request)?;
            output.print(&leases, |leases| list(leases));
        }
        Command::Show { id, output } => {
            let lease: Lease = context.client()?.ask(Request::LeaseShow { id })?;
            output.print(&lease, show);
        }
        Command::Pending { output } => {
            let waiting: Vec<Pending> = context.client()?.ask(Request::LeasePending)?;
            output.print(&waiting, |waiting| pending(waiting));
        }
        Command::Approve { id, output } => {
            let decided: Pending = context.client()?.ask(Request::LeaseApprove { id })?;
            output.print(&decided, |lease| {
                format!(
                    "{} approved: its client gets the certificate when it asks again\n",
                    lease.id
                )
            });
        }
        Command::Deny { id, reason, output } => {
            let decided: Pending = context.client()?.ask(Request::LeaseDeny { id, reason })?;
            output.print(&decided, |lease| format!("{} denied\n", lease.id));
        }
        Command::Release { which, output } => {
            let request = Request::LeaseRelease { selector: which.selector()? };
            let ended: Ended = context.client()?.ask(request)?;
            output.print(&ended, |ended| ended_text(ended, "released"));
        }
        Command::Revoke { which, reason, output } => {
            let request = Request::LeaseRevoke { selector: which.selector()?, reason };
            let ended: Ended = context.client()?.ask(request)?;
            output.print(&ended, |ended| ended_text(ended, "revoked"));
        }
    }
    Ok(())
}

fn pending(waiting: &[Pending]) -> String {
    let row = |lease: &Pending| {
        let subject = || lease.claims.get("sub").cloned();
        let job = lease.job.run_url.clone().or_else(subject).unwrap_or_else(|| "-".to_owned());
        vec![
            lease.id.clone(),
            lease.role.clone(),
            lease.state.clone(),
            lease.asked_by.clone(),
            lease.expires.clone(),
            lease.token.clone().unwrap_or_else(|| "-".to_owned()),
            plain(&job),
        ]
    };
    let rows: Vec<_> = waiting.iter().map(row).collect();
    table(&["ID", "ROLE", "STATE", "ASKED BY", "EXPIRES", "TOKEN", "JOB"], &rows)
}

pub(super) fn list(leases: &[Lease]) -> String {
    let rows: Vec<_> = leases
        .iter()
        .map(|l| {
            vec![
                l.id.clone(),
                l.role.clone(),
                l.state.clone(),
                l.addresses.join(","),
                l.expires.clone(),
                l.sas.len().to_string(),
                l.dns.clone(),
                job(l),
            ]
        })
        .collect();
    table(&["ID", "ROLE", "STATE", "ADDRESSES", "EXPIRES", "SAS", "NAME", "JOB"], &rows)
}

/// The CI job of a lease in one word: where it can be looked at, or what it is the job of.
fn job(lease: &Lease) -> String {
    let subject = || lease.claims.get("sub").cloned();
    plain(&lease.job.run_url.clone().or_else(subject).unwrap_or_else(|| "-".to_owned()))
}

fn show(lease: &Lease) -> String {
    let sas: Vec<_> = lease.sas.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        ("id", lease.id.clone()),
        ("role", lease.role.clone()),
        ("state", lease.state.clone()),
        ("identity", lease.identity.clone()),
        ("subject", lease.subject.clone()),
        ("name", lease.dns.clone()),
        ("serial", lease.serial.clone()),
        ("addresses", lease.addresses.join(", ")),
        ("opened", format!("{} by {}", lease.created, lease.door)),
        ("expires", lease.expires.clone()),
        ("IKE SAs", if sas.is_empty() { "none".to_owned() } else { sas.join(", ") }),
    ];
    let job = &lease.job;
    for (name, value) in [("run", &job.run_url), ("run id", &job.run_id), ("job id", &job.job_id)] {
        rows.extend(value.as_deref().map(|value| (name, plain(value))));
    }
    for (claim, value) in &lease.claims {
        rows.push((claim, plain(value)));
    }
    if let Some(ended) = &lease.ended {
        rows.push(("ended", ended.clone()));
    }
    pairs(&rows)
}

/// What ending did, in one line; shared with `cert revoke`.
pub(super) fn ended_text(ended: &Ended, verb: &str) -> String {
    if ended.already && ended.leases.is_empty() {
        return "it had been revoked before; nothing was left to do".to_owned();
    }
    if ended.already {
        return format!("{} had ended before; nothing was left to do", ended.leases.join(", "));
    }
    let keys = match ended.keys_barred {
        0 => None,
        1 => Some("1 key".to_owned()),
        count => Some(format!("{count} keys")),
    };
    let barred: Vec<String> =
        keys.into_iter().chain(ended.barred.iter().map(|n| plain(n))).collect();
    let barred = match barred.as_slice() {
        [] => String::new(),
        names => format!("; barred (see `runnel bar list`): {}", names.join(", ")),
    };
    let denied = match ended.cancelled.as_slice() {
        [] => String::new(),
        ids => format!("; denied what waited for approval: {}", ids.join(", ")),
    };
    if ended.leases.is_empty() && !ended.cancelled.is_empty() {
        return format!("no lease was live{denied}{barred}");
    }
    let crl = match ended.crl_number {
        Some(number) => format!("CRL number {number}"),
        None => "CRL pending (see `runnel doctor`)".to_owned(),
    };
    if ended.leases.is_empty() && !(ended.barred.is_empty() && ended.keys_barred == 0) {
        return format!(
            "NO LIVE LEASE MATCHED AND NO TUNNEL WAS CLOSED: only what comes later is kept \
             out{barred}. Was it meant so? `runnel lease list` shows what is live"
        );
    }
    format!(
        "{verb} {}: {} IKE SA(s) closed, {crl}, {} ms{denied}{barred}",
        if ended.leases.is_empty() { "nothing".to_owned() } else { ended.leases.join(", ") },
        ended.sas_closed,
        ended.elapsed_ms
    )
}
