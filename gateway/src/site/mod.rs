//! Sites: keeps the tunnels to other gateways up.
//!
//! [`Sites`] follows the engine's events and decides when a site is to be connected (again);
//! what is decided is carried out by [`run`], on its own thread, because names are resolved there.
//! It never decides what a site may have: that is `actions::peers`.

mod backoff;
mod connect;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ike::event::{CloseReason, Event};
use ike::io::{ChildSaId, IkeSaId};

use crate::policy;

pub use backoff::Backoff;
pub use connect::run;

/// An attempt that has neither succeeded nor failed by then is given up: longer than all
/// retransmissions together.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(120);

/// An IKE SA that has no child by then carries nothing, and is made anew.
const CHILDLESS_LIMIT: Duration = Duration::from_secs(10);

/// A tunnel that has been up so long was no failure: the next attempt after it comes soon.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Redirects that are followed in [`REDIRECT_PERIOD`] (RFC 5685 10).
const MAX_REDIRECTS: usize = 5;

/// See [`MAX_REDIRECTS`].
const REDIRECT_PERIOD: Duration = Duration::from_secs(300);

/// What is known of one site's tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteState {
    /// It is to be connected at this instant.
    Due(Instant),
    /// An attempt is under way since then.
    Connecting(Instant),
    /// It has an IKE SA.
    Up,
    /// The other side connects.
    Waiting,
}

/// One site, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteReport {
    /// Where it stands.
    pub state: SiteState,
    /// Why the last attempt or tunnel ended.
    pub last_error: Option<String>,
    /// Attempts since the tunnel was last up.
    pub attempts: u32,
}

#[derive(Debug)]
struct Held {
    state: SiteState,
    /// Established IKE SAs with their children.
    ikes: BTreeMap<IkeSaId, BTreeSet<ChildSaId>>,
    backoff: Backoff,
    up_since: Option<Instant>,
    /// Since when an SA has no child.
    childless: Option<Instant>,
    last_error: Option<String>,
    /// Where it sent us, and which gateway did (RFC 5685).
    target: Option<String>,
    aimed_at: Option<IpAddr>,
    redirected_from: Option<IpAddr>,
    /// When it did, lately.
    redirects: Vec<Instant>,
}

impl Held {
    fn new(state: SiteState) -> Self {
        Self {
            state,
            ikes: BTreeMap::new(),
            backoff: Backoff::default(),
            up_since: None,
            childless: None,
            last_error: None,
            target: None,
            aimed_at: None,
            redirected_from: None,
            redirects: Vec::new(),
        }
    }
}

/// What is to be done for a site now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Connect it.
    Connect(String),
    /// Close an IKE SA that carries nothing.
    Close(IkeSaId),
}

/// The sites of this instance. Shared by the thread that follows events, the thread that connects,
/// and whoever lists them.
#[derive(Debug, Default)]
pub struct Sites {
    inner: Mutex<BTreeMap<String, Held>>,
    held: AtomicBool,
}

impl Sites {
    /// Acts on one event of the engine.
    pub fn event(&self, event: &Event, now: Instant) {
        let mut inner = self.lock();
        match event {
            Event::IkeUp { ike, role, .. } => {
                let Some(name) = policy::site_of_role(role) else { return };
                let held =
                    inner.entry(name.to_owned()).or_insert_with(|| Held::new(SiteState::Waiting));
                held.ikes.insert(*ike, BTreeSet::new());
                held.state = SiteState::Up;
                held.up_since.get_or_insert(now);
                held.childless = Some(now);
            }
            Event::ChildUp { ike, child, .. } => {
                if let Some(held) = inner.values_mut().find(|held| held.ikes.contains_key(ike)) {
                    held.ikes.entry(*ike).or_default().insert(*child);
                    held.childless = None;
                    held.last_error = None;
                }
            }
            Event::ChildDown { child, .. } => {
                for held in inner.values_mut() {
                    let had = held.ikes.values_mut().any(|children| children.remove(child));
                    if had && held.ikes.values().all(BTreeSet::is_empty) {
                        held.childless = Some(now);
                    }
                }
            }
            Event::Redirected { connection, to, .. } => {
                if let Some(held) = inner.get_mut(connection) {
                    redirected(held, crate::service::redirect_host(to), now);
                }
            }
            Event::IkeDown { ike, reason: CloseReason::Redirected, .. } => {
                for held in inner.values_mut() {
                    held.ikes.remove(ike);
                }
            }
            Event::IkeDown { ike, reason, connection, .. } => {
                let by_sa = |held: &&mut Held| held.ikes.contains_key(ike);
                if let Some(held) = inner.values_mut().find(by_sa) {
                    down(held, *ike, reason, now);
                } else if let Some(held) = connection.as_ref().and_then(|n| inner.get_mut(n)) {
                    // An attempt that never came up. Another may have.
                    if held.ikes.is_empty() {
                        fail(held, reason.to_string(), now);
                    }
                }
            }
            _ => {}
        }
    }

