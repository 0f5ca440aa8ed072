//! XFRM messages from the plain-data model.
//!
//! Pure functions: a child in, bytes out. Keys are copied once into the message, which is
//! zeroized on drop, and wiped from the packet crate's structures as soon as they are written.

use std::net::IpAddr;
use std::time::Instant;

use netlink_packet_core::DefaultNla;
use netlink_packet_xfrm::constants::{
    AF_INET, AF_INET6, IPPROTO_ESP, UDP_ENCAP_ESPINUDP, XFRM_INF, XFRM_MODE_TRANSPORT,
    XFRM_MODE_TUNNEL, XFRM_MSG_DELPOLICY, XFRM_MSG_DELSA, XFRM_MSG_GETPOLICY, XFRM_MSG_GETSA,
    XFRM_MSG_NEWPOLICY, XFRM_MSG_NEWSA, XFRM_MSG_UPDPOLICY, XFRM_MSG_UPDSA, XFRM_POLICY_FWD,
    XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_STATE_AF_UNSPEC, XFRM_STATE_ESN,
};
use netlink_packet_xfrm::policy::{
    DelGetMessage as PolicyDelGetMessage, ModifyMessage as PolicyModifyMessage,
};
use netlink_packet_xfrm::state::{DelGetMessage, ModifyMessage};
use netlink_packet_xfrm::{
    Address, Alg, AlgAead, AlgAuth, EncapTmpl, LifetimeConfig, Replay, ReplayEsn,
    Selector as XfrmSelector, UserPolicyId, UserPolicyInfo, UserSaId, UserSaInfo, UserTemplate,
    XfrmAttrs,
};
use zeroize::Zeroize;

use super::flow::Flow;
use super::offload::Device;
use crate::model::{ChildSpec, EspSuite, Hosts, Mode, SaKeys, Spi};
use crate::netlink::Message;

/// Direction of an SA (kernel 6.10 and newer); the packet crate does not know it.
pub(super) const XFRMA_SA_DIR: u16 = 33;
const XFRM_SA_DIR_IN: u8 = 1;
const XFRM_SA_DIR_OUT: u8 = 2;
/// Windows up to this fit the original replay state; larger ones and ESN need a bitmap.
const CLASSIC_WINDOW: u32 = 32;
/// Where Runnel's policies stand among others on the machine; lower goes first. They match only
/// packets of its own xfrm interface, so the value never decides against a stranger's.
const PRIORITY: u32 = 1000;
/// What passes beside the SAs is decided first.
const OUTSIDE_PRIORITY: u32 = PRIORITY - 1;
/// High half of the label of policies without `if_id`, whose low half is the instance's: "Runn".
pub(super) const LABEL: u64 = 0x5275_6e6e;
/// A changed peer address is reported at most this often, in seconds, instead of per packet.
const MAPPING_INTERVAL: u32 = 1;

/// Which half of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    In,
    Out,
}

/// What the SA messages of one plane have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    /// The xfrm interface's identifier; it marks everything that is ours (in transport mode as a
    /// label, see [`super::transport`]).
    pub(super) if_id: u32,
    /// The kernel understands `XFRMA_SA_DIR`.
    pub(super) sa_dir: bool,
    /// The device that takes over work of this child.
    pub(super) device: Option<Device>,
}

/// Anti-replay state an SA begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sequence {
    /// Last sequence number sent.
    pub(super) sent: u64,
    /// Last sequence number received, and which of those before it.
    pub(super) received: u64,
    pub(super) bitmap: Vec<u32>,
}

/// `XFRM_MSG_NEWSA`: installs one half.
pub(super) fn new_sa(
    context: Context,
    spec: &ChildSpec,
    hosts: &Hosts,
    half: Half,
    sequence: &Sequence,
) -> Message {
    emit_sa(XFRM_MSG_NEWSA, sa(context, spec, hosts, half, sequence))
}

/// `XFRM_MSG_UPDSA`: changes the encapsulation ports of one installed half. The kernel leaves
/// keys and counters of an established SA as they are, and goes on counting its time from its
/// installation: `ends_after` is how long it had then.
pub(super) fn update_sa(
    context: Context,
    spec: &ChildSpec,
    hosts: &Hosts,
    half: Half,
    ends_after: u64,
) -> Message {
    let mut message = sa(context, spec, hosts, half, &Sequence::default());
    message.user_sa_info.lifetime_cfg.hard_add_expires_seconds = ends_after;
    emit_sa(XFRM_MSG_UPDSA, message)
}

