//! The data plane's thread: everything about packets happens here, in the order it was asked for.
//! Netlink blocks, so nothing else shares the thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ike::io::{Action, ChildSaId, Completion, DataplaneEvent, Token};
use xfrm::model::{Capabilities, ChildId, PlaneStats, RoleFilter, SiteFilter, SiteRoute, Usage};
use xfrm::{Enforcer, PlaneError, PlaneEvent};

use super::translate;
use crate::driver::{EngineHandle, Message};
use crate::sys::clock;
use crate::sys::queue::Queue;

/// The firewall is looked after this often.
const ENSURE_EVERY: Duration = Duration::from_secs(1);

/// Final counters of children that ended with their lease, kept until the engine asks.
const KEPT_COUNTERS: usize = 4096;

enum Job {
    Action(Token, Action),
    EndLease(u32, mpsc::Sender<Result<(), String>>),
    Call(Box<dyn FnOnce(&mut Enforcer) + Send>),
    Resync,
    Adopted,
    Shutdown(mpsc::Sender<Result<(), String>>),
    Detach(mpsc::Sender<Result<(), String>>),
}

/// What asks the thread. Cheap to clone.
#[derive(Clone)]
pub struct PlaneHandle {
    queue: Arc<Queue<Job>>,
    /// A comparison is asked for and has not begun.
    resync: Arc<AtomicBool>,
}

impl std::fmt::Debug for PlaneHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlaneHandle").finish_non_exhaustive()
    }
}

/// The answer to come.
#[derive(Debug)]
pub struct Confirmation<T = ()> {
    answer: mpsc::Receiver<Result<T, String>>,
}

impl<T> Confirmation<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// What went wrong, or that nothing came in time.
    pub fn wait(self, patience: Duration) -> Result<T, String> {
        match self.answer.recv_timeout(patience) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("the data plane gave no answer within {} s", patience.as_secs()))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err("the data plane has stopped".to_owned())
            }
        }
    }
}

impl Default for PlaneHandle {
    fn default() -> Self {
        Self { queue: Arc::new(Queue::new(&[])), resync: Arc::default() }
    }
}

impl PlaneHandle {
    /// Executes an action; its completion goes to the engine.
    pub fn action(&self, token: Token, action: Action) {
        // When the thread has ended, so has the engine.
        let _ = self.queue.push(Job::Action(token, action));
    }

    /// Ends a lease: its filter first, then its SAs.
    pub fn end_lease(&self, reqid: u32) -> Confirmation {
        let (answer, confirmation) = mpsc::channel();
        let _ = self.queue.push(Job::EndLease(reqid, answer));
        Confirmation { answer: confirmation }
    }

    /// Replaces the allow lists of all roles; live flows obey at once.
    pub fn replace_roles(&self, roles: Vec<RoleFilter>) -> Confirmation {
        self.call(move |enforcer| enforcer.replace_roles(&roles).map_err(|e| e.to_string()))
    }

    /// Replaces filters and routes of all sites; those that go must have been ended.
    pub fn replace_sites(&self, sites: Vec<SiteFilter>, routes: Vec<SiteRoute>) -> Confirmation {
        self.call(move |enforcer| {
            enforcer.replace_sites(&sites, &routes).map_err(|error| error.to_string())
        })
    }

    /// Counters of children, those that are installed.
    pub fn usages(&self, children: Vec<ChildSaId>) -> Confirmation<BTreeMap<u64, Usage>> {
        self.call(move |enforcer| {
            let children: Vec<ChildId> = children.iter().map(|child| ChildId(child.0)).collect();
            let usages = enforcer.plane().usages(&children).map_err(|error| error.to_string())?;
            Ok(usages.into_iter().map(|(child, usage)| (child.0, usage)).collect())
        })
    }

    /// Packets of each lease, by its request id, that its role does not allow.
    pub fn refused(&self) -> Confirmation<BTreeMap<u32, u64>> {
        self.call(|enforcer| {
            let counters = enforcer.filter_counters().map_err(|error| error.to_string())?;
            let refused = counters.leases.into_iter();
            Ok(refused.map(|(reqid, lease)| (reqid, lease.refused.packets)).collect())
        })
    }

