//! What became of each lease's tunnels, for `runnel sa show`: when they came up, were rekeyed,
//! moved and ended, and what was refused within them. The latest of each lease, in memory only;
//! the audit trail is what lasts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ike::event::Event;
use ike::io::{IkeSaId, LeaseId};

use super::plain::plain;
use crate::admin::view::Moment;
use crate::sys::clock::rfc3339;

/// Moments kept of each lease.
const PER_LEASE: usize = 40;

/// Leases remembered; the one that was heard of first is forgotten first.
const LEASES: usize = 4096;

#[derive(Debug, Default)]
struct Inner {
    of: BTreeMap<LeaseId, VecDeque<Moment>>,
    order: VecDeque<LeaseId>,
    /// Whose IKE SAs are up.
    owner: BTreeMap<IkeSaId, LeaseId>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Lives {
    inner: Mutex<Inner>,
}

impl Lives {
    /// Remembers that an IKE SA of the earlier process goes on.
    pub fn resumed(&self, ike: IkeSaId, lease: &LeaseId, at: i64) {
        let mut inner = self.lock();
        inner.owner.insert(ike, lease.clone());
        inner.remember(lease, at, format!("IKE SA {} goes on after a restart", ike.0));
    }

    /// Remembers an event that happened at this second since the epoch.
    pub fn note(&self, event: &Event, at: i64) {
        let mut inner = self.lock();
        match event {
            Event::IkeUp { ike, remote, lease, suite, .. } => {
                inner.owner.insert(*ike, lease.clone());
                let what = format!("IKE SA {} is up with {remote}: {suite}", ike.0);
                inner.remember(lease, at, what);
            }
            Event::IkeDown { ike, lease, reason, .. } => {
                let owner = inner.owner.remove(ike).or_else(|| lease.clone());
                if let Some(lease) = owner {
                    inner.remember(&lease, at, format!("IKE SA {} ended: {reason}", ike.0));
                }
            }
            Event::ChildUp { child, lease, suite, ts_local, ts_remote, rekeys, .. } => {
                let what = match rekeys {
                    Some(old) => format!("child {} replaces child {}: {suite}", child.0, old.0),
                    None => format!("child {}: {suite}, {ts_remote} to {ts_local}", child.0),
                };
                inner.remember(lease, at, what);
            }
            Event::ChildDown { child, lease, reason, .. } => {
                inner.remember(lease, at, format!("child {} ended: {reason}", child.0));
            }
            Event::Moved { ike, from, to, .. } => {
                inner.about(*ike, at, format!("the peer moved from {from} to {to}"));
            }
            Event::Refused(refusal) => {
                if let Some(ike) = refusal.ike {
                    inner.about(ike, at, format!("{}: {refusal}", refusal.code));
                }
            }
            _ => {}
        }
    }

    /// What is remembered of a lease, oldest first.
    pub fn of(&self, lease: &str) -> Vec<Moment> {
        let inner = self.lock();
        let life = inner.of.get(&LeaseId(lease.to_owned()));
        life.map(|life| life.iter().cloned().collect()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn about(&mut self, ike: IkeSaId, at: i64, what: String) {
        if let Some(lease) = self.owner.get(&ike).cloned() {
            self.remember(&lease, at, what);
        }
    }

    fn remember(&mut self, lease: &LeaseId, at: i64, what: String) {
        if !self.of.contains_key(lease) {
            if self.order.len() >= LEASES
                && let Some(oldest) = self.order.pop_front()
            {
                self.of.remove(&oldest);
            }
            self.order.push_back(lease.clone());
        }
        let life = self.of.entry(lease.clone()).or_default();
        if life.len() >= PER_LEASE {
            life.pop_front();
        }
        life.push_back(Moment { time: rfc3339(at), what: plain(&what) });
    }
}

#[cfg(test)]
mod tests {
    use ike::event::{Blame, CloseReason, Refusal};

    use super::*;

    fn lease(number: usize) -> LeaseId {
        LeaseId(format!("r-{number}"))
    }

    fn up(ike: u64, number: usize) -> Event {
        Event::IkeUp {
            ike: IkeSaId(ike),
            spis: (1, 2),
            local: "198.51.100.1:4500".parse().unwrap(),
            remote: "192.0.2.1:4500".parse().unwrap(),
            nat: false,
            identity: "CN=ci".to_owned(),
            lease: lease(number),
            role: "builder".to_owned(),
            suite: "aes256gcm16-prfsha384-ecp384".parse().unwrap(),
            addresses: Vec::new(),
            connection: None,
        }
    }

    #[test]
    fn a_life_goes_on_over_a_rekey_and_names_what_was_refused_in_it() {
        let lives = Lives::default();
        lives.note(&up(1, 7), 0);
        lives.note(&up(2, 7), 60);
        let ended = Event::IkeDown {
            ike: IkeSaId(1),
            lease: Some(lease(7)),
            reason: CloseReason::Rekeyed,
            connection: None,
        };
        lives.note(&ended, 60);
        let refusal = Refusal {
            ike: Some(IkeSaId(2)),
            remote: None,
            identity: None,
            blame: Blame::Incompatible,
            notify: None,
            code: "no_proposal_chosen",
            what: "offers\nnothing".to_owned(),
            fix: "add one".to_owned(),
        };
        lives.note(&Event::Refused(refusal.clone()), 70);
        // Of a handshake nobody knows yet.
        lives.note(&Event::Refused(Refusal { ike: Some(IkeSaId(99)), ..refusal }), 71);

        let life: Vec<_> = lives.of("r-7").into_iter().map(|moment| moment.what).collect();
        assert_eq!(life.len(), 4, "{life:?}");
        assert_eq!(life[2], "IKE SA 1 ended: rekeyed");
        assert_eq!(life[3], "no_proposal_chosen: offers\\nnothing; add one");
    }

    #[test]
    fn memory_is_bounded_in_leases_and_in_moments() {
        let lives = Lives::default();
        for number in 0..LEASES + 10 {
            lives.note(&up(1, number), 0);
        }
        assert!(lives.of("r-0").is_empty());
        for _ in 0..PER_LEASE + 10 {
            lives.note(&up(1, LEASES), 0);
        }
        assert_eq!(lives.of(&format!("r-{LEASES}")).len(), PER_LEASE);
        assert_eq!(lives.lock().of.len(), LEASES);
    }
}
