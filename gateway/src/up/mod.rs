//! `runnel up`: from nothing to a running gateway, and back to nothing.
//!
//! Everything that can be refused is looked at before anything is created; what a failing start
//! created is removed again.

mod greeting;
mod housekeeping;
mod listeners;
mod plane;
mod preflight;
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ike::crypto::{SecretBytes, default_provider};
use ike::snapshot::Snapshot;
use pki::{Authority, UnixTime};
use thiserror::Error;
use tokio::sync::watch;
use xfrm::PlaneError;

use crate::actions::{Dispatcher, EapServer, Peers, PlaneHandle, Workers};
use crate::admin;
use crate::config::Config;
use crate::driver::{EngineHandle, EventLoop};
use crate::hooks::HookSources;
use crate::lease::{Follower, LeaseEnder, LeaseRegistry, Tunnels};
use crate::live::LiveConfig;
use crate::obs::audit::{AuditFile, Bounds, Courier};
use crate::obs::{Journal, Lives, Refusals};
use crate::restart::{self, Checkpoints};
use crate::revocation::RevocationChecks;
use crate::service::{self, Admin, Facts, GatewayIdentity, Instance};
use crate::site::Sites;
use crate::state::{StateDir, StateError};
use crate::sys::{self, clock, failpoint};
use preflight::Preflight;
use threads::{End, Threads};

/// Time for peers to answer our DELETE at a full stop.
const STOP_PATIENCE: Duration = Duration::from_secs(4);

/// Threads for what the operator asks, beside those that may work for the public.
const ADMIN_THREADS: usize = 32;

/// What `up` was asked for.
pub struct Options<'a> {
    /// The checked configuration.
    pub config: Config,
    /// Where `--config` pointed, for reloads.
    pub config_path: Option<PathBuf>,
    /// State directory.
    pub state: PathBuf,
    /// File with the sealing key.
    pub seal_key: Option<PathBuf>,
    /// Tells the operator something.
    pub say: &'a dyn Fn(&str),
}

/// Why the gateway did not start (or did not stop cleanly): one sentence with what to do.
#[derive(Debug, Error)]
pub enum UpError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Sockets, interfaces, routes or firewall.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// The PKI.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// Why it could not start, or what a full stop left behind.
pub fn run(options: Options<'_>) -> Result<(), UpError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(crate::http::BLOCKING + ADMIN_THREADS)
        .thread_name("async")
        .enable_all()
        .build()
        .map_err(|error| UpError::Other(format!("cannot start threads: {error}; see ulimit -u")))?;
    let result = runtime.block_on(start_and_serve(options));
    // Connections that are still open must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn start_and_serve(options: Options<'_>) -> Result<(), UpError> {
    // Signals are caught before anything exists that a death would leave behind.
    let mut signals = Signals::catch()?;
    let mut state = StateDir::inspect(&options.state)?;
    let preflight = Preflight::look(&options.config)?;
    state.create()?;
    match start(&options, &state, preflight).await {
        Ok(running) => {
            state.keep();
            serve(&options, &mut signals, &running).await;
            stop(running, &state).await
        }
        Err(error) => {
            let _ = std::fs::remove_file(StateDir::socket(state.path()));
            state.undo();
            Err(error)
        }
    }
}

/// Everything that was started.
struct Running {
    instance: Arc<Instance>,
    threads: Threads,
    journal: Journal,
    stopped: watch::Receiver<bool>,
}