    /// Packets dropped by the plane.
    pub fn stats(&self) -> Confirmation<PlaneStats> {
        self.call(|enforcer| Ok(enforcer.plane().stats()))
    }

    /// Children installed, whoever knows of them.
    pub fn children(&self) -> Confirmation<Vec<ChildId>> {
        self.call(|enforcer| Ok(enforcer.plane().children()))
    }

    /// Has every child compared with what is really installed; the engine hears of those that are
    /// gone or past a limit. Asked for any number of times before it begins, it is done once.
    pub fn resync(&self) {
        if !self.resync.swap(true, Ordering::AcqRel) {
            let _ = self.queue.push(Job::Resync);
        }
    }

    /// Every child that goes on has been asked for: what else an earlier process left is removed,
    /// before anything that is asked for later.
    pub fn adopted(&self) {
        let _ = self.queue.push(Job::Adopted);
    }

    /// Removes everything and ends the thread.
    pub fn shutdown(&self) -> Confirmation {
        let (answer, confirmation) = mpsc::channel();
        let _ = self.queue.push(Job::Shutdown(answer));
        Confirmation { answer: confirmation }
    }

    /// Ends the thread and leaves what the next process goes on with.
    pub fn detach(&self) -> Confirmation {
        let (answer, confirmation) = mpsc::channel();
        let _ = self.queue.push(Job::Detach(answer));
        Confirmation { answer: confirmation }
    }

    fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Enforcer) -> Result<T, String> + Send + 'static,
    ) -> Confirmation<T> {
        let (answer, confirmation) = mpsc::channel();
        let job = move |enforcer: &mut Enforcer| {
            // Nobody waits any more: nothing to tell.
            let _ = answer.send(job(enforcer));
        };
        let _ = self.queue.push(Job::Call(Box::new(job)));
        Confirmation { answer: confirmation }
    }
}

/// The thread's state.
pub struct PlaneThread {
    queue: Arc<Queue<Job>>,
    resync: Arc<AtomicBool>,
    enforcer: Enforcer,
    capabilities: Capabilities,
    engine: EngineHandle,
    /// See [`PlaneThread::new`].
    life: Box<dyn Fn() -> Duration + Send>,
    ended: BTreeMap<ChildId, Usage>,
    ensured: Instant,
    /// Something of an earlier process may be left.
    leftovers: bool,
    /// A comparison failed, and what it should have made up for is still unknown.
    uncompared: bool,
}

impl PlaneThread {
    /// Takes over the enforcer; requests come through `handle`. `life` is how long a new child may
    /// work at most: far longer than until it is rekeyed, so that it ends only children that nobody
    /// looks after any more.
    pub fn new(
        handle: &PlaneHandle,
        mut enforcer: Enforcer,
        engine: EngineHandle,
        life: impl Fn() -> Duration + Send + 'static,
    ) -> Self {
        let capabilities = enforcer.plane().capabilities();
        Self {
            queue: Arc::clone(&handle.queue),
            resync: Arc::clone(&handle.resync),
            enforcer,
            capabilities,
            engine,
            life: Box::new(life),
            ended: BTreeMap::new(),
            ensured: Instant::now(),
            leftovers: false,
            uncompared: false,
        }
    }

