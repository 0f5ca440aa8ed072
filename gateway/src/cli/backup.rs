//! `runnel backup`

use std::path::{Path, PathBuf};

use super::output::{self, OutputArg, pairs};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::Backup;

const EXAMPLES: &str = "\
Examples:
  openssl rand -hex 32 > /root/backup.key; chmod 600 /root/backup.key      once; keep it elsewhere
  runnel backup --key-file /root/backup.key /srv/backup/gateway.backup

The file holds CA, leases, tokens and the audit trail, encrypted. It holds neither the key that seals
the CA's keys (seal.key or --seal-key) nor the revocation journal: keep both elsewhere as well. Work
goes on meanwhile.";

/// Write a backup of the state while the gateway runs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// File with a passphrase or recovery key that encrypts the backup
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    #[command(flatten)]
    output: OutputArg,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let (to, key_file) = (absolute(&args.file)?, absolute(&args.key_file)?);
    let made: Backup = context.client()?.ask(Request::Backup { to, key_file })?;
    args.output.print(&made, |made| {
        pairs(&[
            ("backup", made.file.clone()),
            ("of", made.created.clone()),
            ("root", made.root_sha256.clone()),
        ])
    });
    if context.state.join("seal.key").exists() {
        output::line(
            "keep seal.key of the state directory elsewhere, too: it is not in the backup",
        );
    }
    Ok(())
}

/// The gateway has a working directory of its own.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(Failure::failed)
}