async fn start(
    options: &Options<'_>,
    state: &StateDir,
    preflight: Preflight,
) -> Result<Running, UpError> {
    failpoint::hit("up.after_state");
    let config = &options.config;
    let id = preflight.id.clone();
    let now = UnixTime::from_micros(clock::wall().0);
    let mut pki_options = pki::Options::new(service::pki_settings(config, &id));
    pki_options.seal_key = options.seal_key.clone();
    pki_options.key = config.pki.ca_key;
    pki_options.token = config.pki.ca_token.clone();
    pki_options.journal = config.pki.journal.clone();
    let authority = Arc::new(Authority::open(state.path(), pki_options, now)?);
    authority.adopt_policy(&crate::policy::text(config), &pki::Actor::System, now)?;
    failpoint::hit("up.after_authority");
    if let Some(changes) = authority.startup().replayed {
        tracing::warn!(
            changes,
            "the store had gone back in time; what was revoked, barred, spent and denied since is in it \
             again"
        );
    }
    for place in &authority.startup().mended_journals {
        tracing::warn!(
            place = %place.display(),
            "the revocation journal was damaged and is written anew from its other place; what was \
             there lies beside it as .damaged: look at the disk"
        );
    }
    let names = service::server_names(config, &id);
    let identity = Arc::new(
        GatewayIdentity::open(Arc::clone(&authority), names, now).map_err(UpError::Other)?,
    );

    let engine_handle = EngineHandle::default();
    let plane_handle = PlaneHandle::default();
    let (checkpoints, unkept) = match Checkpoints::of(&config.gateway, state.path()) {
        Ok(checkpoints) => (checkpoints, None),
        Err(why) => {
            tracing::info!("tunnels end with this process: {why}");
            (Checkpoints::none(), Some(why))
        }
    };
    let sequences = checkpoints.sequences();
    let saved = checkpoints.load();
    let goes_on = !saved.is_empty();
    let mut enforcer =
        plane::bring_up(config, &preflight, &engine_handle, &plane_handle, sequences, goes_on)?;
    failpoint::hit("up.after_bring_up");
    let capabilities = enforcer.plane().capabilities();
    let interface = enforcer.plane().interface().to_owned();
    // From here on something exists outside this process: whatever fails must take it down.
    let built = build(Parts {
        options,
        state,
        preflight,
        authority,
        identity,
        engine: engine_handle.clone(),
        plane: plane_handle.clone(),
        capabilities,
        interface,
        checkpoints,
        unkept,
        saved,
    });
    match built {
        Ok((running, event_loop)) => {
            let mut running = running;
            let instance = Arc::clone(&running.instance);
            running.threads.plane(enforcer, &plane_handle, &engine_handle, &instance)?;
            running.threads.engine(event_loop, &instance)?;
            running.threads.sites(Arc::clone(&instance))?;
            if let Some(to) = &config.gateway.redirect_to {
                instance.redirect(Some(to), false);
            }
            instance.note("gateway.start", Some(env!("CARGO_PKG_VERSION")));
            failpoint::hit("up.before_ready");
            Ok(running)
        }
        // The next start, which corrects what was wrong, goes on with the tunnels.
        Err(error) if goes_on => {
            if let Err(second) = enforcer.detach() {
                tracing::warn!(error = %second, "data plane not left in order");
            }
            Err(error)
        }
        Err(error) => {
            for leftover in enforcer.shutdown() {
                tracing::warn!("left behind by a failed start: {leftover}");
            }
            Err(error)
        }
    }
}

struct Parts<'a> {
    options: &'a Options<'a>,
    state: &'a StateDir,
    preflight: Preflight,
    authority: Arc<Authority>,
    identity: Arc<GatewayIdentity>,
    engine: EngineHandle,
    plane: PlaneHandle,
    capabilities: xfrm::model::Capabilities,
    interface: String,
    checkpoints: Checkpoints,
    unkept: Option<String>,
    saved: Vec<Snapshot>,
}