    /// Works until [`PlaneHandle::shutdown`].
    pub fn run(mut self) {
        loop {
            match self.queue.take(ENSURE_EVERY) {
                Some(Job::Action(token, action)) => {
                    let completion = self.execute(action);
                    self.engine.post(Message::Completion(token, completion));
                }
                Some(Job::EndLease(reqid, answer)) => {
                    let _ = answer.send(self.end_lease(reqid));
                }
                Some(Job::Call(job)) => job(&mut self.enforcer),
                Some(Job::Resync) => self.compare(),
                Some(Job::Adopted) => self.reconcile(),
                Some(Job::Shutdown(answer)) => {
                    self.queue.close();
                    let leftovers = self.enforcer.shutdown();
                    let result =
                        if leftovers.is_empty() { Ok(()) } else { Err(leftovers.join("; ")) };
                    let _ = answer.send(result);
                    return;
                }
                Some(Job::Detach(answer)) => {
                    self.queue.close();
                    let _ = answer.send(self.enforcer.detach().map_err(|e| e.to_string()));
                    return;
                }
                None => {}
            }
            self.look_after();
        }
    }

    /// What goes on is taken over by now, and what is left of the earlier process goes. Until then
    /// the firewall stops it.
    fn reconcile(&mut self) {
        self.leftovers = match self.enforcer.plane().reconcile() {
            Ok(removed) => {
                if removed > 0 {
                    tracing::info!(removed, "what an earlier process left was removed");
                }
                false
            }
            Err(error) => {
                tracing::error!(%error, "what an earlier process left could not be removed; it is tried again");
                true
            }
        };
    }

    fn compare(&mut self) {
        // Before the look: what happens during it deserves another.
        self.resync.store(false, Ordering::Release);
        let compared = self.enforcer.plane().resync();
        self.uncompared = compared.is_err();
        match compared {
            Ok(events) => events.iter().for_each(|event| report(&self.engine, event)),
            Err(error) => {
                tracing::error!(%error, "cannot compare with what is installed; it is tried again");
            }
        }
    }

    fn look_after(&mut self) {
        if self.ensured.elapsed() < ENSURE_EVERY {
            return;
        }
        self.ensured = Instant::now();
        if self.leftovers {
            self.reconcile();
        }
        if self.uncompared {
            self.compare();
        }
        match self.enforcer.ensure_filter() {
            Ok(false) => {}
            Ok(true) => tracing::warn!(
                "the firewall rules had been removed by something else and were put back"
            ),
            Err(error) => tracing::error!(%error, "the firewall rules are missing"),
        }
    }

    fn execute(&mut self, action: Action) -> Completion {
        match action {
            Action::AllocSpi => Completion::AllocSpi(
                self.enforcer.plane().alloc_spi().map(|spi| spi.0).map_err(|e| e.to_string()),
            ),
            Action::InstallChild(request) => {
                let result = translate::child(&request, &self.capabilities, (self.life)(), clock::wall())
                    .and_then(|(spec, filter)| {
                        match request.restored {
                            true => self.enforcer.adopt_child(&spec, &filter),
                            false => self.enforcer.install_child(&spec, &filter),
                        }
                        .map_err(|error| error.to_string())
                    });
                if let Err(error) = &result {
                    tracing::error!(child = request.child.0, %error, "child SA not installed");
                }
                Completion::InstallChild(result)
            }
            Action::ActivateChild(child) => Completion::ActivateChild(
                self.enforcer.activate_outbound(ChildId(child.0)).map_err(|e| e.to_string()),
            ),
            Action::UpdateHosts { child, hosts } => Completion::UpdateHosts(
                self.enforcer
                    .update_hosts(ChildId(child.0), &translate::hosts(&hosts))
                    .inspect_err(|error| {
                        tracing::error!(child = child.0, %error, "child SA not moved; it is rekeyed");
                    })
                    .map_err(|e| e.to_string()),
            ),
            Action::RemoveChild { child, last: _ } => {
                Completion::RemoveChild(self.remove(ChildId(child.0)))
            }
            Action::QueryUse(child) => Completion::QueryUse(
                self.enforcer
                    .plane()
                    .usage(ChildId(child.0))
                    .map(|usage| translate::usage(&usage))
                    .map_err(|e| e.to_string()),
            ),
            // The dispatcher sends nothing else here.
            other => {
                tracing::error!(?other, "not an action of the data plane");
                Completion::QueryUse(Err("not an action of the data plane".to_owned()))
            }
        }
    }