    /// What is due, given the sites configured now as (name, whether we connect).
    pub fn due(&self, configured: &[(String, bool)], now: Instant) -> Vec<Step> {
        if self.held.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut inner = self.lock();
        inner.retain(|name, held| {
            !held.ikes.is_empty() || configured.iter().any(|(known, _)| known == name)
        });
        let mut steps = Vec::new();
        for (name, connect) in configured {
            let first = if *connect { SiteState::Due(now) } else { SiteState::Waiting };
            let held = inner.entry(name.clone()).or_insert_with(|| Held::new(first));
            match held.state {
                SiteState::Due(at) if *connect && at <= now => {
                    held.state = SiteState::Connecting(now);
                    held.backoff.attempt();
                    steps.push(Step::Connect(name.clone()));
                }
                SiteState::Due(_) if !*connect => held.state = SiteState::Waiting,
                SiteState::Waiting if *connect => held.state = SiteState::Due(now),
                SiteState::Connecting(since) if now.duration_since(since) >= ATTEMPT_LIMIT => {
                    fail(held, "the attempt took too long".to_owned(), now);
                }
                _ => {}
            }
            if held.childless.is_some_and(|at| now.duration_since(at) >= CHILDLESS_LIMIT) {
                held.childless = None;
                steps.extend(held.ikes.keys().copied().map(Step::Close));
            }
        }
        steps
    }

    /// An attempt ended before the engine was asked.
    pub fn failed(&self, site: &str, why: String, now: Instant) {
        if let Some(held) = self.lock().get_mut(site) {
            fail(held, why, now);
        }
    }

    /// Connects a site at once, whatever its backoff.
    pub fn connect_now(&self, site: &str, now: Instant) {
        let mut inner = self.lock();
        if let Some(held) = inner.get_mut(site).filter(|held| held.ikes.is_empty()) {
            held.backoff = Backoff::default();
            held.state = SiteState::Due(now);
        }
    }

    /// Where a site sent us instead of its configured remote, and which gateway did.
    pub fn target(&self, site: &str) -> (Option<String>, Option<IpAddr>) {
        let inner = self.lock();
        let held = inner.get(site);
        held.map(|held| (held.target.clone(), held.redirected_from)).unwrap_or_default()
    }

    /// An attempt goes to this address.
    pub fn aimed(&self, site: &str, address: IpAddr) {
        if let Some(held) = self.lock().get_mut(site) {
            held.aimed_at = Some(address);
        }
    }

    /// Nothing is connected until [`Self::go_on`]: the configuration is changing.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// The opposite of [`Self::hold`].
    pub fn go_on(&self) {
        self.held.store(false, Ordering::Relaxed);
    }

    /// One site.
    pub fn report(&self, site: &str) -> Option<SiteReport> {
        self.lock().get(site).map(|held| SiteReport {
            state: held.state.clone(),
            last_error: held.last_error.clone(),
            attempts: held.backoff.attempts(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn down(held: &mut Held, ike: IkeSaId, reason: &CloseReason, now: Instant) {
    let children = held.ikes.remove(&ike).unwrap_or_default();
    if *reason == CloseReason::Rekeyed {
        // Its children live on under the successor, which came up just before.
        if let Some(mut successor) = held.ikes.last_entry() {
            successor.get_mut().extend(children);
            held.childless = None;
        }
        return;
    }
    if !held.ikes.is_empty() {
        return;
    }
    let stable = held.up_since.is_some_and(|since| now.duration_since(since) >= STABLE_AFTER);
    if stable {
        held.backoff = Backoff::default();
    }
    fail(held, reason.to_string(), now);
}

/// Goes where the peer sent us, unless it does so all the time (RFC 5685 5).
fn redirected(held: &mut Held, to: Option<String>, now: Instant) {
    held.redirects.retain(|at| now.duration_since(*at) < REDIRECT_PERIOD);
    let Some(to) = to else {
        return fail(held, "sent to a gateway that is no host".to_owned(), now);
    };
    if held.redirects.len() >= MAX_REDIRECTS {
        let minutes = REDIRECT_PERIOD.as_secs() / 60;
        let why = format!("sent on {MAX_REDIRECTS} times in {minutes} minutes, now to {to}");
        return fail(held, why, now);
    }
    held.redirects.push(now);
    held.redirected_from = held.aimed_at;
    held.target = Some(to);
    held.state = SiteState::Due(now);
}

fn fail(held: &mut Held, why: String, now: Instant) {
    held.target = None;
    held.redirected_from = None;
    held.up_since = None;
    held.childless = None;
    held.last_error = Some(why);
    held.state = SiteState::Due(now + held.backoff.delay());
}

#[cfg(test)]
mod tests;