fn build(parts: Parts<'_>) -> Result<(Running, EventLoop), UpError> {
    let Parts { options, state, preflight, authority, identity, engine, plane, .. } = parts;
    let other = |error: &dyn std::fmt::Display| UpError::Other(error.to_string());
    let Preflight { id, kind, why, keys, externals, sockets, enrol, status, hooks, hook_sources } =
        preflight;
    let config = LiveConfig::new(options.config.clone());
    let registry = Arc::new(LeaseRegistry::default());
    let tunnels = Tunnels::new(engine.clone(), plane.clone(), Arc::clone(&registry));
    let ender = LeaseEnder::new(Arc::clone(&authority), tunnels.clone());
    let sites = Arc::new(Sites::default());
    let refusals = Arc::new(Refusals::default());
    let lives = Arc::new(Lives::default());
    let journal = Journal::default();
    let provider = default_provider();
    let peers = Arc::new(Peers::new(
        Arc::clone(&authority),
        Arc::clone(&registry),
        config.clone(),
        keys,
        provider,
    ));
    let checks = RevocationChecks::new(tokio::runtime::Handle::current());
    peers.replace_externals(externals);
    peers.check_with(checks, ender.clone());
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let workers = Arc::new(Workers::start(cores).map_err(|error| other(&error))?);
    let eap = crate::http::eap_config(Arc::clone(&authority), identity.tls())
        .map_err(|error| other(&error))?;
    let eap = EapServer::start(eap, Arc::clone(&peers)).map_err(|error| other(&error))?;
    let dispatcher = Dispatcher::new(
        provider,
        workers,
        plane.clone(),
        Arc::clone(&peers),
        eap,
        Arc::<GatewayIdentity>::clone(&identity),
        engine.clone(),
    );
    // Tokens of before a crash must be made again after it.
    let crash_secret = SecretBytes::copy_from(authority.secret("crash tokens").as_ref());
    state.forget("crash.key");
    let engine_config =
        service::engine_config(&options.config, &id, &identity, &parts.capabilities, &crash_secret)
            .map(|engine| peers.externals().asked_for(engine))
            .map_err(UpError::Other)?;
    let checkpoints = parts.checkpoints;
    let serves = |ours: std::net::IpAddr| {
        sockets.addresses().iter().any(|at| at.ip() == ours || at.ip().is_unspecified())
    };
    // What ran out while nobody looked has ended before anything goes on with it.
    let started = UnixTime::from_micros(clock::wall().0);
    if let Err(error) = authority.expire_due(started) {
        tracing::error!(%error, "leases that ran out are not all ended yet; it is tried again");
    }
    let resumed = restart::choose(parts.saved, &checkpoints, &authority, &peers, &registry, serves);
    let (protocol, resumed) =
        restart::engine(engine_config, provider, seed()?, resumed, &checkpoints)
            .map_err(|error| other(&error))?;
    // At once, because a lease that seems lost has its time only.
    // Several SAs of a lease are one.
    let leases: BTreeSet<String> =
        resumed.iter().map(|saved| saved.grant.lease.0.clone()).collect();
    let leases: Vec<String> = leases.into_iter().collect();
    let again = authority.reconnected(&leases, started);
    tracing::debug!(leases = leases.len(), again, "leases with a tunnel again");
    let receiving = sockets.of_port(crate::driver::IKE_PORT)?;

    let couriers = options.config.audit.sinks.iter();
    let couriers = couriers.map(|sink| Courier::new(sink, Arc::clone(&authority), &id));
    let couriers = couriers.collect::<Result<Vec<_>, _>>().map_err(UpError::Other)?;
    let sinks = couriers.iter().map(Courier::sink).collect();

    let (stop, stopped) = watch::channel(false);
    let gateway_addresses = xfrm_gateways(&options.config);
    let page = listeners::bind_page(&gateway_addresses)?;
    let socket = StateDir::socket(state.path());
    let admin_listener = admin::bind(&socket).map_err(|error| {
        UpError::Other(format!(
            "cannot create the admin socket {}: {error}; check the path's length (at most 107 \
             bytes) and the directory's mode",
            socket.display()
        ))
    })?;
    let mut listening: Vec<_> =
        sockets.addresses().into_iter().map(|a| service::listener("ike", a)).collect();
    listening.push(service::listener("enrol", listeners::address(&enrol.0)?));
    listening.push(service::listener("status", listeners::address(&status)?));
    if let Some((listener, _)) = &hooks {
        listening.push(service::listener("hooks", listeners::address(listener)?));
    }
    for listener in &page {
        listening.push(service::listener("page", listeners::address(listener)?));
    }
    let facts = Facts {
        id: id.clone(),
        state: state.path().display().to_string(),
        started: clock::unix_seconds(),
        dataplane: admin::view::DataplaneStatus {
            kind: kind.name().to_owned(),
            interface: parts.interface,
            why,
            offload: options.config.gateway.offload.name().to_owned(),
            drops: BTreeMap::new(),
            counters: BTreeMap::new(),
        },
        capabilities: parts.capabilities,
        crash_secret,
        listeners: listening,
        config_path: options.config_path.clone(),
        unkept: parts.unkept,
        keeping_fails: checkpoints.failing(),
        resumed: resumed.len(),
    };
    let instance = Arc::new(Instance {
        authority: Arc::clone(&authority),
        engine: engine.clone(),
        plane,
        ender,
        peers: Arc::clone(&peers),
        refusals: Arc::clone(&refusals),
        lives: Arc::clone(&lives),
        config,
        identity: Arc::clone(&identity),
        facts,
        sites: Arc::clone(&sites),
        hooks: Arc::new(HookSources::new(hook_sources)),
        certificates: std::sync::Mutex::default(),
        sinks,
        drain: std::sync::Mutex::default(),
        reloading: std::sync::Mutex::default(),
        stop,
        keep: std::sync::atomic::AtomicBool::new(false),
    });
    // Before anybody can ask for a lease: whether the trail can be written where it must be.
    let path = state.path().join(service::AUDIT_FILE);
    let bounds = Bounds { size: options.config.audit.file_size, files: options.config.audit.files };
    let mut audit = AuditFile::open(&path, bounds, &authority).map_err(UpError::Other)?;
    instance.gate_issuance(audit.follow(&authority).err().as_ref());
    listeners::serve(&instance, enrol, status, page, &stopped)?;
    if let Some((listener, certificate)) = hooks {
        listeners::serve_hooks(&instance, listener, certificate, &stopped)?;
    }
    let handler = Arc::new(Admin(Arc::clone(&instance)));
    tokio::spawn(admin::serve(admin_listener, handler, stopped.clone()));

    let mut threads = Threads::default();
    threads.couriers(couriers)?;
    threads.receiver(receiving, &engine)?;
    let follower = Follower::new(Arc::clone(&authority), tunnels, refusals, lives, sites);
    threads.follower(follower, resumed, &journal)?;
    threads.housekeeping(Arc::clone(&instance), audit)?;
    let event_loop =
        EventLoop::new(protocol, engine, sockets, dispatcher, peers, journal.clone(), checkpoints);
    Ok((Running { instance, threads, journal, stopped }, event_loop))
}

