//! Threads that turn what the kernel and the peers send into plane events.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::decode::{self, Occurrence};
use crate::dataplane::{EventSink, PlaneEvent};
use crate::error::PlaneError;
use crate::model::{ChildId, Hosts, Spi};
use crate::netlink::{Event, EventSocket, Protocol};
use crate::udp::{NON_ESP_MARKER, RecvRing, UdpPort};

/// XFRM multicast groups: acquire, expire, mapping.
const GROUPS: [u32; 3] = [1, 2, 8];

/// What the event thread needs to know about a child.
#[derive(Debug, Clone, Copy)]
struct Known {
    child: ChildId,
    hosts: Hosts,
}

/// Children by SPI, shared between the plane and its event thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Index(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    inbound: BTreeMap<Spi, Known>,
    outbound: BTreeMap<Spi, Vec<Known>>,
}

impl Index {
    pub(super) fn insert(&self, child: ChildId, spi_in: Spi, spi_out: Spi, hosts: Hosts) {
        let mut inner = self.lock();
        let known = Known { child, hosts };
        inner.inbound.insert(spi_in, known);
        let same_spi = inner.outbound.entry(spi_out).or_default();
        same_spi.retain(|other| other.child != child);
        same_spi.push(known);
    }

    pub(super) fn remove(&self, child: ChildId, spi_in: Spi, spi_out: Spi) {
        let mut inner = self.lock();
        inner.inbound.remove(&spi_in);
        if let Some(same_spi) = inner.outbound.get_mut(&spi_out) {
            same_spi.retain(|other| other.child != child);
            if same_spi.is_empty() {
                inner.outbound.remove(&spi_out);
            }
        }
    }

    pub(super) fn is_inbound(&self, spi: Spi) -> bool {
        self.lock().inbound.contains_key(&spi)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds whom an occurrence concerns; strangers' are `None`.
    fn resolve(&self, occurrence: &Occurrence, ours: u32) -> Option<PlaneEvent> {
        let inner = self.lock();
        match *occurrence {
            // In transport mode nothing has our identifier, and the name alone must do.
            Occurrence::Expire { destination, spi, hard, if_id } if [ours, 0].contains(&if_id) => {
                let inbound = inner.inbound.get(&spi).filter(|k| k.hosts.local.ip() == destination);
                let outbound = || {
                    // The peer chose it, so two peers may have chosen the same.
                    let same_spi = inner.outbound.get(&spi)?;
                    same_spi.iter().find(|k| k.hosts.remote.ip() == destination)
                };
                let child = inbound.or_else(outbound)?.child;
                Some(PlaneEvent::Expire { child, hard })
            }
            Occurrence::Mapping { local, spi, address, port } => {
                let known = inner.inbound.get(&spi).filter(|k| k.hosts.local.ip() == local)?;
                let remote = SocketAddr::new(address, port);
                // Repeated while an inbound SA keeps the address it was installed with.
                (known.hosts.remote != remote)
                    .then_some(PlaneEvent::Mapping { child: known.child, remote })
            }
            Occurrence::Acquire { destination, sender, if_id } if [ours, 0].contains(&if_id) => {
                let child = sender.and_then(|wanted| {
                    let same_spi = inner.outbound.get(&wanted.spi)?;
                    let to = |k: &&Known| k.hosts.remote.ip() == wanted.destination;
                    same_spi.iter().find(to).map(|known| known.child)
                });
                (child.is_some() || if_id == ours)
                    .then_some(PlaneEvent::Acquire { child, destination })
            }
            Occurrence::Expire { .. } | Occurrence::Acquire { .. } => None,
        }
    }
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Threads {
    wake: Arc<OwnedFd>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts one thread for kernel events and one for each encapsulation port.
    pub(super) fn start(
        index: &Index,
        if_id: u32,
        ports: Vec<UdpPort>,
        sink: &EventSink,
    ) -> Result<Self, PlaneError> {
        let events = EventSocket::open(Protocol::Xfrm, &GROUPS)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| thread_error(&std::io::Error::from(errno)))?;
        let mut threads = Self { wake: Arc::new(wake), handles: Vec::new() };
        let (kept, wake, theirs) = (index.clone(), threads.wake.clone(), sink.clone());
        threads.spawn("runnel-xfrm", move || watch(events, &kept, if_id, &wake, &theirs))?;
        for port in ports {
            let (wake, theirs) = (threads.wake.clone(), sink.clone());
            threads.spawn("runnel-ike", move || read_ike(&port, &wake, &theirs))?;
        }
        Ok(threads)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), PlaneError> {
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|error| thread_error(&error))?;
        self.handles.push(handle);
        Ok(())
    }

