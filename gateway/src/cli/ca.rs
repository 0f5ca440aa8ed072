//! `runnel ca`

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use pki::signer::KeyKind;
use pki::{Actor, CaSetup, UnixTime};

use super::output::{self, OutputArg, pairs};
use super::sealing::SealKeyArg;
use super::{Context, Failure};
use crate::admin::proto::{MAX_LINE, Request};
use crate::admin::view::{CaChange, CaStatus, Ended, Pem};
use crate::service;
use crate::state::StateDir;
use crate::sys::clock;

const ROOT: &str = "\
Examples:
  runnel ca root > root.pem          what runners must trust";
const STATUS: &str = "\
Examples:
  runnel ca status
  runnel ca status -o json | jq -r '.authorities[0].sha256'";
const CRL: &str = "\
Examples:
  runnel ca crl | openssl crl -noout -text
  runnel ca crl --of root            as `runnel ca status` names it";
const CSR: &str = "\
Examples:
  runnel ca csr > issuing.csr              before the first `up`: no root is made here then
  runnel ca csr --key rsa-4096 --new       another key than the one that waits

The key stays here, sealed. Sign the request as a CA (basicConstraints CA:TRUE, keyUsage keyCertSign
and cRLSign) with a name that no other CA has, then `runnel ca import`.";
const IMPORT: &str = "\
Examples:
  runnel ca import chain.pem               the issuing CA, the CAs between, the root; in any order
  runnel ca import --crl root.crl          the list of a root that is kept elsewhere
  cat issuing.pem root.pem | runnel ca import -

Runners that trust only an older root must accept the new one: the older root's key certifies it if
it is here, else add the new root's certificate by the older one to the file.";
const ROTATE: &str = "\
Examples:
  runnel ca rotate                         another issuing CA below the same root
  runnel ca rotate --root                  another root too, certified by the one runners know
  runnel ca rotate --key ecdsa-p384

What was issued before stays valid until it ends, a day later at most; then its CA's key is
deleted. After --root hand the new pin to runners, then `runnel ca retire`.";
const RETIRE: &str = "\
Examples:
  runnel ca status                         two roots: the first is the one to retire
  runnel ca retire

Runners that trust only the retired root do not accept this gateway any more.";

const REVOKE: &str = "\
Examples:
  runnel ca rotate                         another CA must issue first
  runnel ca revoke issuing --reason key-compromise

The root's list and OCSP say so at once. What it issued is good no more: leases that have nothing else
end with their tunnels, and clients enrol again. Without hurry, `runnel ca rotate` alone is enough.";

