//! The life of a lease against a model that knows nothing but the page about leases: it looks at
//! every second, one after the other, and at no deadline.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use pki::*;
use proptest::prelude::*;

const CONNECT: i64 = 300;
const LOST: i64 = 90;
const RENEW: i64 = 300;
const RESTART: i64 = 200;
const TTL: i64 = 3_600;
const CAP: i64 = 7_200;

fn at(second: i64) -> UnixTime {
    UnixTime::from_secs(second)
}

fn timers() -> LeaseTimers {
    let secs = |secs: i64| Duration::from_secs(secs.unsigned_abs());
    LeaseTimers {
        connect_within: secs(CONNECT),
        lost_grace: secs(LOST),
        renew_grace: secs(RENEW),
        restart_grace: secs(RESTART),
    }
}

/// What the pages say about a lease.
#[derive(Clone, Debug)]
struct Model {
    state: LeaseState,
    since: i64,
    was_connected: bool,
    /// How long it waits for a client that is lost.
    patience: i64,
    expires: i64,
    cause: String,
}

impl Model {
    fn new() -> Self {
        let (state, cause) = (LeaseState::Issued, String::new());
        Self { state, since: 0, was_connected: false, patience: LOST, expires: TTL, cause }
    }

    fn enter(&mut self, state: LeaseState, second: i64, cause: &str) {
        (self.state, self.since) = (state, second);
        self.cause = cause.to_owned();
    }

    /// A second has begun.
    fn second(&mut self, now: i64) {
        use LeaseState::{Active, Expired, Issued, Lapsed, Lost, Released};
        if !self.state.is_live() {
            return;
        }
        if now == CAP {
            return self.enter(Expired, now, "cap");
        }
        let waited = now - self.since;
        match self.state {
            Issued if !self.was_connected && (waited == CONNECT || now == self.expires) => {
                self.enter(Expired, now, "never_connected");
            }
            Lost if waited == self.patience => self.enter(Released, now, "lost"),
            Issued | Active | Lost if now == self.expires => self.enter(Lapsed, now, ""),
            // Renewed after a lapse, and the tunnel did not come back.
            Issued if waited == CONNECT => self.enter(Released, now, "lost"),
            Lapsed if now == self.expires + RENEW => self.enter(Expired, now, "expired"),
            _ => {}
        }
    }

    /// Something happens; false when it may not.
    fn happen(&mut self, event: &LeaseEvent, now: i64) -> bool {
        use LeaseState::{Active, Issued, Lapsed, Lost, Released, Revoked};
        match event {
            LeaseEvent::Connected => match self.state {
                Issued | Lost => {
                    self.was_connected = true;
                    self.enter(Active, now, "");
                }
                Active => {}
                _ => return false,
            },
            LeaseEvent::Disconnected if self.state == Active => {
                self.patience = LOST;
                self.enter(Lost, now, "");
            }
            LeaseEvent::Orphaned if matches!(self.state, Active | Lost) => {
                self.patience = RESTART;
                self.enter(Lost, now, "");
            }
            LeaseEvent::Renewed(until) => {
                if !self.state.is_live() {
                    return false;
                }
                self.expires = until.secs().min(CAP);
                if self.state == Lapsed {
                    self.enter(Issued, now, "");
                }
            }
            LeaseEvent::Release { cause, .. } if self.state.is_live() => {
                self.enter(Released, now, cause);
            }
            LeaseEvent::Revoke { .. } if self.state.is_live() => {
                self.enter(Revoked, now, "revoked");
            }
            _ => {}
        }
        true
    }
}

/// A lease as enrolment opens it.
fn issued() -> Lease {
    let text = "{\"id\":\"r-model00000\",\"role\":\"builder\",\"identity\":\"spiffe://x/y\",\
        \"subject\":\"CN=r-model00000\",\"dns_name\":\"\",\"spki_sha256\":\"\",\"certs\":[],\
        \"pool\":\"runners\",\"addresses\":[],\"created\":0,\"expires\":EXPIRES,\"hard_cap\":CAP,\
        \"state\":\"issued\",\"state_since\":0,\"deadline\":DUE,\"door\":\"jwt\"}";
    let micros = |seconds: i64| format!("{}000000", seconds);
    let text = text
        .replace("EXPIRES", &micros(TTL))
        .replace("CAP", &micros(CAP))
        .replace("DUE", &micros(CONNECT));
    serde_json::from_str(&text).unwrap()
}

/// Who keeps time asks at every deadline, as the gateway does.
fn tick_until(lease: &mut Lease, now: i64) {
    while let Some(due) = lease.deadline.filter(|due| *due <= at(now)) {
        let moved = transition(lease, &LeaseEvent::Tick, due, &timers()).unwrap();
        assert!(moved.changed, "a deadline without effect: {lease:?}");
        *lease = moved.lease;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect,
    Restart,
    /// A certificate of so many seconds from then on.
    Renew(i64),
    Release,
    Revoke,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<(Step, i64)>> {
    let step = prop_oneof![
        6 => Just(Step::Connect),
        5 => Just(Step::Disconnect),
        1 => Just(Step::Restart),
        3 => (60i64..5_000).prop_map(Step::Renew),
        6 => Just(Step::Wait),
        1 => Just(Step::Release),
        1 => Just(Step::Revoke),
    ];
    // Waits around the periods, where mistakes are.
    let wait = prop_oneof![0i64..30, 85i64..95, 195i64..205, 295i64..305, 0i64..2_000, Just(0)];
    proptest::collection::vec((step, wait), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_lease_lives_as_the_model_says(walk in steps()) {
        let (mut lease, mut model, mut now) = (issued(), Model::new(), 0);
        for (step, wait) in walk {
            for second in now + 1..=now + wait {
                model.second(second);
            }
            now += wait;
            tick_until(&mut lease, now);
            let event = match step {
                Step::Connect => LeaseEvent::Connected,
                Step::Disconnect => LeaseEvent::Disconnected,
                Step::Restart => LeaseEvent::Orphaned,
                Step::Renew(seconds) => LeaseEvent::Renewed(at(now + seconds)),
                Step::Release => {
                    LeaseEvent::Release { cause: "job".to_owned(), actor: Actor::System }
                }
                Step::Revoke => LeaseEvent::Revoke { actor: Actor::Uid(0) },
                Step::Wait => LeaseEvent::Tick,
            };
            let before = lease.clone();
            let done = transition(&lease, &event, at(now), &timers());
            let allowed = model.happen(&event, now);
            prop_assert_eq!(done.is_ok(), allowed, "{:?} at {} of {:?}", event, now, before);
            if let Ok(done) = done {
                lease = done.lease;
            }
            let told = (lease.state, lease.state_since, lease.expires);
            prop_assert_eq!(told, (model.state, at(model.since), at(model.expires)), "{:?}", event);
            let cause = lease.end.as_ref().map_or("", |end| end.cause.as_str());
            prop_assert_eq!(cause, if model.state.is_live() { "" } else { &model.cause });
            prop_assert!(lease.expires <= at(CAP), "past the cap");
        }
    }
}
