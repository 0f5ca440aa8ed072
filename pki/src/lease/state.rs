//! The life of a lease as a pure function.
//!
//! ```text
//!            connected            disconnected
//!  issued ─────────────► active ◄──────────────► lost        (connected brings it back)
//!    │ never connected     │ certificate ends     │ grace over → released
//!    ▼                     ▼                      ▼
//!  expired ◄──────────── lapsed ── renewed ──► issued
//!            grace or cap over
//! release and revoke end any live state. A restart of the gateway makes active leases lost, and gives
//! those that were lost already their time again: nobody could come back meanwhile.
//! ```

use super::{Lease, LeaseEnd, LeaseState, LeaseTimers};
use crate::audit::Actor;
use crate::error::Error;
use crate::time::UnixTime;

/// Something that happens to a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// A tunnel is up.
    Connected,
    /// The last tunnel is gone.
    Disconnected,
    /// The process that had the tunnels has ended, and another one has started.
    Orphaned,
    /// A new certificate, ending at the given instant, was issued.
    Renewed(UnixTime),
    /// Its owner or an operator ends it.
    Release {
        /// The cause in one word.
        cause: String,
        /// Who.
        actor: Actor,
    },
    /// It is revoked.
    Revoke {
        /// Who.
        actor: Actor,
    },
    /// Time has passed.
    Tick,
}

/// What an event does to a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The lease afterwards.
    pub lease: Lease,
    /// Whether anything changed.
    pub changed: bool,
    /// Whether its tunnels and filter must go now.
    pub end_tunnels: bool,
    /// Whether it ended: certificates are revoked, addresses rest.
    pub ended: bool,
}

/// Applies an event to a lease.
///
/// Time is looked at before the event: a lease past its deadline does not connect or renew
/// because its tick came late. Ended leases stay as they are, whatever happens to them.
///
/// # Errors
/// [`Error::LeaseState`] when the event is not possible in the present state.
pub fn transition(
    lease: &Lease,
    event: &LeaseEvent,
    now: UnixTime,
    timers: &LeaseTimers,
) -> Result<Transition, Error> {
    use LeaseState as State;
    let mut next = lease.clone();
    match event {
        LeaseEvent::Tick => {
            if let Some((state, cause)) = overdue(lease, now, timers) {
                enter(&mut next, state, cause, &Actor::System, now);
            }
        }
        LeaseEvent::Release { cause, actor } if lease.state.is_live() => {
            enter(&mut next, State::Released, cause, actor, now);
        }
        LeaseEvent::Revoke { actor } if lease.state.is_live() => {
            enter(&mut next, State::Revoked, "revoked", actor, now);
        }
        // Repeating an end changes nothing.
        LeaseEvent::Release { .. } | LeaseEvent::Revoke { .. } => {}
        LeaseEvent::Disconnected => {
            if lease.state == State::Active {
                enter(&mut next, State::Lost, "", &Actor::System, now);
            }
        }
        LeaseEvent::Orphaned => {
            if matches!(lease.state, State::Active | State::Lost) {
                enter(&mut next, State::Lost, "", &Actor::System, now);
                next.orphaned = true;
            }
        }
        LeaseEvent::Connected => {
            usable(lease, now, timers)?;
            match lease.state {
                State::Issued | State::Lost => {
                    next.first_connected.get_or_insert(now);
                    enter(&mut next, State::Active, "", &Actor::System, now);
                }
                State::Active => {}
                state => return Err(refused(lease, state, lease.state_since)),
            }
        }
        LeaseEvent::Renewed(not_after) => {
            renewable(lease, now, timers)?;
            next.expires = (*not_after).min(lease.hard_cap);
            if lease.state == State::Lapsed {
                enter(&mut next, State::Issued, "", &Actor::System, now);
            }
        }
    }
    next.deadline = deadline(&next, timers);
    let entered = next.state != lease.state;
    Ok(Transition {
        changed: next != *lease,
        end_tunnels: entered && !matches!(next.state, State::Active | State::Issued | State::Lost),
        ended: entered && !next.state.is_live(),
        lease: next,
    })
}

/// The instant at which time alone moves the lease on; `None` once it has ended.
pub(crate) fn deadline(lease: &Lease, timers: &LeaseTimers) -> Option<UnixTime> {
    let own = match lease.state {
        LeaseState::Issued => lease.state_since.plus(timers.connect_within).min(lease.expires),
        LeaseState::Active => lease.expires,
        LeaseState::Lost => lease.state_since.plus(lost_grace(lease, timers)).min(lease.expires),
        LeaseState::Lapsed => lease.expires.plus(timers.renew_grace),
        LeaseState::Released | LeaseState::Revoked | LeaseState::Expired => return None,
    };
    Some(own.min(lease.hard_cap))
}