    /// Ends all threads and waits for them.
    pub(super) fn stop(&mut self) {
        // Never read back: stays readable for every thread.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                tracing::error!("a thread of the kernel data plane panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn thread_error(error: &std::io::Error) -> PlaneError {
    PlaneError::System {
        what: "cannot start a thread of the kernel data plane".to_owned(),
        reason: error.to_string(),
        fix: "raise the limits of processes and open files".to_owned(),
    }
}

/// Waits until `fd` is readable; false when the threads are to end.
fn wait(fd: &impl AsFd, wake: &OwnedFd) -> bool {
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "poll failed");
                return false;
            }
            Ok(_) => {
                let [data, wake] = &fds;
                if !wake.revents().is_empty() {
                    return false;
                }
                if !data.revents().is_empty() {
                    return true;
                }
            }
        }
    }
}

fn watch(mut events: EventSocket, index: &Index, if_id: u32, wake: &OwnedFd, sink: &EventSink) {
    while wait(&events, wake) {
        let received = events.receive(|event| match event {
            Event::Lost => sink(PlaneEvent::Lost),
            Event::Message(kind, payload) => match decode::occurrence(kind, &payload) {
                Ok(Some(occurrence)) => {
                    if let Some(event) = index.resolve(&occurrence, if_id) {
                        sink(event);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "event of the kernel not understood");
                    sink(PlaneEvent::Lost);
                }
            },
        });
        if let Err(error) = received {
            tracing::error!(%error, "no more events of the kernel");
            sink(PlaneEvent::Lost);
            return;
        }
    }
}

/// The kernel keeps ESP and keepalives of an encapsulation socket to itself; what arrives here
/// is IKE behind the marker, or rubbish.
fn read_ike(port: &UdpPort, wake: &OwnedFd, sink: &EventSink) {
    let mut ring = RecvRing::new();
    while wait(port, wake) {
        match port.recv(&mut ring) {
            Ok(()) => {
                for datagram in ring.datagrams() {
                    let Some(payload) = datagram.payload.strip_prefix(&NON_ESP_MARKER) else {
                        continue;
                    };
                    sink(PlaneEvent::Ike {
                        local: datagram.local,
                        remote: datagram.remote,
                        payload: payload.to_vec(),
                    });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::warn!(%error, "cannot receive on an encapsulation socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::kernel::decode::Wanted;

    fn hosts() -> Hosts {
        Hosts {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "198.51.100.2:1024".parse().unwrap(),
            encap: true,
        }
    }

    fn index() -> Index {
        let index = Index::default();
        index.insert(ChildId(1), Spi(0x100), Spi(0x200), hosts());
        index
    }

    fn expire(destination: &str, spi: u32, if_id: u32) -> Occurrence {
        Occurrence::Expire {
            destination: destination.parse::<IpAddr>().unwrap(),
            spi: Spi(spi),
            hard: true,
            if_id,
        }
    }

    #[test]
    fn matches_events_to_children_and_ignores_strangers() {
        let index = index();
        let gone = Some(PlaneEvent::Expire { child: ChildId(1), hard: true });
        assert_eq!(index.resolve(&expire("192.0.2.1", 0x100, 5), 5), gone);
        assert_eq!(index.resolve(&expire("198.51.100.2", 0x200, 5), 5), gone);
        assert_eq!(index.resolve(&expire("198.51.100.3", 0x200, 5), 5), None);
        assert_eq!(index.resolve(&expire("192.0.2.1", 0x100, 6), 5), None, "another instance");
        index.remove(ChildId(1), Spi(0x100), Spi(0x200));
        assert_eq!(index.resolve(&expire("192.0.2.1", 0x100, 5), 5), None);
    }

    #[test]
    fn a_mapping_is_news_once() {
        let index = index();
        let mapping = |port| Occurrence::Mapping {
            local: "192.0.2.1".parse().unwrap(),
            spi: Spi(0x100),
            address: "198.51.100.2".parse().unwrap(),
            port,
        };
        assert_eq!(index.resolve(&mapping(1024), 5), None);
        let remote = "198.51.100.2:2048".parse().unwrap();
        let moved = Some(PlaneEvent::Mapping { child: ChildId(1), remote });
        assert_eq!(index.resolve(&mapping(2048), 5), moved);
        index.insert(ChildId(1), Spi(0x100), Spi(0x200), Hosts { remote, ..hosts() });
        assert_eq!(index.resolve(&mapping(2048), 5), None);
    }

    #[test]
    fn an_acquire_names_the_child_whose_sa_is_missing() {
        let index = index();
        let destination = "10.77.0.2".parse().unwrap();
        let acquire = |spi, if_id| Occurrence::Acquire {
            destination,
            sender: Some(Wanted {
                source: "192.0.2.1".parse().unwrap(),
                destination: "198.51.100.2".parse().unwrap(),
                spi: Spi(spi),
                reqid: 1,
            }),
            if_id,
        };
        let event = |child| Some(PlaneEvent::Acquire { child, destination });
        assert_eq!(index.resolve(&acquire(0x200, 5), 5), event(Some(ChildId(1))));
        assert_eq!(index.resolve(&acquire(0x201, 5), 5), event(None));
        assert_eq!(index.resolve(&acquire(0x200, 6), 5), None, "another instance");
    }
}
