//! A runner that is an engine of this workspace, with real cryptography over a real socket.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use ike::event::Event;
use ike::io::Datagram;
use ike::wire::{IdType, Identification};
use ike::{Input, Now, Timestamp, Transmit, WallTime};

use crate::real::Party;

/// IKE's port, and the one behind NATs.
pub(super) const PORTS: (u16, u16) = (500, 4500);

/// See the module.
pub(super) struct Runner {
    pub(super) party: Party,
    socket: UdpSocket,
    /// How long it took to connect.
    pub(super) connected: Option<Duration>,
}

impl Runner {
    /// A runner with a socket of its own at this address.
    pub(super) fn new(party: Party, local: SocketAddr) -> Result<Self> {
        Self::at(party, SocketAddr::new(local.ip(), 0))
    }

    /// As [`Runner::new`], at this port.
    pub(super) fn at(party: Party, local: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok(Self { party, socket, connected: None })
    }

    /// Takes what has arrived, if anything has, and sees to timers that are due.
    pub(super) fn work(
        &mut self,
        started: Instant,
        local: SocketAddr,
        readable: bool,
    ) -> Result<()> {
        let mut buffer = [0; 8192];
        while readable && let Ok((length, remote)) = self.socket.recv_from(&mut buffer) {
            let payload = buffer.get(..length).unwrap_or_default();
            self.receive(started, local, remote, payload)?;
        }
        let due = self.party.engine.poll_timeout();
        if due.is_some_and(|due| due.at <= now(started).mono) {
            self.give(started, Input::Timeout)?;
        }
        Ok(())
    }

    fn receive(
        &mut self,
        started: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Result<()> {
        let encap = remote.port() == PORTS.1;
        let payload = if encap { payload.strip_prefix(&[0; 4]) } else { Some(payload) };
        let Some(payload) = payload else { return Ok(()) };
        let local = SocketAddr::new(local.ip(), remote.port());
        let datagram = Datagram { local, remote, encap, payload: payload.to_vec() };
        self.give(started, Input::Datagram(datagram))
    }

    /// Gives the engine an input and sends what it has to say.
    pub(super) fn give(&mut self, started: Instant, input: Input) -> Result<()> {
        let (mut sent, mut events) = (Vec::new(), Vec::new());
        self.party.handle(now(started), input, &mut sent, &mut events);
        for transmit in sent {
            self.send(&transmit);
        }
        for event in events {
            match event {
                Event::ChildUp { .. } => self.connected = Some(started.elapsed()),
                Event::Refused(refusal) => bail!("a runner was refused: {refusal}"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends as the network does: what does not fit is lost.
    fn send(&self, transmit: &Transmit) {
        let mut bytes = Vec::new();
        if transmit.encap && transmit.payload != [0xff] {
            bytes.extend([0; 4]);
        }
        bytes.extend(&transmit.payload);
        let _ = self.socket.send_to(&bytes, transmit.remote);
    }
}

impl AsFd for Runner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Our address towards the gateway.
pub(super) fn local_address(gateway: SocketAddr) -> Result<SocketAddr> {
    let probe = UdpSocket::bind("0.0.0.0:0")?;
    probe.connect(gateway)?;
    Ok(SocketAddr::new(probe.local_addr()?.ip(), PORTS.0))
}

/// The engine's time: the first is counted from `started`.
pub(super) fn now(started: Instant) -> Now {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now {
        mono: Timestamp(micros(started.elapsed())),
        wall: WallTime(i64::try_from(micros(wall)).unwrap_or(i64::MAX)),
    }
}

/// A certificate's subject as an identity, in its own DER.
pub(super) fn subject(certificate: &[u8]) -> Result<Identification> {
    let subject = crate::real::subject(certificate).context("no subject in a certificate")?;
    Ok(Identification { id_type: IdType::DerAsn1Dn, data: subject.to_vec() })
}