/// How long a lost lease waits for its client.
const fn lost_grace(lease: &Lease, timers: &LeaseTimers) -> std::time::Duration {
    if lease.orphaned { timers.restart_grace } else { timers.lost_grace }
}

/// Whether the lease may carry a tunnel now.
///
/// # Errors
/// [`Error::LeaseState`] with the state it is in, or should be in by now.
pub(crate) fn usable(lease: &Lease, now: UnixTime, timers: &LeaseTimers) -> Result<(), Error> {
    let (state, since) = effective(lease, now, timers);
    match state {
        LeaseState::Issued | LeaseState::Active | LeaseState::Lost => Ok(()),
        state => Err(refused(lease, state, since)),
    }
}

/// Whether the lease may get another certificate now.
///
/// # Errors
/// [`Error::LeaseState`] with the state it is in, or should be in by now.
pub(crate) fn renewable(lease: &Lease, now: UnixTime, timers: &LeaseTimers) -> Result<(), Error> {
    let (state, since) = effective(lease, now, timers);
    if state.is_live() { Ok(()) } else { Err(refused(lease, state, since)) }
}

/// The state with all that time alone has brought about, and since when.
fn effective(lease: &Lease, now: UnixTime, timers: &LeaseTimers) -> (LeaseState, UnixTime) {
    match overdue(lease, now, timers) {
        Some((state, _)) => (state, lease.deadline.unwrap_or(now)),
        None => (lease.state, lease.state_since),
    }
}

/// Where time alone has moved the lease by now, and the cause.
fn overdue(
    lease: &Lease,
    now: UnixTime,
    timers: &LeaseTimers,
) -> Option<(LeaseState, &'static str)> {
    if now < deadline(lease, timers)? {
        return None;
    }
    if now >= lease.hard_cap {
        return Some((LeaseState::Expired, "cap"));
    }
    let certificate_over = now >= lease.expires;
    let renewal_over = now >= lease.expires.plus(timers.renew_grace);
    Some(match lease.state {
        LeaseState::Issued if lease.first_connected.is_none() => {
            (LeaseState::Expired, "never_connected")
        }
        LeaseState::Lost if now >= lease.state_since.plus(lost_grace(lease, timers)) => {
            (LeaseState::Released, "lost")
        }
        _ if certificate_over && !renewal_over => (LeaseState::Lapsed, ""),
        _ if certificate_over => (LeaseState::Expired, "expired"),
        // Renewed after a lapse, but the tunnel never came back.
        _ => (LeaseState::Released, "lost"),
    })
}

fn enter(lease: &mut Lease, state: LeaseState, cause: &str, actor: &Actor, now: UnixTime) {
    lease.state = state;
    lease.state_since = now;
    lease.orphaned = false;
    if !state.is_live() {
        lease.end = Some(LeaseEnd { at: now, cause: cause.to_owned(), actor: actor.clone() });
    }
}

fn refused(lease: &Lease, state: LeaseState, since: UnixTime) -> Error {
    Error::LeaseState { id: lease.id.clone(), state, since, advice: advice(state) }
}