/// The certificate authority
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The root certificate that runners pin, PEM
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
    Crl {
        /// Of this CA, by its name in URLs [default: the one that issues now]
        #[arg(long, value_name = "PLACE")]
        of: Option<String>,
    },
    /// A request for an issuing CA below a root that is kept elsewhere, PEM
    #[command(after_help = CSR)]
    Csr {
        /// Kind of key: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072, rsa-4096 [default: as configured]
        #[arg(long, value_name = "KIND")]
        key: Option<KeyKind>,
        /// The common name to ask for [default: one that no other CA has]
        #[arg(long, value_name = "NAME")]
        common_name: Option<String>,
        /// Make another request than the one that waits
        #[arg(long)]
        new: bool,
        #[command(flatten)]
        sealing: SealKeyArg,
    },
    /// Bring in the certificate that was asked for, or a root's revocation list
    #[command(after_help = IMPORT)]
    Import {
        /// PEM file with the issuing CA's certificate and its chain; - is standard input
        #[arg(value_name = "FILE", required_unless_present = "crl")]
        file: Option<PathBuf>,
        /// Revocation list of a root that is kept elsewhere, PEM or DER
        #[arg(long, value_name = "FILE")]
        crl: Option<PathBuf>,
        #[command(flatten)]
        sealing: SealKeyArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Issue with another CA from now on
    #[command(after_help = ROTATE)]
    Rotate {
        /// Make another root as well
        #[arg(long)]
        root: bool,
        /// Kind of key: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072, rsa-4096 [default: as configured]
        #[arg(long, value_name = "KIND")]
        key: Option<KeyKind>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Revoke an issuing CA that issues no more
    #[command(after_help = REVOKE)]
    Revoke {
        /// Its name in URLs, as `runnel ca status` has it
        #[arg(value_name = "PLACE")]
        place: String,
        /// Why, as in RFC 5280: key-compromise, superseded, cessation-of-operation, ...
        #[arg(long, default_value = "unspecified")]
        reason: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Stop trusting the older of two roots
    #[command(after_help = RETIRE)]
    Retire {
        #[command(flatten)]
        output: OutputArg,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Root => {
            let pem: Pem = context.client()?.ask(Request::CaRoot)?;
            output::line(&pem.pem);
        }
        Command::Crl { of } => {
            let pem: Pem = context.client()?.ask(Request::CaCrl { place: of })?;
            output::line(&pem.pem);
        }
        Command::Status { output } => {
            let status: CaStatus = context.client()?.ask(Request::CaStatus)?;
            output.print(&status, status_text);
        }
        Command::Csr { key, common_name, new, sealing } => {
            let pem = match context.client() {
                Ok(mut client) => {
                    let pem: Pem = client.ask(Request::CaCsr { key, common_name, anew: new })?;
                    pem.pem
                }
                Err(Failure::NotRunning(_)) => {
                    let name = common_name.as_deref();
                    offline(context, &sealing, |setup, configured| {
                        setup.request(key.unwrap_or(configured), name, new, &actor(), now())
                    })?
                }
                Err(other) => return Err(other),
            };
            output::line(&pem);
        }
        Command::Import { file, crl, sealing, output } => {
            if let Some(file) = file {
                let change = import(context, &sealing, &file)?;
                output.print(&change, change_text);
            }
            if let Some(crl) = crl {
                let change = import_crl(context, &sealing, &crl)?;
                output.print(&change, change_text);
            }
        }
        Command::Rotate { root, key, output } => {
            let change: CaChange = context.client()?.ask(Request::CaRotate { key, root })?;
            output.print(&change, change_text);
        }
        Command::Revoke { place, reason, output } => {
            let request = Request::CaRevoke { place: place.clone(), reason };
            let ended: Ended = context.client()?.ask(request)?;
            output.print(&ended, |ended| {
                let (leases, sas) = (ended.leases.len(), ended.sas_closed);
                format!("revoked {place}: {leases} lease(s) ended, {sas} IKE SA(s) closed")
            });
        }
        Command::Retire { output } => {
            let change: CaChange = context.client()?.ask(Request::CaRetire)?;
            output.print(&change, change_text);
        }
    }
    Ok(())
}

fn import(context: &Context, sealing: &SealKeyArg, file: &Path) -> Result<CaChange, Failure> {
    let bytes = read(file)?;
    let certificates = pki::certificates_of(&bytes).map_err(Failure::failed)?;
    match context.client() {
        Ok(mut client) => {
            let pem: String =
                certificates.iter().map(|der| service::pem("CERTIFICATE", der)).collect();
            Ok(client.ask(Request::CaImport { certificates: pem })?)
        }
        Err(Failure::NotRunning(_)) => {
            let imported =
                offline(context, sealing, |setup, _| setup.import(&certificates, &actor(), now()))?;
            Ok(service::ca_change(&imported))
        }
        Err(other) => Err(other),
    }
}

fn import_crl(context: &Context, sealing: &SealKeyArg, file: &Path) -> Result<CaChange, Failure> {
    let bytes = read(file)?;
    let der = match x509_parser::pem::parse_x509_pem(&bytes) {
        Ok((_, pem)) if pem.label == "X509 CRL" => pem.contents,
        _ => bytes,
    };
    match context.client() {
        Ok(mut client) => {
            let crl = STANDARD.encode(&der);
            if crl.len() > MAX_LINE - 256 {
                return Err(Failure::Usage(format!(
                    "{} has {} octets, more than a root's list has",
                    file.display(),
                    der.len()
                )));
            }
            Ok(client.ask(Request::CaImportCrl { crl })?)
        }
        Err(Failure::NotRunning(_)) => {
            let imported =
                offline(context, sealing, |setup, _| setup.import_list(&der, &actor(), now()))?;
            Ok(service::ca_change(&imported))
        }
        Err(other) => Err(other),
    }
}

/// Works on the state directory while no gateway does; gives the configured kind of key as well.
/// A directory that this creates goes again when the work fails.
fn offline<T>(
    context: &Context,
    sealing: &SealKeyArg,
    work: impl FnOnce(&mut CaSetup, KeyKind) -> Result<T, pki::Error>,
) -> Result<T, Failure> {
    let config = super::check::load(context)?;
    let id = service::gateway_id(&config);
    let mut options = pki::Options::new(service::pki_settings(&config, &id));
    options.seal_key = sealing.file();
    options.key = config.pki.ca_key;
    options.token = config.pki.ca_token.clone();
    options.journal = config.pki.journal.clone();
    let mut state = StateDir::inspect(&context.state).map_err(Failure::failed)?;
    state.create().map_err(Failure::failed)?;
    let done = CaSetup::open(state.path(), options, now()).and_then(|mut setup| {
        if setup.broken_trail() {
            output::error_line(
                "the audit trail was changed while the gateway did not run: see `runnel audit \
                     verify`",
            );
        }
        work(&mut setup, config.pki.ca_key)
    });
    match &done {
        Ok(_) => state.keep(),
        Err(_) => state.undo(),
    }
    done.map_err(Failure::failed)
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().take(1 << 20).read_to_end(&mut bytes).map_err(Failure::failed)?;
        return Ok(bytes);
    }
    std::fs::read(file)
        .map_err(|cause| Failure::failed(format!("cannot read {}: {cause}", file.display())))
}

fn actor() -> Actor {
    Actor::Uid(rustix::process::getuid().as_raw())
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

fn status_text(status: &CaStatus) -> String {
    let mut text = String::new();
    for authority in &status.authorities {
        let mut rows = vec![
            ("authority", authority.name.clone()),
            ("subject", authority.subject.clone()),
            ("sha256", authority.sha256.clone()),
            ("valid", format!("{} to {}", authority.not_before, authority.not_after)),
            ("served as", format!("/{0}.cer, /crl/{0}.crl", authority.place)),
        ];
        if let Some(token) = &authority.token {
            rows.push(("key", format!("in {token}")));
        }
        if authority.offline {
            rows.push(("key", "kept elsewhere".to_owned()));
        }
        if let Some(retires) = &authority.retires {
            rows.push(("issues", format!("no more; forgotten after {retires}")));
        }
        text.push_str(&pairs(&rows));
        text.push('\n');
    }
    text.push_str(&format!(
        "CRL number {}, {} entries, good until {}\n",
        status.crl_number, status.crl_entries, status.crl_next_update
    ));
    text
}

fn change_text(change: &CaChange) -> String {
    let mut rows =
        vec![("issues now", change.issuing.clone()), ("runners pin", change.root_sha256.clone())];
    if let Some(next) = &change.next_root_sha256 {
        rows.push(("next root", next.clone()));
    }
    let mut text = pairs(&rows);
    for note in &change.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    if change.next_root_sha256.is_some() {
        text.push_str(
            "both roots are in force; when every runner trusts the next one: runnel ca retire\n",
        );
    }
    text
}