/// `XFRM_MSG_UPDSA` that puts a whole SA in the place of a larval one. The kernel makes such when
/// a packet finds no SA for its policy, and NEWSA would then be refused (EEXIST).
pub(super) fn fill_sa(
    context: Context,
    spec: &ChildSpec,
    hosts: &Hosts,
    half: Half,
    sequence: &Sequence,
) -> Message {
    emit_sa(XFRM_MSG_UPDSA, sa(context, spec, hosts, half, sequence))
}

fn emit_sa(kind: u16, mut message: ModifyMessage) -> Message {
    let bytes = Message::emit(kind, 0, &message);
    for attr in &mut message.nlas {
        match attr {
            XfrmAttrs::EncryptionAlgAead(alg) => alg.alg_key.zeroize(),
            XfrmAttrs::EncryptionAlg(alg) => alg.alg_key.zeroize(),
            XfrmAttrs::AuthenticationAlgTrunc(alg) => alg.alg_key.zeroize(),
            _ => {}
        }
    }
    bytes
}

fn sa(
    context: Context,
    spec: &ChildSpec,
    hosts: &Hosts,
    half: Half,
    sequence: &Sequence,
) -> ModifyMessage {
    let (source, destination, spi, keys) = match half {
        Half::In => (hosts.remote, hosts.local, spec.spi_in, &spec.keys_in),
        Half::Out => (hosts.local, hosts.remote, spec.spi_out, &spec.keys_out),
    };
    let mut info = UserSaInfo {
        reqid: spec.reqid,
        family: family(destination.ip()),
        mode: mode(spec.mode),
        lifetime_cfg: lifetime(spec),
        saddr: Address::from_ip(&source.ip()),
        ..UserSaInfo::default()
    };
    info.id.daddr = Address::from_ip(&destination.ip());
    info.id.spi = spi.0;
    info.id.proto = IPPROTO_ESP;
    match (spec.mode, single_inner_address(spec)) {
        // The policies are as narrow as the SA.
        (Mode::Transport, _) => {}
        (Mode::Tunnel, Some(inner)) => info.selector = sa_selector(inner, half),
        // The kernel would otherwise take the outer family for the inner one.
        (Mode::Tunnel, None) => info.flags |= XFRM_STATE_AF_UNSPEC,
    }
    let mut nlas = algorithms(spec.suite, keys);
    // With a direction the kernel wants no receive window on the sending half; without, it wants
    // one for ESN even there.
    let window = match half {
        Half::Out if context.sa_dir => 0,
        _ => spec.replay_window,
    };
    if spec.esn {
        info.flags |= XFRM_STATE_ESN;
    }
    if spec.esn || window > CLASSIC_WINDOW {
        nlas.push(XfrmAttrs::ReplayStateEsn(replay_esn(window, half, sequence)));
    } else {
        info.replay_window = u8::try_from(window).unwrap_or(32);
        if *sequence != Sequence::default() {
            nlas.push(XfrmAttrs::ReplayState(replay(half, sequence)));
        }
    }
    if hosts.encap {
        nlas.push(XfrmAttrs::EncapsulationTemplate(EncapTmpl {
            encap_type: UDP_ENCAP_ESPINUDP,
            encap_sport: source.port(),
            encap_dport: destination.port(),
            encap_oa: Address::default(),
        }));
        if half == Half::In {
            nlas.push(XfrmAttrs::MappingTimeThreshold(MAPPING_INTERVAL));
        }
    }
    match spec.mode {
        Mode::Tunnel => nlas.push(XfrmAttrs::IfId(context.if_id)),
        Mode::Transport => {
            nlas.push(XfrmAttrs::MarkVal(context.if_id));
            nlas.push(XfrmAttrs::MarkMask(0));
        }
    }
    nlas.extend(context.device.map(|device| device.of_sa(half, destination.is_ipv6())));
    if context.sa_dir {
        let direction = match half {
            Half::In => XFRM_SA_DIR_IN,
            Half::Out => XFRM_SA_DIR_OUT,
        };
        nlas.push(XfrmAttrs::Other(DefaultNla::new(XFRMA_SA_DIR, vec![direction])));
    }
    ModifyMessage { user_sa_info: info, nlas }
}

/// `XFRM_MSG_DELSA`.
pub(super) fn delete_sa(destination: IpAddr, spi: Spi) -> Message {
    Message::emit(XFRM_MSG_DELSA, 0, &sa_id(destination, spi))
}

