//! What the running instance can be asked: the admin API's operations over PKI, engine and data
//! plane.

mod audit;
mod ca;
mod doctor;
mod drain;
mod identity;
mod leases;
mod reload;
mod sas;
mod setup;
mod sites;
mod views;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ike::crypto::SecretBytes;
use ike::io::Command;
use pki::{Actor, AuditEvent, Authority, LeaseState, TokenCreate, UnixTime};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use xfrm::model::Capabilities;

pub use audit::{
    FILE as AUDIT_FILE, OffMachine, key_offline as audit_key_offline,
    verify_files as verify_audit_files, verify_offline as verify_audit_offline,
};
pub(crate) use ca::ca_change;
pub use drain::{gateway as redirect_gateway, host as redirect_host};
pub use identity::GatewayIdentity;
pub use setup::{
    client_host, engine_config, enrol_url, gateway_id, identification, pki_settings, server_names,
};
pub(crate) use views::pem;

use crate::actions::{Peers, PlaneHandle};
use crate::admin::Handler;
use crate::admin::proto::{AdminError, ErrorCode, Request, Selector};
use crate::admin::view;
use crate::config::Config;
use crate::driver::{EngineHandle, Message};
use crate::hooks::{CertificateHealth, HookSources};
use crate::lease::{EndError, LeaseEnder};
use crate::live::LiveConfig;
use crate::obs::audit::Sink;
use crate::obs::{Lives, Refusals};
use crate::site::Sites;
use crate::sys::clock;

/// Longest wait for a look at the engine or the data plane.
const PATIENCE: Duration = Duration::from_secs(5);

/// What does not change while the instance runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// IKE identity.
    pub id: String,
    /// State directory, as text.
    pub state: String,
    /// Seconds since the epoch.
    pub started: i64,
    /// Data plane.
    pub dataplane: view::DataplaneStatus,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Served addresses.
    pub listeners: Vec<view::Listener>,
    /// Makes the crash tokens (RFC 6290).
    pub crash_secret: SecretBytes,
    /// Where `--config` pointed.
    pub config_path: Option<std::path::PathBuf>,
    /// Why tunnels do not outlive the process; `None`: they do.
    pub unkept: Option<String>,
    /// The last snapshot could not be stored.
    pub keeping_fails: Arc<AtomicBool>,
    /// Tunnels of the earlier process that went on in this one.
    pub resumed: usize,
}

impl Facts {
    /// Why tunnels would not outlive the process now.
    fn unkept(&self) -> Option<String> {
        let failing = self.keeping_fails.load(Ordering::Relaxed);
        let full = || "their state cannot be written to `runtime` any more; see the log".to_owned();
        self.unkept.clone().or_else(|| failing.then(full))
    }
}

/// The running instance.
#[derive(Debug)]
pub struct Instance {
    /// The PKI.
    pub authority: Arc<Authority>,
    /// The engine's thread.
    pub engine: EngineHandle,
    /// The data plane's thread.
    pub plane: PlaneHandle,
    /// Ends leases.
    pub ender: LeaseEnder,
    /// What peers may have.
    pub peers: Arc<Peers>,
    /// Recent refusals.
    pub refusals: Arc<Refusals>,
    /// What became of each lease's tunnels.
    pub lives: Arc<Lives>,
    /// The configuration in force.
    pub config: LiveConfig,
    /// The gateway's keys and certificate.
    pub identity: Arc<GatewayIdentity>,
    /// Tunnels to other gateways.
    pub sites: Arc<Sites>,
    /// Whose webhooks are believed.
    pub hooks: Arc<HookSources>,
    /// The public certificates of the listeners.
    pub certificates: Mutex<Vec<CertificateHealth>>,
    /// Places elsewhere that take the audit trail.
    pub sinks: Vec<Arc<Sink>>,
    /// The gateway that clients are sent to.
    pub drain: Mutex<Option<String>>,
    /// The rest.
    pub facts: Facts,
    /// Held by whoever reloads the configuration.
    pub reloading: Mutex<()>,
    /// True: stop.
    pub stop: watch::Sender<bool>,
    /// Stop without closing tunnels.
    pub keep: AtomicBool,
}

/// A handle on the instance for the admin socket.
#[derive(Debug, Clone)]
pub struct Admin(pub Arc<Instance>);

impl Handler for Admin {
    async fn handle(&self, uid: Option<u32>, request: Request) -> Result<Value, AdminError> {
        let instance = Arc::clone(&self.0);
        let actor = uid.map_or(Actor::System, Actor::Uid);
        // The store syncs to disk and the engine answers from its own thread.
        let done = tokio::task::spawn_blocking(move || instance.execute(&actor, request));
        done.await.unwrap_or_else(|_| {
            let sentence = "the request failed inside; see the log of the instance";
            Err(AdminError::new(ErrorCode::Failed, sentence))
        })
    }
}

