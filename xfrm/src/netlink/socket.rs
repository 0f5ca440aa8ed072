//! The socket: requests with acknowledgement, batches, dumps, and multicast events.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols};
use zeroize::{Zeroize, Zeroizing};

use super::refusal::Refusal;
use super::wire::{Frame, Frames, Message};
use crate::error::PlaneError;

const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x010;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// The kernel answers synchronously; a silence this long is a lost answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A dump interrupted by a change is started over this often before it counts as a failure.
const DUMP_ATTEMPTS: u32 = 10;
/// Dumps come in datagrams of at most 32 KiB; larger is room for single large answers.
const RECEIVE_LEN: usize = 64 * 1024;
/// Messages sent before their acknowledgements are read: their number is bounded by the receive
/// buffer, which holds some 250 of them at its default size.
const BATCH_MESSAGES: usize = 100;

/// Netlink family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// rtnetlink: links, addresses, routes.
    Route,
    /// IPsec states and policies.
    Xfrm,
    /// nftables and conntrack.
    Netfilter,
}

impl Protocol {
    fn number(self) -> isize {
        match self {
            Self::Route => protocols::NETLINK_ROUTE,
            Self::Xfrm => protocols::NETLINK_XFRM,
            Self::Netfilter => protocols::NETLINK_NETFILTER,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Route => "NETLINK_ROUTE",
            Self::Xfrm => "NETLINK_XFRM",
            Self::Netfilter => "NETLINK_NETFILTER",
        }
    }

    /// The kernel's name of an attribute where it is one word for the whole family.
    pub(super) fn attribute_name(self, kind: u16) -> String {
        const XFRM: [&str; 42] = [
            "UNSPEC",
            "ALG_AUTH",
            "ALG_CRYPT",
            "ALG_COMP",
            "ENCAP",
            "TMPL",
            "SA",
            "POLICY",
            "SEC_CTX",
            "LTIME_VAL",
            "REPLAY_VAL",
            "REPLAY_THRESH",
            "ETIMER_THRESH",
            "SRCADDR",
            "COADDR",
            "LASTUSED",
            "POLICY_TYPE",
            "MIGRATE",
            "ALG_AEAD",
            "KMADDRESS",
            "ALG_AUTH_TRUNC",
            "MARK",
            "TFCPAD",
            "REPLAY_ESN_VAL",
            "SA_EXTRA_FLAGS",
            "PROTO",
            "ADDRESS_FILTER",
            "PAD",
            "OFFLOAD_DEV",
            "SET_MARK",
            "SET_MARK_MASK",
            "IF_ID",
            "MTIMER_THRESH",
            "SA_DIR",
            "NAT_KEEPALIVE_INTERVAL",
            "SA_PCPU",
            "IPTFS_DROP_TIME",
            "IPTFS_REORDER_WINDOW",
            "IPTFS_DONT_FRAG",
            "IPTFS_INIT_DELAY",
            "IPTFS_MAX_QSIZE",
            "IPTFS_PKT_SIZE",
        ];
        match (self, XFRM.get(usize::from(kind))) {
            (Self::Xfrm, Some(name)) => format!("XFRMA_{name}"),
            _ => kind.to_string(),
        }
    }
}