/// `XFRM_MSG_GETSA` of one SA.
pub(super) fn get_sa(destination: IpAddr, spi: Spi) -> Message {
    Message::emit(XFRM_MSG_GETSA, 0, &sa_id(destination, spi))
}

/// `XFRM_MSG_GETSA` of an SA that cannot exist, with an impossible direction: a kernel that
/// knows the attribute objects to it (EINVAL), an older one to the SA (ESRCH).
pub(super) fn ask_for_direction() -> Message {
    let mut message = sa_id(IpAddr::from([192, 0, 2, 1]), Spi(1));
    message.nlas.push(XfrmAttrs::Other(DefaultNla::new(XFRMA_SA_DIR, vec![0xff])));
    Message::emit(XFRM_MSG_GETSA, 0, &message)
}

fn sa_id(destination: IpAddr, spi: Spi) -> DelGetMessage {
    let mut id = UserSaId { spi: spi.0, proto: IPPROTO_ESP, ..UserSaId::default() };
    id.destination(&destination);
    DelGetMessage { user_sa_id: id, nlas: Vec::new() }
}

/// Dump of all SAs (fixed part empty: no filter).
pub(super) fn dump_sas() -> Message {
    Message::new(XFRM_MSG_GETSA, 0, &[])
}

/// Dump of all policies.
pub(super) fn dump_policies() -> Message {
    let message = PolicyDelGetMessage::default();
    Message::emit(XFRM_MSG_GETPOLICY, 0, &message)
}

/// The four inbound policies: what leaves the tunnel towards this machine (`in`) or beyond it
/// (`fwd`) must have come through an ESP tunnel SA of this interface, whichever.
pub(super) fn wide_policies(context: Context) -> Vec<Message> {
    let mut messages = Vec::with_capacity(4);
    for direction in [XFRM_POLICY_IN, XFRM_POLICY_FWD] {
        for family in [AF_INET, AF_INET6] {
            let mut template = template(XFRM_MODE_TUNNEL);
            template.family = family;
            let selector = XfrmSelector { family, ..XfrmSelector::default() };
            messages.push(policy(XFRM_MSG_UPDPOLICY, context, selector, (direction, 0), template));
        }
    }
    messages
}

/// The outbound policy of one flow: all of it goes through this very SA.
/// `index` is its name in the kernel; `replace` says whether one is there already, which then
/// keeps its own.
pub(super) fn outbound_policy(
    context: Context,
    spec: &ChildSpec,
    hosts: &Hosts,
    flow: &Flow,
    index: u32,
    replace: bool,
) -> Message {
    let mut template = template(mode(spec.mode));
    template.id.daddr = Address::from_ip(&hosts.remote.ip());
    // Naming the SPI makes the change of SA at a rekey ours to time, not the kernel's.
    template.id.spi = spec.spi_out.0;
    template.saddr = Address::from_ip(&hosts.local.ip());
    template.family = family(hosts.remote.ip());
    template.reqid = spec.reqid;
    let kind = if replace { XFRM_MSG_UPDPOLICY } else { XFRM_MSG_NEWPOLICY };
    let name = (XFRM_POLICY_OUT, index);
    match flow.between {
        None => policy(kind, context, selector(flow), name, template),
        Some(_) => host_policy(kind, context, selector(flow), name, Some(template)),
    }
}

/// A policy between two hosts' own addresses, beside the xfrm interface; without a template it
/// lets pass in clear.
pub(super) fn host_policy(
    kind: u16,
    context: Context,
    selector: XfrmSelector,
    (direction, index): (u8, u32),
    template: Option<UserTemplate>,
) -> Message {
    let mut lifetime_cfg = unlimited();
    lifetime_cfg.soft_byte_limit = LABEL << 32 | u64::from(context.if_id);
    let priority = if template.is_some() { PRIORITY } else { OUTSIDE_PRIORITY };
    let message = PolicyModifyMessage {
        user_policy_info: UserPolicyInfo {
            selector,
            lifetime_cfg,
            priority,
            index,
            direction,
            ..UserPolicyInfo::default()
        },
        nlas: template
            .map(|template| XfrmAttrs::Template(vec![template]))
            .into_iter()
            .chain(offloaded(context, direction))
            .collect(),
    };
    Message::emit(kind, 0, &message)
}

/// `XFRM_MSG_DELPOLICY` of a flow's outbound policy, by its selector.
pub(super) fn delete_outbound_policy(context: Context, flow: &Flow) -> Message {
    delete_policy(if_id_of(context, flow), selector(flow), 0, XFRM_POLICY_OUT)
}

