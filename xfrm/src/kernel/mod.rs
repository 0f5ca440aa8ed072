//! The kernel data plane: XFRM over netlink.
//!
//! Duty: keep exactly the SAs and policies in the kernel that the children given to it need, on
//! one xfrm interface of its own. Everything it makes carries the interface's `if_id`, so it
//! tells its own from strangers' and never touches theirs.
//!
//! # What is installed
//! - Four wide inbound policies (`in` and `fwd` for IPv4 and IPv6): what leaves the interface
//!   must have come through some ESP tunnel SA of ours. *Which* client may use which source is
//!   the firewall's business (reqid and address).
//! - Per child two SAs. Per inner address one outbound policy whose template names the client's
//!   outer addresses, the lease's reqid and the SPI of the SA that sends now. Naming the SPI
//!   makes the switch at a rekey one policy update, at the moment the control plane chooses.
//!
//! # Order
//! Installation: inbound SA, outbound SA, policy. Removal: policy, outbound SA, inbound SA. A
//! move of the peer: new outbound SA, policy, then the old one goes. Keys stay here for moves
//! and are never read back from the kernel.

mod decode;
mod encode;
mod events;
mod hosts;
mod suites;
#[cfg(any(test, feature = "fuzzing"))]
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use ring::rand::{SecureRandom, SystemRandom};

use self::decode::SaState;
use self::encode::{Context, Half, Sequence};
use self::events::{Index, Threads};
pub(crate) use self::suites::try_esp;
#[cfg(any(test, feature = "fuzzing"))]
pub use self::targets::kernel_message;
#[cfg(test)]
pub(crate) use self::targets::samples;
use crate::Dataplane;
use crate::dataplane::EventSink;
use crate::error::PlaneError;
use crate::model::{
    Capabilities, ChildId, ChildSpec, EspSuite, Hosts, Mode, PlaneKind, PlaneStats, Spi, Usage,
};
use crate::netlink::{Message, Netlink, Protocol, Refusal};
use crate::route::RouteSocket;
use crate::udp::UdpPort;

/// SPIs 1 to 255 are reserved (RFC 4303 2.1).
const FIRST_SPI: u32 = 256;
/// SPIs handed out and not yet installed that are remembered.
const RESERVED_SPIS: usize = 65_536;
/// Largest anti-replay window of the kernel (`XFRMA_REPLAY_ESN_MAX`).
const MAX_WINDOW: u32 = 4096;

/// How the plane is set up.
#[derive(Debug)]
pub struct KernelConfig {
    /// Name of the xfrm interface to make.
    pub interface: String,
    /// Its identifier, other than 0 and unique to this instance; see [`if_id_for`].
    pub if_id: u32,
    /// Bound encapsulation ports (UDP 4500), opened with `kernel_encap` and `bypass_policies`.
    pub ports: Vec<UdpPort>,
}

/// An identifier for an interface that is the same at every start (FNV-1a of its name).
pub fn if_id_for(interface: &str) -> u32 {
    let hash = interface
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// Prefixes behind one peer at most: each is a policy.
const MAX_NETWORKS: usize = 128;

/// The kernel data plane.
#[derive(Debug)]
pub struct KernelPlane {
    netlink: Netlink,
    context: Context,
    interface: String,
    owns_interface: bool,
    suites: Vec<EspSuite>,
    index: Index,
    threads: Option<Threads>,
    children: BTreeMap<ChildId, ChildSpec>,
    /// Which child sends to an inner address, and its policy's index.
    senders: BTreeMap<IpNet, Sender>,
    policies_made: u32,
    reserved: BTreeSet<Spi>,
}

/// Who sends to an inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sender {
    child: ChildId,
    policy: u32,
}

/// One request of a sequence, and how to take it back.
struct Step {
    what: String,
    message: Message,
    undo: Option<Message>,
}

