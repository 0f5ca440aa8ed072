//! `runnel ca`

use clap::Subcommand;

use super::output::{self, OutputArg, pairs};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{CaStatus, Pem};

const ROOT: &str = "\
Examples:
  runnel ca root > root.pem          what runners must trust";
const STATUS: &str = "\
Examples:
  runnel ca status
  runnel ca status -o json | jq -r '.authorities[0].sha256'";
const CRL: &str = "\
Examples:
  runnel ca crl | openssl crl -noout -text";

/// The certificate authority
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The root certificate, PEM
    #[command(after_help = ROOT)]
    Root,
    /// Authorities, their ends and the CRL
    #[command(after_help = STATUS)]
    Status {
        #[command(flatten)]
        output: OutputArg,
    },
    /// The current CRL, PEM
    #[command(after_help = CRL)]
    Crl,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::Root => {
            let pem: Pem = client.ask(Request::CaRoot)?;
            output::line(&pem.pem);
        }
        Command::Crl => {
            let pem: Pem = client.ask(Request::CaCrl)?;
            output::line(&pem.pem);
        }
        Command::Status { output } => {
            let status: CaStatus = client.ask(Request::CaStatus)?;
            output.print(&status, |status| {
                let mut text = String::new();
                for authority in &status.authorities {
                    text.push_str(&pairs(&[
                        ("authority", authority.name.clone()),
                        ("subject", authority.subject.clone()),
                        ("sha256", authority.sha256.clone()),
                        ("valid", format!("{} to {}", authority.not_before, authority.not_after)),
                    ]));
                    text.push('\n');
                }
                text.push_str(&format!(
                    "CRL number {}, {} entries, good until {}\n",
                    status.crl_number, status.crl_entries, status.crl_next_update
                ));
                text
            });
        }
    }
    Ok(())
}
