//! `runnel cert`

use clap::Subcommand;

use super::output::{OutputArg, pairs, table};
use super::paging::PageArgs;
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{Cert, Ended};

const LIST: &str = "\
Examples:
  runnel cert list
  runnel cert list --all -o json";
const SHOW: &str = "\
Examples:
  runnel cert show 4f2a91...
  runnel cert show 4f2a91... -o json | jq -r .pem | openssl x509 -noout -text";
const REVOKE: &str = "\
Examples:
  runnel cert revoke 4f2a91... --reason key-compromise

The lease ends with it: its tunnels are gone before this answers.";

/// Certificates the CA issued
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Certificates that are valid now
    #[command(after_help = LIST)]
    List {
        /// Expired and revoked ones too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        pages: PageArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Everything about one certificate
    #[command(after_help = SHOW)]
    Show {
        /// Serial number, hexadecimal
        serial: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Revoke a certificate, end its lease and its tunnels
    #[command(after_help = REVOKE)]
    Revoke {
        /// Serial number, hexadecimal
        serial: String,
        /// Why, as in RFC 5280: unspecified, key-compromise, superseded, cessation-of-operation, ...
        #[arg(long, default_value = "unspecified")]
        reason: String,
        #[command(flatten)]
        output: OutputArg,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::List { all, pages, output } => {
            let request = |paging| Request::CertList { all, paging };
            let certs: Vec<Cert> = pages.list(&mut client, request)?;
            output.print(&certs, |certs| {
                let rows: Vec<_> = certs
                    .iter()
                    .map(|c| {
                        vec![
                            c.serial.clone(),
                            c.state.clone(),
                            c.lease.clone().unwrap_or_default(),
                            c.not_after.clone(),
                            c.subject.clone(),
                        ]
                    })
                    .collect();
                table(&["SERIAL", "STATE", "LEASE", "NOT AFTER", "SUBJECT"], &rows)
            });
        }
        Command::Show { serial, output } => {
            let cert: Cert = client.ask(Request::CertShow { serial })?;
            output.print(&cert, show);
        }
        Command::Revoke { serial, reason, output } => {
            let ended: Ended = client.ask(Request::CertRevoke { serial, reason })?;
            output.print(&ended, |ended| super::lease::ended_text(ended, "revoked"));
        }
    }
    Ok(())
}

fn show(cert: &Cert) -> String {
    let mut rows = vec![
        ("serial", cert.serial.clone()),
        ("subject", cert.subject.clone()),
        ("state", cert.state.clone()),
        ("valid", format!("{} to {}", cert.not_before, cert.not_after)),
    ];
    if let Some(lease) = &cert.lease {
        rows.push(("lease", lease.clone()));
    }
    if let Some(revoked) = &cert.revoked {
        let reason = cert.reason.clone().unwrap_or_default();
        rows.push(("revoked", format!("{revoked} ({reason})")));
    }
    let mut text = pairs(&rows);
    if let Some(pem) = &cert.pem {
        text.push('\n');
        text.push_str(pem);
    }
    text
}