    fn remove(&mut self, child: ChildId) -> Result<ike::io::ChildUse, String> {
        if let Some(usage) = self.ended.remove(&child) {
            return Ok(translate::usage(&usage));
        }
        match self.enforcer.remove_child(child) {
            Ok(usage) => Ok(translate::usage(&usage)),
            // Its installation failed, which was reported then; there is nothing to remove.
            Err(PlaneError::Unknown(_)) => Ok(ike::io::ChildUse::default()),
            Err(error) => {
                tracing::error!(child = child.0, %error, "child SA not removed cleanly");
                Err(error.to_string())
            }
        }
    }

    fn end_lease(&mut self, reqid: u32) -> Result<(), String> {
        match self.enforcer.end_lease(reqid) {
            Ok(usages) => {
                self.ended.extend(usages);
                while self.ended.len() > KEPT_COUNTERS {
                    self.ended.pop_first();
                }
                Ok(())
            }
            Err(PlaneError::Unknown(_)) => Ok(()),
            Err(error) => {
                tracing::error!(reqid, %error, "lease not ended cleanly");
                Err(error.to_string())
            }
        }
    }
}

/// Tells the engine what happened to a child, or of an SPI that nobody has. Other events are not
/// the engine's.
pub fn report(engine: &EngineHandle, event: &PlaneEvent) {
    let event = match *event {
        PlaneEvent::NoSa { spi, local: _, remote } => DataplaneEvent::NoSa { spi: spi.0, remote },
        PlaneEvent::Expire { child, hard } => {
            DataplaneEvent::Expire { child: ChildSaId(child.0), hard }
        }
        PlaneEvent::Mapping { child, remote } => {
            DataplaneEvent::Mapping { child: ChildSaId(child.0), remote }
        }
        PlaneEvent::Ike { .. } | PlaneEvent::Acquire { .. } | PlaneEvent::Lost => return,
    };
    engine.post(Message::Dataplane(event));
}

#[cfg(test)]
mod tests {
    use ike::crypto::EspSuite;
    use ike::io::{ChildKeys, Hosts, IkeSaId, InstallChild, LeaseId};
    use ike::wire::TrafficSelector;
    use xfrm::enforcer::TunnelSetup;
    use xfrm::mock::{MockCall, MockHandle};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const REQID: u32 = 0x4000;
    const LIFE: Duration = Duration::from_secs(4500);

    fn started(mock: &MockHandle) -> (PlaneHandle, EngineHandle, std::thread::JoinHandle<()>) {
        let setup = TunnelSetup {
            instance: String::new(),
            networks: Vec::new(),
            roles: Vec::new(),
            sites: Vec::new(),
            site_routes: Vec::new(),
            mtu: 1438,
            keep: false,
        };
        let enforcer = Enforcer::with_parts(
            Box::new(mock.plane()),
            Box::new(mock.filter()),
            Box::new(mock.network()),
            &setup,
        )
        .unwrap();
        let (plane, engine) = (PlaneHandle::default(), EngineHandle::default());
        let thread = PlaneThread::new(&plane, enforcer, engine.clone(), || LIFE);
        (plane, engine, std::thread::spawn(move || thread.run()))
    }

    fn install(child: u64) -> Action {
        let address: std::net::IpAddr = "10.77.0.2".parse().unwrap();
        let keys = || ChildKeys { encr: vec![7; 36], integ: Vec::new() };
        let suite = EspSuite::parse_proposal("aes256gcm16-noesn").unwrap().remove(0);
        Action::InstallChild(Box::new(InstallChild {
            ike: IkeSaId(1),
            child: ChildSaId(child),
            lease: LeaseId("r-1".to_owned()),
            role: "builder".to_owned(),
            reqid: REQID,
            addresses: vec![address],
            networks: Vec::new(),
            spi_in: 0x1000,
            spi_out: 0x2000,
            suite,
            keys_in: keys(),
            keys_out: keys(),
            transport: false,
            limits: ike::io::ChildLimits::default(),
            deadline: ike::WallTime(i64::MAX),
            hosts: Hosts {
                local: "192.0.2.1:4500".parse().unwrap(),
                remote: "192.0.2.2:4500".parse().unwrap(),
                encap: true,
            },
            ts_local: vec![TrafficSelector::any_v4()],
            ts_remote: vec![TrafficSelector::addresses(address, address)],
            outbound_active: true,
            rekeys: None,
            restored: false,
        }))
    }