impl KernelPlane {
    /// Makes the xfrm interface (down; the tunnel's network brings it up), removes what a killed
    /// instance with the same `if_id` left, and installs the inbound policies.
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`] when the kernel has no ESP; [`PlaneError::Conflict`] when the
    /// interface name is somebody else's; otherwise the kernel's refusal.
    pub fn open(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        let mut routes = RouteSocket::open()?;
        if let Some(link) = routes.link(&config.interface)? {
            if link.xfrm_if_id != Some(config.if_id) {
                return Err(PlaneError::Conflict(format!(
                    "interface {} exists and is not Runnel's; choose another name or remove it",
                    config.interface
                )));
            }
            routes.delete_link(&config.interface)?;
        }
        routes.add_xfrm_interface(&config.interface, config.if_id)?;
        let interface = config.interface.clone();
        match Self::on_interface(config, sink) {
            Ok(mut plane) => {
                plane.owns_interface = true;
                if plane.suites.is_empty() {
                    plane.shutdown()?;
                    return Err(PlaneError::Unsupported {
                        plane: PlaneKind::Kernel.name(),
                        what: "encrypt".to_owned(),
                        fix: "use a kernel with ESP and AES-GCM, or dataplane = \"userspace\"",
                    });
                }
                Ok(plane)
            }
            Err(error) => {
                if let Err(second) = routes.delete_link(&interface) {
                    tracing::warn!(error = %second, "interface not removed after a failed start");
                }
                Err(error)
            }
        }
    }

    /// As [`Self::open`], on an interface somebody else made and keeps. Works without ESP in the
    /// kernel, with no suite then.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn on_interface(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        let mut netlink = Netlink::open(Protocol::Xfrm)?;
        let sa_dir = matches!(
            netlink.try_query(encode::ask_for_direction())?,
            Err(refusal) if refusal.errno == libc::EINVAL
        );
        let context = Context { if_id: config.if_id, sa_dir };
        let suites = suites::supported(&mut netlink, context)?;
        let index = Index::default();
        let threads = Threads::start(&index, config.if_id, config.ports, sink)?;
        let mut plane = Self {
            netlink,
            context,
            interface: config.interface,
            owns_interface: false,
            suites,
            index,
            threads: Some(threads),
            children: BTreeMap::new(),
            senders: BTreeMap::new(),
            policies_made: 0,
            reserved: BTreeSet::new(),
        };
        plane.purge()?;
        let steps = encode::wide_policies(context)
            .into_iter()
            .map(|message| Step {
                what: "install an inbound policy".to_owned(),
                message,
                undo: None,
            })
            .collect();
        if let Err(error) = plane.run(steps) {
            if let Err(second) = plane.purge() {
                tracing::warn!(error = %second, "policies not removed after a failed start");
            }
            return Err(error);
        }
        Ok(plane)
    }

    /// Runs requests in one batch; after a refusal takes back, newest first, what took effect.
    fn run(&mut self, steps: Vec<Step>) -> Result<(), PlaneError> {
        let (mut whats, mut messages, mut undos) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            whats.push(step.what);
            messages.push(step.message);
            undos.push(step.undo);
        }
        let results = self.netlink.batch(messages)?;
        let mut first = None;
        let mut done = Vec::new();
        for ((result, what), undo) in results.into_iter().zip(whats).zip(undos) {
            match result {
                Ok(()) => done.extend(undo),
                Err(refusal) => {
                    first.get_or_insert_with(|| refusal.into_error(what));
                }
            }
        }
        match first {
            None => Ok(()),
            Some(error) => {
                done.reverse();
                for result in self.netlink.batch(done)? {
                    if let Err(refusal) = result {
                        tracing::warn!(%refusal, "could not take back a part of a failed change");
                    }
                }
                Err(error)
            }
        }
    }

    /// Runs deletions; what is gone already is as good.
    fn run_deletions(&mut self, what: &str, messages: Vec<Message>) -> Result<(), PlaneError> {
        let gone = |refusal: &Refusal| matches!(refusal.errno, libc::ESRCH | libc::ENOENT);
        let results = self.netlink.batch(messages)?;
        match results.into_iter().filter_map(Result::err).find(|refusal| !gone(refusal)) {
            Some(refusal) => Err(refusal.into_error(what)),
            None => Ok(()),
        }
    }

    /// Removes every policy and SA with our `if_id`; returns how many there were.
    fn purge(&mut self) -> Result<usize, PlaneError> {
        let ours = self.context.if_id;
        let policies =
            self.netlink.dump("list policies", &encode::dump_policies(), |_, payload| {
                decode::policy(payload).map(|policy| (policy.if_id == ours).then_some(policy))
            })?;
        let sas = self.dump_sas()?;
        let found = policies.len() + sas.len();
        let mut messages: Vec<Message> = policies
            .into_iter()
            .map(|policy| encode::delete_policy_by_index(self.context, policy.index))
            .collect();
        messages.extend(sas.into_iter().map(|sa| encode::delete_sa(sa.destination, sa.spi)));
        self.run_deletions("remove an SA or policy", messages)?;
        Ok(found)
    }

    fn dump_sas(&mut self) -> Result<Vec<SaState>, PlaneError> {
        let ours = self.context.if_id;
        self.netlink.dump("list SAs", &encode::dump_sas(), |_, payload| {
            decode::sa(payload).map(|sa| (sa.if_id == ours).then_some(sa))
        })
    }

    /// One SA's state; `None` when the kernel no longer has it.
    fn state(&mut self, destination: IpAddr, spi: Spi) -> Result<Option<SaState>, PlaneError> {
        match self.netlink.try_query(encode::get_sa(destination, spi))? {
            Ok((_, payload)) => decode::sa(&payload).map(Some),
            Err(refusal) if refusal.errno == libc::ESRCH => Ok(None),
            Err(refusal) => Err(refusal.into_error(format!("show SA {spi}"))),
        }
    }

    fn known(&self, child: ChildId) -> Result<&ChildSpec, PlaneError> {
        self.children.get(&child).ok_or_else(|| PlaneError::Unknown(format!("child {}", child.0)))
    }

    /// The requests that make a child the sender for its inner addresses, each with its reversal,
    /// and who sends then.
    fn policy_steps(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
        inners: &[IpNet],
    ) -> (Vec<Step>, Vec<(IpNet, Sender)>) {
        let mut steps = Vec::with_capacity(inners.len());
        let mut senders = Vec::with_capacity(inners.len());
        for &inner in inners {
            let former = self.senders.get(&inner).copied();
            let policy = former.map_or_else(|| self.next_index(), |sender| sender.policy);
            let before = former.and_then(|sender| self.children.get(&sender.child));
            let undo = match before {
                Some(before) => encode::outbound_policy(
                    self.context,
                    before,
                    &before.hosts,
                    inner,
                    policy,
                    true,
                ),
                None => encode::delete_outbound_policy(self.context, inner),
            };
            let message =
                encode::outbound_policy(self.context, spec, hosts, inner, policy, before.is_some());
            let what = format!("install the outbound policy for {inner}");
            steps.push(Step { what, message, undo: Some(undo) });
            senders.push((inner, Sender { child: spec.id, policy }));
        }
        (steps, senders)
    }

    fn next_index(&mut self) -> u32 {
        self.policies_made = self.policies_made.wrapping_add(1);
        encode::outbound_index(self.policies_made)
    }

    /// Inner addresses of a child for which it is the sender now.
    fn sends_to(&self, spec: &ChildSpec) -> Vec<IpNet> {
        let mut inners = inner_networks(spec);
        inners.retain(|inner| self.senders.get(inner).is_some_and(|s| s.child == spec.id));
        inners
    }

    /// Deletes the outbound policies of inner addresses.
    fn delete_policies(&mut self, inners: &[IpNet]) -> Result<(), PlaneError> {
        const WHAT: &str = "remove an outbound policy";
        let doomed: Vec<(IpNet, u32)> = inners
            .iter()
            .filter_map(|inner| self.senders.get(inner).map(|sender| (*inner, sender.policy)))
            .collect();
        let messages = doomed
            .iter()
            .map(|(_, index)| encode::delete_policy_by_index(self.context, *index))
            .collect();
        for (result, (inner, _)) in self.netlink.batch(messages)?.into_iter().zip(&doomed) {
            match result {
                Ok(()) => {}
                // The index was a stranger's already, so the kernel chose another.
                Err(refusal) if refusal.errno == libc::ENOENT => {
                    let message = encode::delete_outbound_policy(self.context, *inner);
                    self.run_deletions(WHAT, vec![message])?;
                }
                Err(refusal) => return Err(refusal.into_error(WHAT)),
            }
            self.senders.remove(inner);
        }
        Ok(())
    }

    fn check(&self, spec: &ChildSpec) -> Result<(), PlaneError> {
        let unsupported = |what: String, fix| PlaneError::Unsupported {
            plane: PlaneKind::Kernel.name(),
            what,
            fix,
        };
        if self.children.contains_key(&spec.id) {
            return Err(PlaneError::Conflict(format!("child {} is already installed", spec.id.0)));
        }
        if self.index.is_inbound(spec.spi_in) {
            return Err(PlaneError::Conflict(format!("inbound SPI {} is in use", spec.spi_in)));
        }
        for keys in [&spec.keys_in, &spec.keys_out] {
            if (keys.encr.len(), keys.integ.len()) != spec.suite.key_lengths() {
                return Err(PlaneError::Conflict(format!(
                    "keys of child {} do not have the lengths of {}",
                    spec.id.0,
                    spec.suite.name()
                )));
            }
        }
        if spec.hosts.local.is_ipv4() != spec.hosts.remote.is_ipv4() {
            return Err(PlaneError::Conflict(format!(
                "outer addresses {} and {} are of different families",
                spec.hosts.local, spec.hosts.remote
            )));
        }
        if spec.mode != Mode::Tunnel {
            return Err(unsupported("do transport mode".to_owned(), "negotiate tunnel mode"));
        }
        if spec.replay_window > MAX_WINDOW {
            return Err(unsupported(
                format!("keep a replay window of {}", spec.replay_window),
                "choose at most 4096",
            ));
        }
        if inner_networks(spec).len() > MAX_NETWORKS {
            return Err(unsupported(
                format!("route more than {MAX_NETWORKS} networks to one peer"),
                "name whole networks instead of odd ranges",
            ));
        }
        Ok(())
    }

    fn usage_of(&mut self, spec: &ChildSpec) -> Result<Usage, PlaneError> {
        let inbound = self.state(spec.hosts.local.ip(), spec.spi_in)?;
        let outbound = self.state(spec.hosts.remote.ip(), spec.spi_out)?;
        Ok(usage(inbound.as_ref(), outbound.as_ref()))
    }
}

fn usage(inbound: Option<&SaState>, outbound: Option<&SaState>) -> Usage {
    let mut usage = Usage::default();
    if let Some(sa) = inbound {
        usage.bytes_in = sa.bytes;
        usage.packets_in = sa.packets;
        usage.drops_replay = sa.drops_replay;
        usage.drops_auth = sa.drops_auth;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        usage.idle_in_micros =
            sa.last_used.map(|at| now.saturating_sub(at).saturating_mul(1_000_000));
    }
    if let Some(sa) = outbound {
        usage.bytes_out = sa.bytes;
        usage.packets_out = sa.packets;
        usage.seq_out = sa.sequence.sent;
    }
    usage
}

/// The peer's inner addresses as the prefixes that policies are made of.
fn inner_networks(spec: &ChildSpec) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = Vec::new();
    for selector in &spec.remote_selectors {
        match (selector.start, selector.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => {
                networks.extend(Ipv4Subnets::new(start, end, 0).map(IpNet::V4));
            }
            (IpAddr::V6(start), IpAddr::V6(end)) => {
                networks.extend(Ipv6Subnets::new(start, end, 0).map(IpNet::V6));
            }
            // Mixed families match nothing.
            _ => {}
        }
    }
    networks.sort();
    networks.dedup();
    networks
}

impl Dataplane for KernelPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Kernel
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            plain_esp: true,
            // The xfrm interface would send such packets to itself, the inbound policies want tunnel
            // SAs, and packets that do not pass the interface pass no filter.
            transport_mode: false,
            esn: true,
            max_replay_window: MAX_WINDOW,
            update_hosts: true,
            suites: self.suites.clone(),
        }
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn alloc_spi(&mut self) -> Result<Spi, PlaneError> {
        // The kernel's own allocation needs our outer address, which is not known this early;
        // a random number collides with a stranger's SA as good as never, and NEWSA tells.
        let random = SystemRandom::new();
        // A negotiation that failed never gives its SPI back.
        if self.reserved.len() >= RESERVED_SPIS {
            self.reserved.clear();
        }
        loop {
            let mut bytes = [0; 4];
            random.fill(&mut bytes).map_err(|_| PlaneError::System {
                what: "cannot choose an SPI".to_owned(),
                reason: "no randomness".to_owned(),
                fix: "check that getrandom(2) is permitted".to_owned(),
            })?;
            let spi = Spi(u32::from_be_bytes(bytes));
            if spi.0 >= FIRST_SPI && !self.index.is_inbound(spi) && self.reserved.insert(spi) {
                return Ok(spi);
            }
        }
    }

    fn install(&mut self, spec: &ChildSpec) -> Result<(), PlaneError> {
        self.check(spec)?;
        let fresh = Sequence::default();
        let sent = Sequence { sent: spec.first_seq_out, ..Sequence::default() };
        let (context, hosts) = (self.context, &spec.hosts);
        let mut steps = vec![
            Step {
                what: format!("install the inbound SA {}", spec.spi_in),
                message: encode::new_sa(context, spec, hosts, Half::In, &fresh),
                undo: Some(encode::delete_sa(hosts.local.ip(), spec.spi_in)),
            },
            Step {
                what: format!("install the outbound SA {}", spec.spi_out),
                message: encode::new_sa(context, spec, hosts, Half::Out, &sent),
                undo: Some(encode::delete_sa(hosts.remote.ip(), spec.spi_out)),
            },
        ];
        let mut senders = Vec::new();
        if spec.outbound_active {
            let (policies, theirs) = self.policy_steps(spec, hosts, &inner_networks(spec));
            steps.extend(policies);
            senders = theirs;
        }
        // Before the SAs, so that not even their first event finds nobody.
        self.index.insert(spec.id, spec.spi_in, spec.spi_out, spec.hosts);
        if let Err(error) = self.run(steps) {
            self.index.remove(spec.id, spec.spi_in, spec.spi_out);
            return Err(error);
        }
        self.reserved.remove(&spec.spi_in);
        self.senders.extend(senders);
        self.children.insert(spec.id, spec.clone());
        Ok(())
    }

    fn activate_outbound(&mut self, child: ChildId) -> Result<(), PlaneError> {
        let spec = self.known(child)?.clone();
        let (steps, senders) = self.policy_steps(&spec, &spec.hosts, &inner_networks(&spec));
        self.run(steps)?;
        self.senders.extend(senders);
        Ok(())
    }

    fn update_hosts(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError> {
        self.move_child(child, hosts)
    }

    fn remove(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let spec = self.known(child)?.clone();
        for inner in self.sends_to(&spec) {
            // The newest other child that carries the address goes on sending.
            let heir = self
                .children
                .values()
                .rev()
                .find(|other| other.id != child && inner_networks(other).contains(&inner));
            match heir.cloned() {
                Some(heir) => {
                    let (steps, senders) = self.policy_steps(&heir, &heir.hosts, &[inner]);
                    self.run(steps)?;
                    self.senders.extend(senders);
                }
                None => self.delete_policies(&[inner])?,
            }
        }
        let usage = self.usage_of(&spec)?;
        self.run_deletions(
            "remove an SA",
            vec![
                encode::delete_sa(spec.hosts.remote.ip(), spec.spi_out),
                encode::delete_sa(spec.hosts.local.ip(), spec.spi_in),
            ],
        )?;
        self.children.remove(&child);
        self.index.remove(child, spec.spi_in, spec.spi_out);
        Ok(usage)
    }

    fn usage(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let spec = self.known(child)?.clone();
        self.usage_of(&spec)
    }

    fn children(&self) -> Vec<ChildId> {
        self.children.keys().copied().collect()
    }

    fn stats(&self) -> PlaneStats {
        // Of the whole namespace: the kernel has no finer ones.
        let text = std::fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap_or_default();
        PlaneStats { drops: parse_stats(&text) }
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        if let Some(mut threads) = self.threads.take() {
            threads.stop();
        }
        self.children.clear();
        self.senders.clear();
        self.reserved.clear();
        self.index = Index::default();
        self.purge()?;
        if self.owns_interface {
            RouteSocket::open()?.delete_link(&self.interface)?;
            self.owns_interface = false;
        }
        Ok(())
    }
}

/// Turns `/proc/net/xfrm_stat` into drop counters by reason; several of the kernel's counters
/// make one of ours.
fn parse_stats(text: &str) -> Vec<(&'static str, u64)> {
    let mut drops: BTreeMap<&'static str, u64> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let reason = match name {
            "XfrmInNoStates" | "XfrmOutNoStates" | "XfrmAcquireError" => "no_sa",
            "XfrmInStateSeqError" | "XfrmOutStateSeqError" => "replay",
            "XfrmInStateProtoError" | "XfrmOutStateProtoError" => "auth",
            "XfrmInHdrError" | "XfrmInBufferError" => "malformed",
            "XfrmInStateMismatch" => "ts",
            "XfrmInTmplMismatch" | "XfrmInNoPols" | "XfrmInPolBlock" | "XfrmInPolError"
            | "XfrmOutPolBlock" | "XfrmOutPolError" | "XfrmFwdHdrError" => "policy",
            "XfrmInStateExpired"
            | "XfrmOutStateExpired"
            | "XfrmInStateInvalid"
            | "XfrmOutStateInvalid" => "expired",
            "XfrmInError"
            | "XfrmOutError"
            | "XfrmOutBundleGenError"
            | "XfrmOutBundleCheckError"
            | "XfrmOutStateModeError"
            | "XfrmInStateModeError" => "other",
            _ => continue,
        };
        let count = drops.entry(reason).or_default();
        *count = count.saturating_add(value.parse().unwrap_or_default());
    }
    drops.into_iter().collect()
}

#[cfg(test)]
mod tests;