impl Instance {
    fn execute(&self, actor: &Actor, request: Request) -> Result<Value, AdminError> {
        match request {
            Request::Status => value(self.status()?),
            Request::Stop { keep } => {
                if let (true, Some(why)) = (keep, self.facts.unkept()) {
                    return Err(AdminError::new(
                        ErrorCode::BadRequest,
                        format!("tunnels cannot be left for the next start: {why}"),
                    ));
                }
                tracing::info!(%actor, keep, "asked to stop");
                let mut event = AuditEvent::new("gateway.stop", actor, now());
                event.reason = keep.then(|| "tunnels are left for the next start".to_owned());
                self.authority.record_audit(&event).map_err(pki_error)?;
                self.keep.store(keep, Ordering::Relaxed);
                self.stop.send_replace(true);
                value(())
            }
            Request::Reload => value(self.reload(actor)?),
            Request::TokenCreate { role, ttl, uses, from, key } => {
                let ttl = Duration::from_secs(ttl);
                let create = TokenCreate { role, ttl, uses, bound_net: from, bound_spki: key };
                value(self.token_create(actor, &create)?)
            }
            Request::TokenList(paging) => value(self.tokens(&paging)?),
            Request::TokenRevoke { id } => {
                self.authority.token_revoke(&id, actor, now()).map_err(pki_error)?;
                value(())
            }
            Request::LeaseList { all, paging } => value(self.leases(all, &paging)?),
            Request::LeaseShow { id } => value(self.lease(&id)?),
            Request::LeasePending => {
                let waiting = self.authority.pending_leases(now()).map_err(pki_error)?;
                value(waiting.iter().map(views::pending).collect::<Vec<_>>())
            }
            Request::LeaseApprove { id } => value(self.decide(actor, &id, true, None)?),
            Request::LeaseDeny { id, reason } => {
                value(self.decide(actor, &id, false, reason.as_deref())?)
            }
            Request::LeaseRelease { selector } => {
                value(self.ender.release(&selector, actor).map_err(end_error)?)
            }
            Request::LeaseRevoke { selector, reason } => {
                value(self.revoke(&selector, &reason, actor)?)
            }
            Request::BarList(paging) => value(self.bars(&paging)?),
            Request::BarLift { id } => {
                let bar = self.authority.lift_bar(&id, actor, now()).map_err(pki_error)?;
                value(views::bar(&bar))
            }
            Request::CertList { all, paging } => value(self.certificates(all, &paging)?),
            Request::CertShow { serial } => value(self.certificate(&serial)?),
            Request::RevokePreview { selector } => {
                let (leases, waiting) = self.ender.preview(&selector).map_err(end_error)?;
                let sas = views::by_lease(&self.engine.sas(PATIENCE).map_err(failed)?);
                let leases = leases.iter().map(|lease| views::lease(lease, &sas));
                value(leases.chain(waiting.iter().map(views::waiting)).collect::<Vec<_>>())
            }
            Request::CertRevoke { serial, reason } => {
                value(self.revoke(&Selector::Serial(serial), &reason, actor)?)
            }
            Request::CaRoot
            | Request::CaCrl { .. }
            | Request::CaStatus
            | Request::CaCsr { .. }
            | Request::CaImport { .. }
            | Request::CaImportCrl { .. }
            | Request::CaRotate { .. }
            | Request::CaRevoke { .. }
            | Request::CaRetire => self.ca(actor, request),
            Request::Backup { to, key_file } => {
                let key = pki::BackupKey::read(&key_file).map_err(pki_error)?;
                let head = self.authority.backup(&to, &key, actor, now()).map_err(pki_error)?;
                value(view::Backup {
                    file: to.display().to_string(),
                    created: head.created.to_string(),
                    root_sha256: head.root_sha256,
                })
            }
            Request::SaList => value(self.sas()?),
            Request::SaShow { id } => value(self.sa(id)?),
            Request::SaRekey { id } => value(self.sa_rekey(actor, id)?),
            Request::SaClose { id } => value(self.sa_close(actor, id)?),
            Request::Drain { to } => value(self.drain(actor, to)?),
            Request::SiteList => value(self.site_list()?),
            Request::SiteConnect { name } => value(self.site_connect(actor, &name)?),
            Request::Doctor => value(self.doctor()),
            Request::AuditVerify => value(self.audit_verify()?),
            Request::AuditKey => value(self.audit_key()),
            Request::AuditTail { after, last, lease, action } => {
                value(self.audit_tail(after, last, lease.as_deref(), action.as_deref())?)
            }
        }
    }

