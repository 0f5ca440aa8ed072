//! `runnel restore`

use std::path::PathBuf;

use pki::{BackupKey, CaSetup, UnixTime};

use super::sealing::SealKeyArg;
use super::{Context, Failure, output};
use crate::service;
use crate::state::StateDir;
use crate::sys::clock;

const EXAMPLES: &str = "\
Examples:
  runnel restore --key-file /root/backup.key /srv/backup/gateway.backup
  runnel restore --accept-loss-after 2026-11-22T10:00:00Z      without a backup: see below

Nothing that was revoked, barred or spent since the backup comes back: the revocation journal
(revocations.journal in the state directory, or its second place, journal in [pki]) is written into the
restored store. Put the journal and seal.key there first on a new machine.

Is the journal lost, nobody knows what was revoked; restore and `up` then refuse and name a time.
--accept-loss-after with exactly that time revokes every lease with its certificates and every token
that was good at that time, and lets CI tokens in that were issued afterwards only. Clients enrol anew.
CAs and the gateway's own certificate stay: rotate them if their keys may be known to others.";

/// Bring back a backup while the gateway does not run
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The backup
    #[arg(
        value_name = "FILE",
        required_unless_present = "accept_loss_after",
        requires = "key_file"
    )]
    file: Option<PathBuf>,
    /// File with the passphrase or recovery key of the backup
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The journal is lost: revoke everything that was good at this time, which the refusal names
    #[arg(long, value_name = "TIME")]
    accept_loss_after: Option<String>,
    #[command(flatten)]
    sealing: SealKeyArg,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let config = super::check::load(context)?;
    let mut state = StateDir::inspect(&context.state).map_err(Failure::failed)?;
    state.create().map_err(Failure::failed)?;
    // What was put into the directory stays, also when the rest fails: it is told how to go on.
    state.keep();
    if let (Some(file), Some(key_file)) = (&args.file, &args.key_file) {
        let key = BackupKey::read(key_file).map_err(Failure::failed)?;
        let head = pki::restore(state.path(), file, &key).map_err(Failure::failed)?;
        output::line(&format!(
            "restored the state of {} (root {})",
            head.created, head.root_sha256
        ));
    }
    let id = service::gateway_id(&config);
    let mut options = pki::Options::new(service::pki_settings(&config, &id));
    options.seal_key = args.sealing.file();
    options.key = config.pki.ca_key;
    options.token = config.pki.ca_token.clone();
    options.journal = config.pki.journal.clone();
    options.accept_loss = args.accept_loss_after.clone();
    let now = UnixTime::from_micros(clock::wall().0);
    let setup = CaSetup::open(state.path(), options, now).map_err(Failure::failed)?;
    let replayed = setup.authority().and_then(|authority| authority.startup().replayed);
    output::line(&match replayed {
        Some(changes) if changes > 0 => format!(
            "{changes} later changes were written into it again: what was revoked stays revoked"
        ),
        None if args.accept_loss_after.is_some() => {
            "everything that was good is revoked: clients enrol anew".to_owned()
        }
        _ => "nothing that matters was revoked or spent since".to_owned(),
    });
    Ok(())
}