/// A request socket. One request (or batch) is under way at a time.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    protocol: Protocol,
    sequence: u32,
    port: u32,
    buffer: Zeroizing<Vec<u8>>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace; it stays there.
    ///
    /// # Errors
    /// When the kernel lacks the family.
    pub fn open(protocol: Protocol) -> Result<Self, PlaneError> {
        let refuse = |error: io::Error| {
            Refusal::from_io(&error, protocol)
                .into_error(format!("open a {} socket", protocol.name()))
        };
        let mut socket = Socket::new(protocol.number()).map_err(refuse)?;
        let address = socket.bind_auto().map_err(refuse)?;
        socket.set_ext_ack(true).map_err(refuse)?;
        // Without it every refusal would echo the request, keys included.
        socket.set_cap_ack(true).map_err(refuse)?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_TIMEOUT),
        )
        .map_err(|errno| refuse(errno.into()))?;
        Ok(Self {
            socket,
            protocol,
            sequence: 0,
            port: address.port_number(),
            buffer: Zeroizing::new(vec![0; RECEIVE_LEN]),
        })
    }

    /// Sends a request and waits for its acknowledgement. `what` completes "refused to ...".
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(&mut self, what: &str, message: Message) -> Result<(), PlaneError> {
        self.try_request(message)?.map_err(|refusal| refusal.into_error(what))
    }

    /// As [`Self::request`], with the refusal as a value to decide on.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn try_request(&mut self, message: Message) -> Result<Result<(), Refusal>, PlaneError> {
        Ok(self.exchange(message)?.map(|_| ()))
    }

    /// Sends a request whose answer is one message; returns its payload.
    ///
    /// # Errors
    /// The kernel's refusal, or [`PlaneError::Malformed`] when there is no answer.
    pub fn query(
        &mut self,
        what: &str,
        message: Message,
    ) -> Result<(u16, Zeroizing<Vec<u8>>), PlaneError> {
        self.try_query(message)?.map_err(|refusal| refusal.into_error(what))
    }

    /// As [`Self::query`], with the refusal as a value to decide on.
    ///
    /// # Errors
    /// When the socket fails or there is no answer.
    #[allow(clippy::type_complexity)]
    pub fn try_query(
        &mut self,
        message: Message,
    ) -> Result<Result<(u16, Zeroizing<Vec<u8>>), Refusal>, PlaneError> {
        match self.exchange(message)? {
            Ok(Some(answer)) => Ok(Ok(answer)),
            Ok(None) => Err(PlaneError::Malformed("acknowledged without an answer".to_owned())),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Sends many requests, each acknowledged on its own; results in the same order. A refusal
    /// does not stop those that follow.
    ///
    /// # Errors
    /// When the socket fails; how many took effect is then unknown.
    pub fn batch(
        &mut self,
        messages: Vec<Message>,
    ) -> Result<Vec<Result<(), Refusal>>, PlaneError> {
        let mut results = Vec::with_capacity(messages.len());
        let mut queue = VecDeque::from(messages);
        while !queue.is_empty() {
            let mut chunk: Vec<Message> = queue.drain(..queue.len().min(BATCH_MESSAGES)).collect();
            let first = self.sequence.wrapping_add(1);
            for message in &mut chunk {
                self.sequence = self.sequence.wrapping_add(1);
                message.seal(NLM_F_REQUEST | NLM_F_ACK, self.sequence);
            }
            self.send(&chunk)?;
            let mut outcomes = vec![None; chunk.len()];
            let mut open = chunk.len();
            while open > 0 {
                let length = self.receive()?;
                for frame in Frames::new(self.buffer.get(..length).unwrap_or(&[])) {
                    let frame = frame?;
                    let index =
                        usize::try_from(frame.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                    let (Some(outcome), Some(message)) =
                        (outcomes.get_mut(index), chunk.get(index))
                    else {
                        continue;
                    };
                    if frame.kind == NLMSG_ERROR && outcome.is_none() {
                        let refusal = Refusal::parse(
                            frame.payload,
                            frame.flags,
                            message.bytes(),
                            self.protocol,
                        )?;
                        *outcome = Some(refusal.map_or(Ok(()), Err));
                        open -= 1;
                    }
                }
            }
            results.extend(outcomes.into_iter().flatten());
        }
        Ok(results)
    }

    /// Sends nftables messages as one transaction: all take effect, or none.
    ///
    /// # Errors
    /// The first refusal.
    pub fn transaction(&mut self, what: &str, messages: Vec<Message>) -> Result<(), PlaneError> {
        self.try_transaction(messages)?.map_err(|refusal| refusal.into_error(what))
    }

    /// As [`Self::transaction`], with the refusal as a value to decide on.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn try_transaction(
        &mut self,
        messages: Vec<Message>,
    ) -> Result<Result<(), Refusal>, PlaneError> {
        if messages.is_empty() {
            return Ok(Ok(()));
        }
        // struct nfgenmsg: family, version, resource id (the subsystem, network order).
        let marker = [0, 0, 0, NFNL_SUBSYS_NFTABLES.to_be_bytes()[1]];
        let mut all = Vec::with_capacity(messages.len() + 2);
        all.push(Message::new(NFNL_MSG_BATCH_BEGIN, 0, &marker));
        all.extend(messages);
        let first = self.sequence.wrapping_add(1);
        let last = all.len() - 1;
        for (index, message) in all.iter_mut().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            // Refusals arrive in the order of the messages, so the last acknowledgement ends it.
            message.seal(NLM_F_REQUEST | if index == last { NLM_F_ACK } else { 0 }, self.sequence);
        }
        let end_of_interest = self.sequence;
        let mut end = Message::new(NFNL_MSG_BATCH_END, 0, &marker);
        self.sequence = self.sequence.wrapping_add(1);
        end.seal(NLM_F_REQUEST, self.sequence);
        all.push(end);
        self.send(&all)?;
        let mut outcome = Ok(());
        loop {
            let length = self.receive()?;
            for frame in Frames::new(self.buffer.get(..length).unwrap_or(&[])) {
                let frame = frame?;
                let index =
                    usize::try_from(frame.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let (NLMSG_ERROR, Some(message)) = (frame.kind, all.get(index)) else {
                    continue;
                };
                let refusal =
                    Refusal::parse(frame.payload, frame.flags, message.bytes(), self.protocol)?;
                if let (Some(refusal), true) = (refusal, outcome.is_ok()) {
                    outcome = Err(refusal);
                }
                // A refusal of the whole batch answers its first message and nothing else.
                if frame.sequence == end_of_interest || (index == 0 && outcome.is_err()) {
                    return Ok(outcome);
                }
            }
        }
    }

    /// Lists objects: `parse` turns each message (type, payload) into an item or skips it. Starts
    /// over when the kernel reports that the list changed meanwhile.
    ///
    /// # Errors
    /// The kernel's refusal, or what `parse` returns.
    pub fn dump<T>(
        &mut self,
        what: &str,
        message: &Message,
        mut parse: impl FnMut(u16, &[u8]) -> Result<Option<T>, PlaneError>,
    ) -> Result<Vec<T>, PlaneError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = message.clone();
            self.sequence = self.sequence.wrapping_add(1);
            request.seal(NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
            self.send(std::slice::from_ref(&request))?;
            if let Some(items) = self.read_dump(what, &request, &mut parse)? {
                return Ok(items);
            }
        }
        Err(PlaneError::Malformed(format!("cannot {what}: it changes faster than it can be read")))
    }

    /// One attempt; `None` when it was interrupted.
    fn read_dump<T>(
        &mut self,
        what: &str,
        request: &Message,
        parse: &mut impl FnMut(u16, &[u8]) -> Result<Option<T>, PlaneError>,
    ) -> Result<Option<Vec<T>>, PlaneError> {
        let mut items = Vec::new();
        let mut interrupted = false;
        // After a parse error the rest of the dump is still read: the socket must be left empty.
        let mut failure = None;
        loop {
            let length = self.receive()?;
            for frame in Frames::new(self.buffer.get(..length).unwrap_or(&[])) {
                let frame = frame?;
                if frame.sequence != self.sequence || !self.is_mine(&frame) {
                    continue;
                }
                interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                match frame.kind {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => {
                        return Err(PlaneError::Malformed("netlink overrun".to_owned()));
                    }
                    NLMSG_ERROR | NLMSG_DONE => {
                        let refusal = if frame.payload.len() < 4 && frame.kind == NLMSG_DONE {
                            None
                        } else {
                            Refusal::parse(
                                frame.payload,
                                frame.flags,
                                request.bytes(),
                                self.protocol,
                            )?
                        };
                        if let Some(refusal) = refusal {
                            return Err(refusal.into_error(what));
                        }
                        return match failure {
                            Some(error) => Err(error),
                            None => Ok((!interrupted).then_some(items)),
                        };
                    }
                    kind if failure.is_none() => match parse(kind, frame.payload) {
                        Ok(item) => items.extend(item),
                        Err(error) => failure = Some(error),
                    },
                    _ => {}
                }
            }
        }
    }

    /// Sends one request; returns the answer's payload, if any, once it is acknowledged.
    #[allow(clippy::type_complexity)]
    fn exchange(
        &mut self,
        mut message: Message,
    ) -> Result<Result<Option<(u16, Zeroizing<Vec<u8>>)>, Refusal>, PlaneError> {
        self.sequence = self.sequence.wrapping_add(1);
        message.seal(NLM_F_REQUEST | NLM_F_ACK, self.sequence);
        self.send(std::slice::from_ref(&message))?;
        let mut answer = None;
        loop {
            let length = self.receive()?;
            for frame in Frames::new(self.buffer.get(..length).unwrap_or(&[])) {
                let frame = frame?;
                if frame.sequence != self.sequence || !self.is_mine(&frame) {
                    continue;
                }
                match frame.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => {
                        let refusal = Refusal::parse(
                            frame.payload,
                            frame.flags,
                            message.bytes(),
                            self.protocol,
                        )?;
                        return Ok(match refusal {
                            Some(refusal) => Err(refusal),
                            None => Ok(answer),
                        });
                    }
                    kind => answer = Some((kind, Zeroizing::new(frame.payload.to_vec()))),
                }
            }
        }
    }

    fn is_mine(&self, frame: &Frame<'_>) -> bool {
        frame.port == self.port
    }

    fn send(&self, messages: &[Message]) -> Result<(), PlaneError> {
        let length = messages.iter().map(|message| message.bytes().len()).sum();
        let mut datagram = Zeroizing::new(Vec::with_capacity(length));
        for message in messages {
            datagram.extend_from_slice(message.bytes());
        }
        let kernel = SocketAddr::new(0, 0);
        match self.socket.send_to(&datagram, &kernel, 0) {
            Ok(sent) if sent == length => Ok(()),
            Ok(_) => Err(PlaneError::Malformed("netlink request cut short".to_owned())),
            Err(error) => Err(Refusal::from_io(&error, self.protocol)
                .into_error(format!("take a request on {}", self.protocol.name()))),
        }
    }

    /// Receives one datagram from the kernel into the buffer; returns its length.
    fn receive(&mut self) -> Result<usize, PlaneError> {
        receive(&self.socket, &mut self.buffer, self.protocol)
    }
}