    fn revoke(
        &self,
        selector: &Selector,
        reason: &str,
        actor: &Actor,
    ) -> Result<view::Ended, AdminError> {
        let ended = self.ender.revoke(selector, reason, actor).map_err(end_error)?;
        // A certificate without a lease may be the gateway's own.
        if ended.leases.is_empty()
            && let Err(error) = self.renew_identity()
        {
            tracing::error!(error = %error.message, "the gateway's certificate was not renewed yet");
        }
        Ok(ended)
    }

    /// Renews the gateway's certificate when it is time; new handshakes use the new one.
    ///
    /// # Errors
    /// One sentence.
    pub fn renew_identity(&self) -> Result<(), AdminError> {
        if self.identity.renew(now()).map_err(failed)? {
            let engine = self.engine_config(&self.config.get())?;
            self.engine.post(Message::Command(Command::Reconfigure(Box::new(engine))));
            // Sites hold us to the certificate we showed them.
            for sa in self.engine.sas(PATIENCE).map_err(failed)? {
                if sa.role == ike::SaRole::Initiator {
                    self.engine.post(Message::Command(Command::Reauthenticate(sa.id)));
                }
            }
            tracing::info!("the gateway's certificate was renewed");
        }
        Ok(())
    }

    /// Forgets leases and tokens that ended long ago; how many leases.
    ///
    /// # Errors
    /// One sentence.
    pub fn prune(&self) -> Result<usize, String> {
        self.authority.prune(now()).map_err(|error| error.to_string())
    }

    /// Forgets audit records that are older than the configuration has them kept, and that are in
    /// the file (which has those up to `copied`) and with every sink; how many.
    ///
    /// # Errors
    /// One sentence.
    pub fn prune_audit(&self, copied: u64) -> Result<u64, String> {
        let keep = self.config.get().audit.keep;
        let delivered = self.sinks.iter().map(|sink| sink.status().delivered);
        let everywhere = delivered.min().unwrap_or(copied).min(copied);
        self.authority.prune_audit(keep, everywhere, now()).map_err(|error| error.to_string())
    }

    /// Forgets issuing CAs when all that they issued has ended; how many.
    ///
    /// # Errors
    /// One sentence.
    pub fn prune_cas(&self) -> Result<usize, String> {
        self.authority.ca_prune(now()).map_err(|error| error.to_string())
    }

    /// Renews the OCSP answers that the gateway staples to its certificates (RFC 4806).
    ///
    /// # Errors
    /// One sentence; the engine then goes on with what it has.
    pub fn renew_staples(&self) -> Result<(), AdminError> {
        let engine = self.engine_config(&self.config.get())?;
        self.engine.post(Message::Command(Command::Reconfigure(Box::new(engine))));
        Ok(())
    }

    /// What the engine is configured with.
    ///
    /// # Errors
    /// A sentence about the first proposal that cannot be used.
    pub fn engine_config(&self, config: &Config) -> Result<ike::EngineConfig, AdminError> {
        let facts = &self.facts;
        let (id, plane, secret) = (&facts.id, &facts.capabilities, &facts.crash_secret);
        let engine = setup::engine_config(config, id, &self.identity, plane, secret);
        engine.map(|engine| self.peers.externals().asked_for(engine)).map_err(failed)
    }

    /// How the public certificates are, by the section that names them.
    fn certificate_health(&self) -> Vec<(&'static str, Result<String, String>)> {
        let all = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::unix_seconds();
        all.iter().map(|certificate| (certificate.section(), certificate.look(now))).collect()
    }