    fn completion(engine: &EngineHandle) -> Completion {
        match engine.next(PATIENCE) {
            Some(Message::Completion(_, completion)) => completion,
            _ => panic!("a completion was expected"),
        }
    }

    #[test]
    fn a_lease_ends_at_once_and_the_engine_still_gets_the_final_counters() {
        let mock = MockHandle::new();
        let (plane, engine, thread) = started(&mock);
        plane.action(Token(1), install(9));
        assert_eq!(completion(&engine), Completion::InstallChild(Ok(())));
        assert_eq!(mock.bound().len(), 1);
        let ends = mock.child(ChildId(9)).unwrap().limits.ends.unwrap();
        assert!(ends <= Instant::now() + LIFE, "it may not outlive its keys");
        let usage = Usage { bytes_in: 42, ..Usage::default() };
        mock.set_usage(ChildId(9), usage);

        plane.end_lease(REQID).wait(PATIENCE).unwrap();
        assert!(mock.bound().is_empty());
        assert!(mock.child(ChildId(9)).is_none());

        // The engine removes it in its own time; that is not an error, and ends what it knows.
        plane.action(Token(2), Action::RemoveChild { child: ChildSaId(9), last: true });
        match completion(&engine) {
            Completion::RemoveChild(Ok(use_)) => assert_eq!(use_.bytes_in, 42),
            other => panic!("{other:?}"),
        }
        // Ending twice, or what never had a tunnel, is no error.
        plane.end_lease(REQID).wait(PATIENCE).unwrap();
        plane.end_lease(77).wait(PATIENCE).unwrap();
        plane.shutdown().wait(PATIENCE).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_failing_plane_is_told_to_the_engine_and_leaves_no_filter() {
        let mock = MockHandle::new();
        let (plane, engine, thread) = started(&mock);
        mock.fail_next(MockCall::InstallIn, PlaneError::Conflict("no room".to_owned()));
        plane.action(Token(1), install(9));
        assert_eq!(completion(&engine), Completion::InstallChild(Err("no room".to_owned())));
        assert!(mock.bound().is_empty());
        plane.shutdown().wait(PATIENCE).unwrap();
        thread.join().unwrap();
        assert!(plane.children().wait(PATIENCE).is_err(), "nobody answers after the end");
    }

    #[test]
    fn lost_events_are_made_up_for_once_however_often_it_is_asked() {
        let mock = MockHandle::new();
        let (plane, engine, thread) = started(&mock);
        let (hold, held) = mpsc::channel::<()>();
        // The thread is busy, so that both requests wait.
        let busy = plane.call(move |_| held.recv().map_err(|error| error.to_string()));
        plane.resync();
        plane.resync();
        for hard in [true, false] {
            mock.miss(PlaneEvent::Expire { child: ChildId(9), hard });
        }
        hold.send(()).unwrap();
        busy.wait(PATIENCE).unwrap();
        for hard in [true, false] {
            match engine.next(PATIENCE) {
                Some(Message::Dataplane(DataplaneEvent::Expire { child, hard: told })) => {
                    assert_eq!((child, told), (ChildSaId(9), hard));
                }
                _ => panic!("an expiry was expected"),
            }
        }
        // What is asked for after it began is done again.
        mock.miss(PlaneEvent::Expire { child: ChildId(10), hard: true });
        plane.resync();
        assert!(matches!(engine.next(PATIENCE), Some(Message::Dataplane(_))));
        plane.shutdown().wait(PATIENCE).unwrap();
        thread.join().unwrap();
    }
}