/// What the holder of a lease in this state can do.
pub(crate) const fn advice(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Lapsed => "renew the certificate first",
        _ => "enrol again with a new token",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::lease::CiRef;

    const TIMERS: LeaseTimers = LeaseTimers {
        connect_within: Duration::from_secs(300),
        lost_grace: Duration::from_secs(90),
        renew_grace: Duration::from_secs(300),
        restart_grace: Duration::from_secs(240),
    };

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    /// A lease opened at 0 with a certificate of an hour and a cap of two.
    pub(crate) fn issued() -> Lease {
        let mut lease = Lease {
            id: "r-test000000".to_owned(),
            role: "builder".to_owned(),
            identity: "spiffe://ci.example.com/role/builder/r-test000000".to_owned(),
            subject: "CN=r-test000000, O=ci.example.com".to_owned(),
            dns_name: "r-test000000.builder.runners.ci.example.com".to_owned(),
            spki_sha256: "00".repeat(32),
            certs: Vec::new(),
            pool: "runners".to_owned(),
            addresses: Vec::new(),
            created: at(0),
            expires: at(3600),
            hard_cap: at(7200),
            state: LeaseState::Issued,
            state_since: at(0),
            deadline: None,
            orphaned: false,
            first_connected: None,
            end: None,
            door: "token".to_owned(),
            token: None,
            holder: None,
            claims: BTreeMap::new(),
            ci_ref: CiRef::default(),
            policy_version: 0,
        };
        lease.deadline = deadline(&lease, &TIMERS);
        lease
    }

    fn apply(lease: &Lease, event: LeaseEvent, secs: i64) -> Transition {
        transition(lease, &event, at(secs), &TIMERS).unwrap()
    }

    fn release() -> LeaseEvent {
        LeaseEvent::Release { cause: "admin".to_owned(), actor: Actor::Uid(0) }
    }

    fn cause(lease: &Lease) -> &str {
        lease.end.as_ref().map_or("", |end| end.cause.as_str())
    }

    #[test]
    fn an_unused_lease_expires_after_five_minutes() {
        let lease = issued();
        assert_eq!(lease.deadline, Some(at(300)));
        assert!(!apply(&lease, LeaseEvent::Tick, 299).changed);
        let expired = apply(&lease, LeaseEvent::Tick, 300);
        assert!(expired.ended && expired.end_tunnels);
        assert_eq!(expired.lease.state, LeaseState::Expired);
        assert_eq!(cause(&expired.lease), "never_connected");
        assert_eq!(expired.lease.deadline, None);
    }

    #[test]
    fn a_late_tick_does_not_let_an_overdue_lease_connect() {
        let refused = transition(&issued(), &LeaseEvent::Connected, at(301), &TIMERS);
        assert!(matches!(
            refused,
            Err(Error::LeaseState { state: LeaseState::Expired, since, .. }) if since == at(300)
        ));
    }

    #[test]
    fn a_lost_tunnel_may_come_back_within_the_grace() {
        let active = apply(&issued(), LeaseEvent::Connected, 10).lease;
        assert_eq!(active.deadline, Some(at(3600)));
        let lost = apply(&active, LeaseEvent::Disconnected, 100);
        assert_eq!(lost.lease.state, LeaseState::Lost);
        assert_eq!(lost.lease.deadline, Some(at(190)));
        assert!(!lost.ended);
        let back = apply(&lost.lease, LeaseEvent::Connected, 189).lease;
        assert_eq!((back.state, back.first_connected), (LeaseState::Active, Some(at(10))));
        let released = apply(&lost.lease, LeaseEvent::Tick, 190);
        assert!(released.ended);
        assert_eq!(released.lease.state, LeaseState::Released);
        assert_eq!(cause(&released.lease), "lost");
    }

    #[test]
    fn a_restart_of_the_gateway_gives_its_clients_time_to_notice() {
        let active = apply(&issued(), LeaseEvent::Connected, 10).lease;
        let orphan = apply(&active, LeaseEvent::Orphaned, 100).lease;
        assert_eq!((orphan.state, orphan.deadline), (LeaseState::Lost, Some(at(340))));
        // Restarted again, while nobody could come back.
        let again = apply(&orphan, LeaseEvent::Orphaned, 900).lease;
        assert_eq!(again.deadline, Some(at(1140)));
        let released = apply(&again, LeaseEvent::Tick, 1140).lease;
        assert_eq!((released.state, cause(&released)), (LeaseState::Released, "lost"));
        // Once it is back, a tunnel that is lost is the client's affair.
        let back = apply(&again, LeaseEvent::Connected, 1000).lease;
        let lost = apply(&back, LeaseEvent::Disconnected, 2000).lease;
        assert_eq!((lost.orphaned, lost.deadline), (false, Some(at(2090))));
        // One that was lost before, however long the gateway was away.
        let orphan = apply(&lost, LeaseEvent::Orphaned, 3000).lease;
        assert_eq!(orphan.deadline, Some(at(3240)));
        // The certificate's end comes first, and leases without a tunnel are not concerned.
        let late = apply(&lost, LeaseEvent::Orphaned, 3500).lease;
        assert_eq!(late.deadline, Some(at(3600)));
        assert!(!apply(&issued(), LeaseEvent::Orphaned, 100).changed);
        let over = apply(&active, release(), 100).lease;
        assert!(!apply(&over, LeaseEvent::Orphaned, 101).changed);
    }

    #[test]
    fn the_certificates_end_ends_tunnels_but_allows_renewal_for_a_while() {
        let active = apply(&issued(), LeaseEvent::Connected, 10).lease;
        let lapsed = apply(&active, LeaseEvent::Tick, 3600);
        assert!(lapsed.end_tunnels && !lapsed.ended);
        assert_eq!(lapsed.lease.state, LeaseState::Lapsed);
        assert_eq!(lapsed.lease.deadline, Some(at(3900)));
        assert!(transition(&lapsed.lease, &LeaseEvent::Connected, at(3601), &TIMERS).is_err());

        let renewed = apply(&lapsed.lease, LeaseEvent::Renewed(at(9000)), 3700).lease;
        assert_eq!((renewed.state, renewed.expires), (LeaseState::Issued, at(7200)));
        assert_eq!(apply(&renewed, LeaseEvent::Connected, 3701).lease.state, LeaseState::Active);

        let expired = apply(&lapsed.lease, LeaseEvent::Tick, 3900).lease;
        assert_eq!((expired.state, cause(&expired)), (LeaseState::Expired, "expired"));
        assert!(transition(&expired, &LeaseEvent::Renewed(at(9000)), at(3901), &TIMERS).is_err());
    }

    #[test]
    fn renewal_while_active_only_moves_the_deadline() {
        let active = apply(&issued(), LeaseEvent::Connected, 10).lease;
        let renewed = apply(&active, LeaseEvent::Renewed(at(6000)), 2400);
        assert!(renewed.changed && !renewed.end_tunnels);
        assert_eq!(renewed.lease.state, LeaseState::Active);
        assert_eq!(renewed.lease.deadline, Some(at(6000)));
    }

    #[test]
    fn the_cap_ends_everything() {
        let mut lease = apply(&issued(), LeaseEvent::Connected, 10).lease;
        lease = apply(&lease, LeaseEvent::Renewed(at(99_999)), 3000).lease;
        assert_eq!(lease.deadline, Some(at(7200)));
        let ended = apply(&lease, LeaseEvent::Tick, 7200);
        assert!(ended.ended && ended.end_tunnels);
        assert_eq!(cause(&ended.lease), "cap");
    }

    #[test]
    fn ends_are_final_and_repeatable() {
        let released = apply(&issued(), release(), 5);
        assert!(released.changed && released.ended && released.end_tunnels);
        let again = apply(&released.lease, release(), 50);
        assert!(!again.changed && !again.ended && !again.end_tunnels);
        assert_eq!(again.lease, released.lease);
        let revoked = apply(&released.lease, LeaseEvent::Revoke { actor: Actor::System }, 60);
        assert_eq!(revoked.lease.state, LeaseState::Released);
    }

    fn events() -> impl Strategy<Value = Vec<(LeaseEvent, i64)>> {
        let event = prop_oneof![
            4 => Just(LeaseEvent::Connected),
            4 => Just(LeaseEvent::Disconnected),
            1 => Just(LeaseEvent::Orphaned),
            6 => Just(LeaseEvent::Tick),
            3 => (0i64..20_000).prop_map(|secs| LeaseEvent::Renewed(at(secs))),
            1 => Just(release()),
            1 => Just(LeaseEvent::Revoke { actor: Actor::System }),
        ];
        proptest::collection::vec((event, 0i64..900), 1..40)
    }

    proptest! {
        #[test]
        fn every_walk_keeps_the_rules(walk in events()) {
            let mut lease = issued();
            let mut now = 0;
            for (event, step) in walk {
                now += step;
                let before = lease.clone();
                let Ok(done) = transition(&lease, &event, at(now), &TIMERS) else {
                    // Refusals come only from events that need a usable lease.
                    prop_assert!(matches!(event, LeaseEvent::Connected | LeaseEvent::Renewed(_)));
                    continue;
                };
                lease = done.lease;
                prop_assert!(lease.expires <= lease.hard_cap);
                prop_assert_eq!(lease.deadline.is_some(), lease.state.is_live());
                prop_assert_eq!(lease.end.is_some(), !lease.state.is_live());
                prop_assert_eq!(done.changed, lease != before);
                if !before.state.is_live() {
                    prop_assert_eq!(&lease, &before);
                }
                if lease.state == LeaseState::Active && event == LeaseEvent::Connected {
                    prop_assert!(at(now) < lease.expires && at(now) < lease.hard_cap);
                }
                if done.ended {
                    prop_assert!(done.end_tunnels);
                }
                if event == LeaseEvent::Tick {
                    // After a tick nothing is overdue, and ticking again does nothing.
                    prop_assert!(lease.deadline.is_none_or(|deadline| deadline > at(now)));
                    let again = transition(&lease, &LeaseEvent::Tick, at(now), &TIMERS).unwrap();
                    prop_assert!(!again.changed);
                }
            }
        }
    }
}