    fn status(&self) -> Result<view::Status, AdminError> {
        let config = self.config.get();
        // SAs first: a runner that connects in between then has its lease in the later list.
        let sas = self.engine.sas(PATIENCE).map_err(failed)?;
        let leases = self.authority.leases(false).map_err(pki_error)?;
        let crl = self.authority.crl(now()).map_err(pki_error)?;
        let ca = self.authority.ca_status();
        let established: Vec<_> =
            sas.iter().filter(|sa| sa.state == ike::SaState::Established).collect();
        let live_ids: BTreeSet<&str> = leases.iter().map(|lease| lease.id.as_str()).collect();
        let live = |sa: &&&ike::IkeSaView| {
            sa.lease.as_ref().is_some_and(|id| live_ids.contains(id.0.as_str()))
        };
        let suspects: Vec<_> = established.iter().filter(|sa| !live(sa)).map(|sa| sa.id).collect();
        // A lease that ended in between is being cut off at this moment: only what is still there
        // at a second look lives without a lease.
        let without = if suspects.is_empty() {
            0
        } else {
            let again = self.engine.sas(PATIENCE).map_err(failed)?;
            let still =
                |id| again.iter().any(|sa| sa.id == id && sa.state == ike::SaState::Established);
            suspects.into_iter().filter(|id| still(*id)).count()
        };
        let count = |state: LeaseState| leases.iter().filter(|l| l.state == state).count();
        let mut warnings = config.warnings.clone();
        if self.authority.startup().seal_key_beside_state {
            warnings.push(
                "the CA's sealing key lies beside what it seals: pass --seal-key FILE to `up`"
                    .to_owned(),
            );
        }
        if self.authority.startup().broken_trail {
            warnings.push(
                "the audit trail was changed while the gateway did not run: see `runnel audit \
                 verify`"
                    .to_owned(),
            );
        }
        for (section, health) in self.certificate_health() {
            let bad = health.err().map(|why| format!("the certificate of {section}: {why}"));
            warnings.extend(bad);
        }
        warnings.extend(self.audit_warnings().map_err(pki_error)?);
        warnings.extend(self.ca_warnings(&ca));
        let keys = self.authority.issuer_keys(now()).into_iter();
        let issuers: Vec<_> = keys.map(|keys| views::issuer(keys, now())).collect();
        warnings.extend(issuers.iter().filter_map(views::issuer_warning));
        let uptime = clock::unix_seconds().saturating_sub(self.facts.started);
        Ok(view::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            id: self.facts.id.clone(),
            started: clock::rfc3339(self.facts.started),
            uptime_seconds: u64::try_from(uptime).unwrap_or(0),
            config: config.source.as_ref().map(|path| path.display().to_string()),
            state: self.facts.state.clone(),
            dataplane: self.dataplane(),
            listeners: self.facts.listeners.clone(),
            pools: config.pools.iter().map(views::pool).collect(),
            leases: view::LeaseCounts {
                issued: count(LeaseState::Issued),
                active: count(LeaseState::Active),
                lost: count(LeaseState::Lost),
                waiting: {
                    let kept = self.authority.pending_leases(now()).map_err(pki_error)?;
                    kept.iter().filter(|pending| pending.state() == "pending").count()
                },
            },
            ike_sas: established.len(),
            half_open: sas.iter().filter(|sa| is_half_open(sa)).count(),
            child_sas: established.iter().map(|sa| sa.children.len()).sum(),
            resumed: self.facts.resumed,
            tunnels_end_because: self.facts.unkept(),
            draining_to: self.draining_to(),
            sites: self.site_counts(&config, &sas),
            sas_without_lease: without,
            refusals: self.refusals.total(),
            issuers,
            limits_met: {
                let met = self.authority.limits_met().into_iter();
                met.map(|(kind, count)| (kind.name().to_owned(), count)).collect()
            },
            datagrams_dropped: self.engine.dropped(),
            ca_expires: ca
                .certificates
                .iter()
                .map(|certificate| certificate.not_after)
                .min()
                .map(|end| end.to_string())
                .unwrap_or_default(),
            crl_number: crl.number,
            warnings,
        })
    }
}

/// Whether a peer that came to us has not authenticated itself yet.
fn is_half_open(sa: &ike::IkeSaView) -> bool {
    sa.role == ike::SaRole::Responder
        && matches!(sa.state, ike::SaState::HalfOpen | ike::SaState::Authenticating)
}

/// The address a socket is bound to, for listings.
pub fn listener(service: &str, address: SocketAddr) -> view::Listener {
    view::Listener { service: service.to_owned(), address: address.to_string() }
}

fn value(result: impl Serialize) -> Result<Value, AdminError> {
    serde_json::to_value(result).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> AdminError {
    AdminError::new(ErrorCode::Failed, error.to_string())
}

fn pki_error(error: pki::Error) -> AdminError {
    let code = match error {
        pki::Error::NotFound { .. } => ErrorCode::NotFound,
        pki::Error::Invalid(_) => ErrorCode::BadRequest,
        _ => ErrorCode::Failed,
    };
    AdminError::new(code, error.to_string())
}

fn end_error(error: EndError) -> AdminError {
    match error {
        EndError::Pki(error) => pki_error(error),
        EndError::NoMatch(_) => AdminError::new(ErrorCode::NotFound, error.to_string()),
        EndError::NotConfirmed(_) => AdminError::new(ErrorCode::Failed, error.to_string()),
    }
}

fn no_sa(id: u64) -> AdminError {
    AdminError::new(ErrorCode::NotFound, format!("there is no IKE SA {id}; see `runnel sa list`"))
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}