/// The `if_id` of a flow's policies.
pub(super) fn if_id_of(context: Context, flow: &Flow) -> u32 {
    if flow.between.is_some() { 0 } else { context.if_id }
}

/// `XFRM_MSG_DELPOLICY` by index. Deleting by selector makes the kernel search its whole tree of
/// policies for empty nodes each time, which at 10,000 clients takes half a millisecond under a
/// lock.
pub(super) fn delete_policy_by_index(if_id: u32, index: u32) -> Message {
    let direction = u8::try_from(index & 3).unwrap_or_default();
    delete_policy(if_id, XfrmSelector::default(), index, direction)
}

/// A policy index the kernel takes for an outbound policy: the direction is in its low bits. The
/// kernel counts up from 0 for those that ask for none, so ours begin far above.
pub(super) fn outbound_index(number: u32) -> u32 {
    (number & 0x0fff_ffff | 0x1000_0000) << 3 | u32::from(XFRM_POLICY_OUT)
}

/// The number that [`outbound_index`] made an index of; `None` for one that the kernel chose.
pub(super) fn outbound_number(index: u32) -> Option<u32> {
    let number = index >> 3;
    (number & 0x1000_0000 != 0).then_some(number & 0x0fff_ffff)
}

/// `XFRM_MSG_DELPOLICY` by index, or by selector when that is 0.
pub(super) fn delete_policy(
    if_id: u32,
    selector: XfrmSelector,
    index: u32,
    direction: u8,
) -> Message {
    let nlas = if if_id == 0 { Vec::new() } else { vec![XfrmAttrs::IfId(if_id)] };
    let message =
        PolicyDelGetMessage { user_policy_id: UserPolicyId { selector, index, direction }, nlas };
    Message::emit(XFRM_MSG_DELPOLICY, 0, &message)
}

fn policy(
    kind: u16,
    context: Context,
    selector: XfrmSelector,
    (direction, index): (u8, u32),
    template: UserTemplate,
) -> Message {
    let info = UserPolicyInfo {
        selector,
        lifetime_cfg: unlimited(),
        priority: PRIORITY,
        index,
        direction,
        ..UserPolicyInfo::default()
    };
    let message = PolicyModifyMessage {
        user_policy_info: info,
        nlas: [XfrmAttrs::Template(vec![template]), XfrmAttrs::IfId(context.if_id)]
            .into_iter()
            .chain(offloaded(context, direction))
            .collect(),
    };
    Message::emit(kind, 0, &message)
}

/// What a device must know of a policy, if any.
fn offloaded(context: Context, direction: u8) -> Option<XfrmAttrs> {
    context.device.filter(|_| direction == XFRM_POLICY_OUT)?.of_policy()
}

pub(super) fn template(mode: u8) -> UserTemplate {
    let mut template = UserTemplate { mode, ..UserTemplate::default() };
    template.id.proto = IPPROTO_ESP;
    (template.aalgos, template.ealgos, template.calgos) = (u32::MAX, u32::MAX, u32::MAX);
    template
}

pub(super) fn selector(flow: &Flow) -> XfrmSelector {
    let mut selector = XfrmSelector::default();
    let to = flow.destination;
    if let Some(between) = flow.between {
        let whole = |port: Option<u16>| port.map_or((0, 0), |port| (port, u16::MAX));
        selector.source_prefix(&between.source, to.max_prefix_len());
        selector.proto = between.protocol;
        (selector.sport, selector.sport_mask) = whole(between.source_port);
        (selector.dport, selector.dport_mask) = whole(between.destination_port);
    }
    selector.destination_prefix(&to.network(), to.prefix_len());
    selector
}

/// The only inner address of a child, when it has exactly one: a kernel SA holds one selector of
/// one family.
fn single_inner_address(spec: &ChildSpec) -> Option<IpAddr> {
    match spec.remote_selectors.as_slice() {
        [one] if one.start == one.end => Some(one.start),
        _ => None,
    }
}

fn sa_selector(inner: IpAddr, half: Half) -> XfrmSelector {
    let mut selector = XfrmSelector::default();
    let length = if inner.is_ipv6() { 128 } else { 32 };
    match half {
        Half::In => selector.source_prefix(&inner, length),
        Half::Out => selector.destination_prefix(&inner, length),
    }
    selector
}

pub(super) fn family(address: IpAddr) -> u16 {
    if address.is_ipv6() { AF_INET6 } else { AF_INET }
}