/// Says that it runs, then waits until it shall stop.
async fn serve(options: &Options<'_>, signals: &mut Signals, running: &Running) {
    let instance = &running.instance;
    greeting::greet(options, instance);
    (options.say)("ready");
    sys::notify("READY=1");
    let mut stopped = running.stopped.clone();
    loop {
        tokio::select! {
            signal = signals.next() => {
                if signal == Signal::Stop {
                    instance.note("gateway.stop", Some("signal"));
                    // Whatever was asked for before: a signal ends every tunnel.
                    instance.keep.store(false, Ordering::Relaxed);
                    instance.stop.send_replace(true);
                    return;
                }
                sys::notify("RELOADING=1");
                let handler = Admin(Arc::clone(instance));
                let request = admin::proto::Request::Reload;
                if let Err(error) = admin::Handler::handle(&handler, None, request).await {
                    tracing::error!(error = %error.message, "reload failed; correct the configuration and reload again");
                }
                sys::notify("READY=1");
            }
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// DELETE to every peer, then everything away; or all of it left for the next start.
async fn stop(running: Running, state: &StateDir) -> Result<(), UpError> {
    tracing::info!("stopping");
    sys::notify("STOPPING=1");
    let Running { instance, threads, journal, .. } = running;
    let plane = instance.plane.clone();
    let engine = instance.engine.clone();
    let end = match instance.keep.load(Ordering::Relaxed) {
        true => End::Keep,
        false => End::Full(STOP_PATIENCE),
    };
    let done =
        tokio::task::spawn_blocking(move || threads.stop(&engine, &plane, &journal, end)).await;
    let _ = std::fs::remove_file(StateDir::socket(state.path()));
    match done {
        Ok(Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(Err(error)) => Err(UpError::Other(format!(
            "stopped, but something was left behind: {error}; starting and stopping again \
             reconciles it"
        ))),
        Err(error) => Err(UpError::Other(format!("stopping failed: {error}"))),
    }
}

/// The gateway's own addresses on the tunnel interface.
fn xfrm_gateways(config: &Config) -> Vec<std::net::IpAddr> {
    crate::policy::tunnel_networks(config).iter().map(|network| network.gateway).collect()
}

/// 256 bits for the engine, from the operating system.
fn seed() -> Result<[u8; 32], UpError> {
    let mut seed = [0u8; 32];
    let mut filled = 0;
    while let Some(rest) = seed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| UpError::Other(format!("no randomness from the kernel: {error}")))?;
    }
    Ok(seed)
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Stop,
    Reload,
}

/// SIGTERM and SIGINT stop, SIGHUP reloads.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> Result<Self, UpError> {
        use tokio::signal::unix::{SignalKind, signal};
        let catch = |kind| {
            signal(kind).map_err(|error| UpError::Other(format!("cannot catch signals: {error}")))
        };
        Ok(Self {
            term: catch(SignalKind::terminate())?,
            int: catch(SignalKind::interrupt())?,
            hup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::Stop,
            _ = self.int.recv() => Signal::Stop,
            _ = self.hup.recv() => Signal::Reload,
        }
    }
}