/// Receives one datagram that the kernel itself sent: any process may send to a netlink port.
fn receive(socket: &Socket, buffer: &mut [u8], protocol: Protocol) -> Result<usize, PlaneError> {
    loop {
        let mut space: &mut [u8] = buffer;
        match socket.recv_from(&mut space, libc::MSG_TRUNC) {
            Ok((_, from)) if from.port_number() != 0 => {}
            Ok((length, _)) if length > buffer.len() => {
                return Err(PlaneError::Malformed(format!("netlink datagram of {length} bytes")));
            }
            Ok((length, _)) => return Ok(length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(PlaneError::Malformed(format!(
                    "no answer from {} in {} s",
                    protocol.name(),
                    ANSWER_TIMEOUT.as_secs()
                )));
            }
            Err(error) => {
                return Err(Refusal::from_io(&error, protocol)
                    .into_error(format!("answer on {}", protocol.name())));
            }
        }
    }
}

/// What a multicast socket yields.
#[derive(Debug)]
pub enum Event {
    /// A message: type and payload (zeroized on drop).
    Message(u16, Zeroizing<Vec<u8>>),
    /// Messages were lost for want of buffer (ENOBUFS).
    Lost,
}

/// A socket that listens to multicast groups.
#[derive(Debug)]
pub struct EventSocket {
    socket: Socket,
    protocol: Protocol,
    buffer: Zeroizing<Vec<u8>>,
}

