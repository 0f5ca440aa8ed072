//! A gateway's leases: who has which address, until when, and the IKE SAs that live under it.
//!
//! Kept as a driver keeps them, from what the engine asks and reports and from nothing else. So an
//! SA whose beginning or end is not reported, or one that outlives its lease, is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ike::io::{IkeSaId, LeaseId};
use ike::{Engine, Event, Now, SaState, Timestamp, WallTime};

/// A lease without an SA is kept this long: longer than the handshake that opened it may take.
const UNUSED: Duration = Duration::from_secs(60);

/// One client's place at a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name; a client that comes back after its lease has ended gets another.
    pub id: LeaseId,
    /// Ties SAs and filter together.
    pub reqid: u32,
    /// The virtual address.
    pub address: IpAddr,
    /// It ends then.
    pub deadline: WallTime,
    /// IKE SAs reported up and not yet down.
    pub sas: BTreeSet<IkeSaId>,
    used: Timestamp,
}

/// The leases of one gateway.
#[derive(Debug, Default)]
pub struct Pool {
    network: u8,
    held: BTreeMap<String, Lease>,
    opened: u32,
}

/// Whether a lease is, or was, one of that client.
pub fn belongs(lease: &LeaseId, client: &str) -> bool {
    lease.0.rsplit_once('/').is_some_and(|(name, _)| name == client)
}

impl Pool {
    /// An empty one of the addresses 10.77.`network`.2 and up.
    pub fn new(network: u8) -> Self {
        Self { network, ..Self::default() }
    }

    /// The lease of a client, if there is one.
    pub fn of(&self, client: &str) -> Option<&Lease> {
        self.held.get(client)
    }

    /// An authenticated client's lease lasts this long from now on; it is opened if there is none.
    pub fn open(&mut self, now: Now, client: &str, life: Duration) -> &Lease {
        self.held.retain(|_, lease| lease.deadline > now.wall);
        let taken: BTreeSet<IpAddr> = self.held.values().map(|lease| lease.address).collect();
        let free = (2..=u8::MAX).map(|host| IpAddr::from([10, 77, self.network, host]));
        let address = free.into_iter().find(|address| !taken.contains(address));
        let opened = &mut self.opened;
        let lease = self.held.entry(client.to_owned()).or_insert_with(|| {
            *opened += 1;
            Lease {
                id: LeaseId(format!("{client}/{opened}")),
                reqid: *opened,
                // There are fewer clients than addresses.
                address: address.unwrap_or(IpAddr::from([0, 0, 0, 0])),
                deadline: now.wall,
                sas: BTreeSet::new(),
                used: now.mono,
            }
        });
        lease.used = now.mono;
        // Also when the clock was set back meanwhile: no end comes nearer unasked.
        lease.deadline = lease.deadline.max(after(now, life));
        lease
    }

    /// Sets a lease's end; none when there is no such lease.
    pub fn set_end(&mut self, client: &str, deadline: WallTime) -> Option<&Lease> {
        let lease = self.held.get_mut(client)?;
        lease.deadline = deadline;
        Some(lease)
    }

    /// Ends a lease: its address is free.
    pub fn end(&mut self, client: &str) -> Option<LeaseId> {
        self.held.remove(client).map(|lease| lease.id)
    }

    /// Notes what the engine reports, and says what must not be.
    pub fn event(&mut self, now: Now, event: &Event) -> Option<String> {
        match event {
            Event::IkeUp { ike, lease, addresses, .. } => {
                let Some(held) = self.held.values_mut().find(|held| held.id == *lease) else {
                    return Some(format!("{ike:?} came up under {}, which has ended", lease.0));
                };
                held.sas.insert(*ike);
                (*addresses != [held.address])
                    .then(|| format!("{ike:?} has {addresses:?} instead of {}", held.address))
            }
            Event::IkeDown { ike, lease: Some(lease), .. } => {
                if let Some(held) = self.held.values_mut().find(|held| held.id == *lease) {
                    held.sas.remove(ike);
                    held.used = now.mono;
                }
                None
            }
            _ => None,
        }
    }

    /// What a new process finds.
    pub fn restarted(&mut self, engine: &Engine) {
        for lease in self.held.values_mut() {
            let mine = engine.sas().filter(|sa| {
                sa.state == SaState::Established && sa.lease.as_ref() == Some(&lease.id)
            });
            lease.sas = mine.map(|sa| sa.id).collect();
        }
    }

    /// Lets go of leases that have ended or that nobody uses.
    pub fn tidy(&mut self, now: Now) {
        self.held.retain(|_, lease| {
            let idle = lease.sas.is_empty() && now.mono.since(lease.used) > UNUSED;
            lease.deadline > now.wall && !idle
        });
    }

    /// What is wrong between these leases and the engine's SAs.
    pub fn faults(&self, now: Now, engine: &Engine) -> Vec<String> {
        let mut faults = Vec::new();
        for sa in engine.sas().filter(|sa| sa.state == SaState::Established) {
            let Some(lease) = &sa.lease else {
                faults.push(format!("{:?} is established without a lease", sa.id));
                continue;
            };
            match self.held.values().find(|held| held.id == *lease) {
                // What a crossing rekey made has no children and was not reported, unless it wins.
                Some(held) if !held.sas.contains(&sa.id) && !sa.children.is_empty() => {
                    faults.push(format!("{:?} lives under {} without report", sa.id, lease.0));
                }
                None => faults.push(format!("{:?} lives, and {} has ended", sa.id, lease.0)),
                Some(_) => {}
            }
            if sa.deadline.is_none_or(|deadline| deadline < now.wall) {
                faults.push(format!("{:?} is past its end", sa.id));
            }
        }
        faults
    }

    /// Every client that holds an address, and its IKE SAs.
    pub fn held(&self) -> impl Iterator<Item = (&str, &BTreeSet<IkeSaId>)> {
        self.held.iter().map(|(client, lease)| (client.as_str(), &lease.sas))
    }
}

/// The wall time so much later.
pub fn after(now: Now, span: Duration) -> WallTime {
    let span = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    WallTime(now.wall.0.saturating_add(span))
}
