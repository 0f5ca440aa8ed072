//! The threads of a running gateway, and their end in the right order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ike::snapshot::Snapshot;
use xfrm::Enforcer;
use xfrm::udp::UdpPort;

use super::{UpError, housekeeping};
use crate::actions::{PlaneHandle, PlaneThread};
use crate::driver::{EngineHandle, EventLoop, Message, Receiver};
use crate::lease::Follower;
use crate::obs::Journal;
use crate::obs::audit::{AuditFile, Courier};
use crate::service::Instance;
use crate::site;

/// Longest wait for the data plane to remove everything.
const PLANE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a child outlives the time of its rekeying before a data plane that goes on without this
/// process ends it: rekeying is tried again many times before.
const LIVES: u32 = 3;

/// Longest wait for the last audit records to be delivered.
const COURIER_PATIENCE: Duration = Duration::from_secs(3);

/// How the gateway ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// Peers hear DELETE and have this long to answer; nothing stays behind.
    Full(Duration),
    /// Peers hear nothing: the next process goes on with the tunnels.
    Keep,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Threads {
    engine: Option<JoinHandle<()>>,
    plane: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
    follower: Option<JoinHandle<()>>,
    housekeeping: Option<JoinHandle<()>>,
    sites: Option<JoinHandle<()>>,
    couriers: Vec<JoinHandle<()>>,
    couriers_end: Arc<AtomicBool>,
    sites_end: Arc<AtomicBool>,
    reading_ends: Arc<AtomicBool>,
    housekeeping_ends: Arc<AtomicBool>,
}

impl Threads {
    pub(super) fn plane(
        &mut self,
        enforcer: Enforcer,
        handle: &PlaneHandle,
        engine: &EngineHandle,
        instance: &Arc<Instance>,
    ) -> Result<(), UpError> {
        let config = instance.config.clone();
        let life = move || config.get().ike.child.saturating_mul(LIVES);
        let thread = PlaneThread::new(handle, enforcer, engine.clone(), life);
        let end = EndOfService(Arc::clone(instance));
        self.plane = Some(spawn("plane", move || {
            let _end = end;
            thread.run();
        })?);
        Ok(())
    }

    pub(super) fn engine(
        &mut self,
        event_loop: EventLoop,
        instance: &Arc<Instance>,
    ) -> Result<(), UpError> {
        let end = EndOfService(Arc::clone(instance));
        self.engine = Some(spawn("engine", move || {
            let _end = end;
            event_loop.run();
        })?);
        Ok(())
    }

    pub(super) fn receiver(
        &mut self,
        ports: Vec<UdpPort>,
        engine: &EngineHandle,
    ) -> Result<(), UpError> {
        let receiver = Receiver::new(ports, engine.clone(), Arc::clone(&self.reading_ends));
        self.receiver = Some(spawn("ike-500", move || receiver.run())?);
        Ok(())
    }

    pub(super) fn follower(
        &mut self,
        mut follower: Follower,
        resumed: Vec<Snapshot>,
        journal: &Journal,
    ) -> Result<(), UpError> {
        let journal = journal.clone();
        self.follower = Some(spawn("journal", move || {
            // Each is written down, which takes the disk's time; events of theirs wait behind.
            resumed.iter().for_each(|snapshot| follower.resumed(snapshot));
            drop(resumed);
            while !journal.is_finished() {
                if let Some(event) = journal.take(Duration::from_secs(1)) {
                    follower.event(&event);
                }
                follower.tick(Instant::now());
            }
        })?);
        Ok(())
    }

    pub(super) fn housekeeping(
        &mut self,
        instance: Arc<Instance>,
        audit: AuditFile,
    ) -> Result<(), UpError> {
        let ends = Arc::clone(&self.housekeeping_ends);
        self.housekeeping =
            Some(spawn("housekeeping", move || housekeeping::run(&instance, audit, &ends))?);
        Ok(())
    }

    /// Brings the audit trail elsewhere.
    pub(super) fn couriers(&mut self, couriers: Vec<Courier>) -> Result<(), UpError> {
        for courier in couriers {
            let end = Arc::clone(&self.couriers_end);
            self.couriers.push(spawn("audit-sink", move || courier.run(&end))?);
        }
        Ok(())
    }

    /// Connects sites.
    pub(super) fn sites(&mut self, instance: Arc<Instance>) -> Result<(), UpError> {
        let ends = Arc::clone(&self.sites_end);
        self.sites = Some(spawn("sites", move || site::run(&instance, &ends))?);
        Ok(())
    }

    /// Peers hear DELETE while packets can still be sent; the data plane goes when the engine has
    /// nothing left to say; what happened is written down last.
    pub(super) fn stop(
        mut self,
        engine: &EngineHandle,
        plane: &PlaneHandle,
        journal: &Journal,
        end: End,
    ) -> Result<(), String> {
        // A name that does not resolve may hold this thread for long; nothing waits for it.
        self.sites_end.store(true, Ordering::Relaxed);
        engine.post(match end {
            End::Full(patience) => Message::Stop(patience),
            End::Keep => Message::Leave,
        });
        let mut sound = join(self.engine.take());
        self.reading_ends.store(true, Ordering::Relaxed);
        let result = match (self.plane.is_some(), end) {
            (true, End::Full(_)) => plane.shutdown().wait(PLANE_PATIENCE),
            (true, End::Keep) => plane.detach().wait(PLANE_PATIENCE),
            (false, _) => Ok(()),
        };
        sound &= join(self.plane.take());
        sound &= join(self.receiver.take());
        journal.close();
        sound &= join(self.follower.take());
        self.housekeeping_ends.store(true, Ordering::Relaxed);
        sound &= join(self.housekeeping.take());
        // A receiver that does not answer holds its thread for long; the next start goes on there.
        self.couriers_end.store(true, Ordering::Relaxed);
        let until = Instant::now() + COURIER_PATIENCE;
        while Instant::now() < until && !self.couriers.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(20));
        }
        match (result, sound) {
            (Ok(()), false) => {
                Err("a part of the gateway had failed inside; see its log".to_owned())
            }
            (result, _) => result,
        }
    }
}

/// Without its engine or data plane there is no gateway: whichever thread ends, by whatever cause,
/// the whole stops and takes the tunnels down, instead of half working.
struct EndOfService(Arc<Instance>);

impl Drop for EndOfService {
    fn drop(&mut self) {
        self.0.stop.send_replace(true);
    }
}

/// Waits for a thread; false when it had panicked.
fn join(thread: Option<JoinHandle<()>>) -> bool {
    let sound = thread.is_none_or(|thread| thread.join().is_ok());
    if !sound {
        tracing::error!("a thread had panicked");
    }
    sound
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, UpError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| UpError::Other(format!("cannot start a thread: {error}; see ulimit -u")))
}