impl EventSocket {
    /// Joins groups (numbers, not masks) in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(protocol: Protocol, groups: &[u32]) -> Result<Self, PlaneError> {
        let refuse = |error: io::Error| {
            Refusal::from_io(&error, protocol)
                .into_error(format!("let us listen on {}", protocol.name()))
        };
        let mut socket = Socket::new(protocol.number()).map_err(refuse)?;
        socket.bind_auto().map_err(refuse)?;
        // Best effort: beyond net.core.rmem_max the kernel caps it, and loss is reported anyway.
        socket.set_rx_buf_sz(4_i32 * 1024 * 1024).map_err(refuse)?;
        for group in groups {
            socket.add_membership(*group).map_err(refuse)?;
        }
        Ok(Self { socket, protocol, buffer: Zeroizing::new(vec![0; RECEIVE_LEN]) })
    }

    /// Takes one datagram, if there is one, and hands its events to `each`. Poll the descriptor
    /// to wait. A malformed datagram counts as lost events, since what it said is unknown.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&mut self, mut each: impl FnMut(Event)) -> Result<(), PlaneError> {
        let mut space: &mut [u8] = &mut self.buffer;
        let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        let (length, from) = match self.socket.recv_from(&mut space, flags) {
            Ok(received) => received,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => Ok(()),
                    Some(libc::ENOBUFS) => {
                        each(Event::Lost);
                        Ok(())
                    }
                    _ => Err(Refusal::from_io(&error, self.protocol)
                        .into_error(format!("deliver events of {}", self.protocol.name()))),
                };
            }
        };
        if length > self.buffer.len() {
            each(Event::Lost);
        } else if from.port_number() == 0 {
            for frame in Frames::new(self.buffer.get(..length).unwrap_or(&[])) {
                match frame {
                    Ok(frame) => {
                        each(Event::Message(frame.kind, Zeroizing::new(frame.payload.to_vec())));
                    }
                    Err(_) => each(Event::Lost),
                }
            }
        }
        let used = length.min(self.buffer.len());
        if let Some(used) = self.buffer.get_mut(..used) {
            used.zeroize();
        }
        Ok(())
    }
}

impl AsFd for EventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
