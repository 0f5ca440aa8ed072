//! What happens by time: leases end, the audit file follows the store, certificates are renewed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::obs::audit::AuditFile;
use crate::service::Instance;

/// Leases and audit.
const TICK: Duration = Duration::from_millis(250);

/// The gateway's own certificate, which a change of the CA makes due at once.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// The answers stapled to the gateway's certificate, which are good for five minutes.
const STAPLE_EVERY: Duration = Duration::from_secs(60);

/// The standing of external certificates, most of which is known from the last time.
const RECHECK_EVERY: Duration = Duration::from_secs(5);

/// Longest copying of the last audit records at a stop; the next start goes on there.
const LAST_RECORDS: Duration = Duration::from_secs(3);

/// Forgetting ended leases; each time a bounded number of them.
const PRUNE_EVERY: Duration = Duration::from_secs(10);

/// Works until `stop` becomes true, then copies the last audit events.
pub(super) fn run(instance: &Arc<Instance>, mut audit: AuditFile, stop: &AtomicBool) {
    let mut renewed = Instant::now();
    let mut stapled = Instant::now();
    let mut checked = Instant::now();
    let mut pruned = Instant::now();
    let mut troubled = Troubles::default();
    let tokens = Tokens::default();
    tokens.probe(instance);
    while !stop.load(Ordering::Relaxed) {
        troubled.say("leases", instance.ender.expire().map_err(|e| e.to_string()));
        troubled.say("checkpoint", instance.sign_audit());
        let followed = audit.follow(&instance.authority);
        instance.gate_issuance(followed.as_ref().err());
        troubled.say("audit", followed);
        if pruned.elapsed() >= PRUNE_EVERY {
            pruned = Instant::now();
            troubled.say("pruning", instance.prune());
            troubled.say("audit retention", instance.prune_audit(audit.position()));
        }
        if renewed.elapsed() >= RENEW_EVERY {
            renewed = Instant::now();
            troubled.say("identity", instance.renew_identity().map_err(|e| e.message));
            troubled.say("authorities", instance.prune_cas());
            tokens.probe(instance);
        }
        if stapled.elapsed() >= STAPLE_EVERY {
            stapled = Instant::now();
            troubled.say("staples", instance.renew_staples().map_err(|e| e.message));
        }
        if checked.elapsed() >= RECHECK_EVERY {
            checked = Instant::now();
            instance.peers.recheck_externals();
        }
        std::thread::sleep(TICK);
    }
    troubled.say("checkpoint", instance.sign_audit_because("stop"));
    troubled.say("audit", audit.finish(&instance.authority, LAST_RECORDS));
}

/// Looks at the CA's keys in tokens beside everything else: a token may hang.
#[derive(Default)]
struct Tokens {
    busy: Arc<AtomicBool>,
    /// What was said the last time.
    troubled: Arc<Mutex<Troubles>>,
}

impl Tokens {
    fn probe(&self, instance: &Arc<Instance>) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        // Also when it cannot be started, or panics.
        let idle = IdleAfter(Arc::clone(&self.busy));
        let troubled = Arc::clone(&self.troubled);
        let instance = Arc::clone(instance);
        let started = std::thread::Builder::new().name("tokens".to_owned()).spawn(move || {
            let _idle = idle;
            let probed = instance.probe_ca_keys();
            troubled.lock().unwrap_or_else(PoisonError::into_inner).say("the CA's key", probed);
        });
        if let Err(error) = started {
            tracing::error!(%error, "the CA's keys are not looked at");
        }
    }
}

/// Clears a flag when it is dropped.
struct IdleAfter(Arc<AtomicBool>);

impl Drop for IdleAfter {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Logs a trouble when it begins and when it ends, not four times a second.
#[derive(Default)]
struct Troubles {
    current: std::collections::BTreeMap<&'static str, String>,
}

impl Troubles {
    fn say<T>(&mut self, what: &'static str, result: Result<T, String>) {
        match result {
            Ok(_) => {
                if self.current.remove(what).is_some() {
                    tracing::info!(what, "works again");
                }
            }
            Err(error) => {
                if self.current.get(what) != Some(&error) {
                    tracing::error!(what, %error, "housekeeping failed; it is tried again");
                    self.current.insert(what, error);
                }
            }
        }
    }
}