fn mode(mode: Mode) -> u8 {
    match mode {
        Mode::Tunnel => XFRM_MODE_TUNNEL,
        Mode::Transport => XFRM_MODE_TRANSPORT,
    }
}

fn unlimited() -> LifetimeConfig {
    LifetimeConfig {
        soft_byte_limit: XFRM_INF,
        hard_byte_limit: XFRM_INF,
        soft_packet_limit: XFRM_INF,
        hard_packet_limit: XFRM_INF,
        ..LifetimeConfig::default()
    }
}

fn lifetime(spec: &ChildSpec) -> LifetimeConfig {
    let limits = &spec.limits;
    LifetimeConfig {
        soft_byte_limit: limits.soft_bytes.unwrap_or(XFRM_INF),
        hard_byte_limit: limits.hard_bytes.unwrap_or(XFRM_INF),
        soft_packet_limit: limits.soft_packets.unwrap_or(XFRM_INF),
        hard_packet_limit: limits.hard_packets.unwrap_or(XFRM_INF),
        hard_add_expires_seconds: limits.ends.map_or(0, seconds_until),
        ..LifetimeConfig::default()
    }
}

/// Rounded up: 0 would be no limit. Counted from now also for an SA that is made anew elsewhere.
fn seconds_until(end: Instant) -> u64 {
    let time = end.saturating_duration_since(Instant::now());
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1)
}

fn replay(half: Half, sequence: &Sequence) -> Replay {
    match half {
        Half::Out => Replay { oseq: low(sequence.sent), ..Replay::default() },
        Half::In => Replay {
            oseq: 0,
            seq: low(sequence.received),
            bitmap: sequence.bitmap.first().copied().unwrap_or_default(),
        },
    }
}

fn replay_esn(window: u32, half: Half, sequence: &Sequence) -> ReplayEsn {
    let words = window.div_ceil(32);
    let mut state = ReplayEsn { bmp_len: words, replay_window: window, ..ReplayEsn::default() };
    let length = usize::try_from(words).unwrap_or_default();
    match half {
        Half::Out => {
            state.bmp = vec![0; length];
            state.oseq = low(sequence.sent);
            state.oseq_hi = high(sequence.sent);
        }
        Half::In => {
            state.bmp = sequence.bitmap.clone();
            state.bmp.resize(length, 0);
            state.seq = low(sequence.received);
            state.seq_hi = high(sequence.received);
        }
    }
    state
}

/// The low 32 bits, which travel in the packet (RFC 4304 1).
#[allow(clippy::cast_possible_truncation)]
fn low(sequence: u64) -> u32 {
    (sequence & 0xffff_ffff) as u32
}

fn high(sequence: u64) -> u32 {
    low(sequence >> 32)
}

fn algorithms(suite: EspSuite, keys: &SaKeys) -> Vec<XfrmAttrs> {
    let bits = |key: &[u8]| u32::try_from(key.len() * 8).unwrap_or_default();
    let aead = |name: &str| {
        vec![XfrmAttrs::EncryptionAlgAead(AlgAead {
            alg_name: named(name),
            alg_key_len: bits(&keys.encr),
            alg_icv_len: 128,
            alg_key: keys.encr.clone(),
        })]
    };
    let cbc = |hash: &str, truncated: u32| {
        vec![
            // The plain authentication attribute would truncate SHA2-256 to 96 bits.
            XfrmAttrs::AuthenticationAlgTrunc(AlgAuth {
                alg_name: named(hash),
                alg_key_len: bits(&keys.integ),
                alg_trunc_len: truncated,
                alg_key: keys.integ.clone(),
            }),
            XfrmAttrs::EncryptionAlg(Alg {
                alg_name: named("cbc(aes)"),
                alg_key_len: bits(&keys.encr),
                alg_key: keys.encr.clone(),
            }),
        ]
    };
    match suite {
        EspSuite::Aes128Gcm16 | EspSuite::Aes256Gcm16 => aead("rfc4106(gcm(aes))"),
        EspSuite::ChaCha20Poly1305 => aead("rfc7539esp(chacha20,poly1305)"),
        EspSuite::Aes128CbcSha256 | EspSuite::Aes256CbcSha256 => cbc("hmac(sha256)", 128),
        EspSuite::Aes256CbcSha384 => cbc("hmac(sha384)", 192),
        EspSuite::Aes256CbcSha512 => cbc("hmac(sha512)", 256),
    }
}

fn named(name: &str) -> [u8; 64] {
    let mut field = [0; 64];
    for (place, byte) in field.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    field
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
