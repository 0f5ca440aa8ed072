//! Choosing and offering proposals (RFC 7296 2.7, 3.3).

use std::fmt::Write as _;

use crate::crypto::suite::{AdditionalKex, MAX_ADDITIONAL};
use crate::crypto::{EspSuite, IkeSuite, weak};
use crate::wire::{
    ChildSpi, EncrId, EsnId, IkeSpi, IntegId, KeMethod, Proposal, ProtocolId, SecurityAssociation,
    Transform, TransformId, TransformType,
};

/// Proposals in one offer at most; the rest of a long list of suites is left out.
const MAX_OFFERED: usize = 48;

/// The last of the SPIs that are reserved for the IANA (RFC 4303 2.1).
const LAST_RESERVED_SPI: u32 = 255;

/// Transforms up to which an offer is searched as it is: making it shorter would cost more.
const SHORT_OFFER: usize = 32;

/// Octets of a peer's offer shown to people at most.
const MAX_SHOWN: usize = 600;

/// A suite both sides accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen<S> {
    /// Number of the peer's proposal.
    pub number: u8,
    /// What to run with.
    pub suite: S,
    /// The proposal's SPI.
    pub spi: Vec<u8>,
    /// Additional key exchanges offered and left out: the answer says NONE (RFC 9370 2.2.1).
    pub left_out: Vec<u8>,
}

impl<S> Chosen<S> {
    fn of(proposal: &Proposal, suite: S, additional: &[AdditionalKex]) -> Self {
        let left_out = slots(proposal).filter(|slot| method(additional, *slot).is_none()).collect();
        Self { number: proposal.number, suite, spi: proposal.spi.clone(), left_out }
    }
}

/// Picks an IKE suite: our order decides, but a suite whose key exchange the peer has already
/// sent wins over one that costs a round trip with INVALID_KE_PAYLOAD. All accepted groups are
/// strong, so this gives nothing away; several key exchanges against one would, so there our
/// order stands. `several` says whether the peer can make several (RFC 9370 2.1).
pub fn choose_ike(
    ours: &[IkeSuite],
    offer: &SecurityAssociation,
    sent: KeMethod,
    several: bool,
) -> Option<Chosen<IkeSuite>> {
    let transforms = offer.proposals.iter().map(|proposal| proposal.transforms.len());
    let reduced: Vec<Proposal>;
    let offered = if transforms.fold(0, usize::saturating_add) > SHORT_OFFER {
        reduced = relevant(ours, offer);
        &reduced
    } else {
        &offer.proposals
    };
    let makes_several = |suite: &IkeSuite| suite.has_additional();
    let find = |want: &dyn Fn(&IkeSuite) -> bool| {
        let ours = ours.iter().filter(|suite| several || !makes_several(suite));
        ours.filter(|suite| want(suite)).find_map(|suite| {
            let proposal = offered.iter().find(|offer| ike_matches(suite, offer))?;
            Some((proposal, suite))
        })
    };
    let best = find(&|_| true)?;
    let at_once =
        |suite: &IkeSuite| suite.kex == sent && makes_several(suite) == makes_several(best.1);
    let (proposal, suite) = if at_once(best.1) { best } else { find(&at_once).unwrap_or(best) };
    Some(Chosen::of(proposal, suite.clone(), &suite.additional))
}

/// An offer without what cannot matter to us, each transform once: a stranger's may be long, and
/// it is searched for each of our suites.
fn relevant(ours: &[IkeSuite], offer: &SecurityAssociation) -> Vec<Proposal> {
    let mut known: Vec<Transform> = Vec::new();
    for transform in ours.iter().flat_map(ike_transforms) {
        if !known.contains(&transform) {
            known.push(transform);
        }
    }
    let usable =
        |proposal: &&Proposal| proposal.protocol == ProtocolId::Ike && has_only_known(proposal);
    let reduce = |proposal: &Proposal| {
        let mut kept: Vec<Transform> = Vec::new();
        for transform in &proposal.transforms {
            let plain = transform.attributes.is_empty();
            // Of these types it also counts that there is one, and that it may be left out.
            let counts = match transform.id {
                TransformId::Integ(id) => {
                    (plain && id == IntegId::None)
                        || !kept.iter().any(|kept| kept.kind() == TransformType::Integ)
                }
                TransformId::AddKe { method, .. } => {
                    (plain && method == KeMethod::None)
                        || !kept.iter().any(|kept| kept.kind() == transform.kind())
                }
                _ => false,
            };
            if (counts || known.contains(transform)) && !kept.contains(transform) {
                kept.push(transform.clone());
            }
        }
        Proposal { transforms: kept, spi: proposal.spi.clone(), ..*proposal }
    };
    offer.proposals.iter().filter(usable).map(reduce).collect()
}

/// Which key exchanges an ESP proposal is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EspKex<'a> {
    /// None: the child shares the IKE SA's (IKE_AUTH). What is offered is ignored.
    Ignored,
    /// CREATE_CHILD_SA: the method of the KE payload, and what we accept.
    Offered(Option<KeMethod>, &'a Accepted),
}

/// The methods of our IKE suites: what PFS may use too, preferred first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    groups: Vec<KeMethod>,
    additional: Vec<KeMethod>,
}

impl From<&[IkeSuite]> for Accepted {
    fn from(ours: &[IkeSuite]) -> Self {
        let mut accepted = Self::default();
        for suite in ours {
            if !accepted.groups.contains(&suite.kex) {
                accepted.groups.push(suite.kex);
            }
            for method in suite.additional_methods() {
                if !accepted.additional.contains(&method) {
                    accepted.additional.push(method);
                }
            }
        }
        accepted
    }
}

/// Picks an ESP suite; its `kex` says whether a key exchange of its own is made (PFS).
pub fn choose_esp(
    ours: &[EspSuite],
    offer: &SecurityAssociation,
    kex: EspKex<'_>,
) -> Option<Chosen<EspSuite>> {
    for suite in ours {
        for proposal in &offer.proposals {
            if proposal.protocol != ProtocolId::Esp
                || !has_esp_spi(proposal)
                || !esp_matches(suite, proposal)
            {
                continue;
            }
            let methods = match kex {
                EspKex::Ignored => Some((None, Vec::new())),
                EspKex::Offered(sent, accepted) => choose_pfs(suite, proposal, sent, accepted),
            };
            let Some((kex_method, additional)) = methods else {
                continue;
            };
            let suite = EspSuite { kex: kex_method, additional, ..suite.clone() };
            let mut chosen = Chosen::of(proposal, suite, &[]);
            chosen.left_out = match kex {
                EspKex::Ignored => Vec::new(),
                EspKex::Offered(..) => slots(proposal)
                    .filter(|slot| method(&chosen.suite.additional, *slot).is_none())
                    .collect(),
            };
            return Some(chosen);
        }
    }
    None
}

/// The answer: the chosen proposal with one transform of each type.
pub fn answer_ike(chosen: &Chosen<IkeSuite>, spi: Option<IkeSpi>) -> SecurityAssociation {
    let mut transforms = ike_transforms(&chosen.suite);
    transforms.extend(none_transforms(&chosen.left_out));
    let proposal = Proposal::new(chosen.number, ProtocolId::Ike, transforms);
    SecurityAssociation::new(vec![match spi {
        Some(spi) => proposal.with_ike_spi(spi),
        None => proposal,
    }])
}

/// The answer for a child SA.
pub fn answer_esp(chosen: &Chosen<EspSuite>, spi: u32) -> SecurityAssociation {
    let mut transforms = esp_transforms(&chosen.suite);
    transforms.extend(none_transforms(&chosen.left_out));
    let proposal = Proposal::new(chosen.number, ProtocolId::Esp, transforms);
    SecurityAssociation::new(vec![proposal.with_child_spi(ChildSpi(spi))])
}

/// An offer of these suites, in as few proposals as say the same.
pub fn offer_ike(suites: &[IkeSuite], spi: Option<IkeSpi>) -> SecurityAssociation {
    let rows = combine(suites.iter().map(ike_transforms));
    let proposals = rows.into_iter().take(MAX_OFFERED).zip(1u8..).map(|(transforms, number)| {
        let proposal = Proposal::new(number, ProtocolId::Ike, transforms);
        match spi {
            Some(spi) => proposal.with_ike_spi(spi),
            None => proposal,
        }
    });
    SecurityAssociation::new(proposals.collect())
}

/// An offer for a child SA, in as few proposals as say the same.
pub fn offer_esp(suites: &[EspSuite], spi: u32) -> SecurityAssociation {
    let rows = combine(suites.iter().map(esp_transforms));
    let proposals = rows.into_iter().take(MAX_OFFERED).zip(1u8..).map(|(transforms, number)| {
        Proposal::new(number, ProtocolId::Esp, transforms).with_child_spi(ChildSpi(spi))
    });
    SecurityAssociation::new(proposals.collect())
}

/// Puts suites of the same shape (types of transforms, additional key exchanges) into one
/// proposal when together they are every combination of their algorithms; a peer then finds in it
/// exactly what was meant. Others get a proposal each.
fn combine(suites: impl Iterator<Item = Vec<Transform>>) -> Vec<Vec<Transform>> {
    let mut groups: Vec<(Vec<Transform>, Vec<Vec<Transform>>)> = Vec::new();
    for suite in suites {
        let shape: Vec<Transform> = suite
            .iter()
            .map(|transform| match transform.id {
                TransformId::AddKe { .. } => transform.clone(),
                // An AEAD never shares a proposal with other ciphers (RFC 7296 3.3).
                _ => Transform::new(TransformId::Unknown {
                    kind: transform.kind().value(),
                    id: u16::from(matches!(transform.id, TransformId::Encr(id) if id.is_aead())),
                }),
            })
            .collect();
        match groups.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, members)) if !members.contains(&suite) => members.push(suite),
            Some(_) => {}
            None => groups.push((shape, vec![suite])),
        }
    }
    groups.into_iter().flat_map(|(shape, members)| merged(shape.len(), members)).collect()
}

/// One proposal for all of `members`, which have `columns` transforms each, or one for each.
fn merged(columns: usize, members: Vec<Vec<Transform>>) -> Vec<Vec<Transform>> {
    let mut product = 1usize;
    let mut all = Vec::new();
    for column in 0..columns {
        let mut values: Vec<Transform> = Vec::new();
        for value in members.iter().filter_map(|member| member.get(column)) {
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
        product = product.saturating_mul(values.len());
        all.extend(values);
    }
    if product == members.len() { vec![all] } else { members }
}

/// The suite an answer chose, which must be one of those offered (RFC 7296 2.7).
pub fn accept_ike(offered: &[IkeSuite], answer: &SecurityAssociation) -> Option<Chosen<IkeSuite>> {
    let [proposal] = answer.proposals.as_slice() else {
        return None;
    };
    let suite = offered.iter().find(|suite| ike_matches(suite, proposal))?;
    Some(Chosen::of(proposal, suite.clone(), &suite.additional))
}

/// The same for a child SA. `kex` tells whether the exchange had a key exchange of its own.
pub fn accept_esp(
    offered: &[EspSuite],
    answer: &SecurityAssociation,
    kex: Option<KeMethod>,
) -> Option<Chosen<EspSuite>> {
    let [proposal] = answer.proposals.as_slice() else {
        return None;
    };
    if proposal.protocol != ProtocolId::Esp || !has_esp_spi(proposal) {
        return None;
    }
    let suite = offered.iter().find(|suite| {
        let kex_fits = suite.kex == kex && additional_matches(&suite.additional, proposal);
        esp_matches(suite, proposal) && (kex.is_none() || kex_fits)
    })?;
    let additional = if kex.is_some() { suite.additional.clone() } else { Vec::new() };
    let suite = EspSuite { kex, additional: additional.clone(), ..suite.clone() };
    Some(Chosen::of(proposal, suite, &additional))
}

/// A peer's offer as text, shortened when it is long.
pub fn text(offer: &SecurityAssociation) -> String {
    let mut out = String::new();
    for proposal in &offer.proposals {
        if out.len() > MAX_SHOWN {
            out.push_str(", ...");
            break;
        }
        if !out.is_empty() {
            out.push_str(", ");
        }
        for (n, transform) in proposal.transforms.iter().enumerate() {
            if n > 0 {
                out.push('-');
            }
            push_transform(&mut out, transform);
        }
    }
    if out.is_empty() { "nothing".to_owned() } else { out }
}

/// Our suites as text, shortened when there are many.
pub fn suites_text<S: std::fmt::Display>(suites: &[S]) -> String {
    const SHOWN: usize = 6;
    let mut shown: Vec<String> = suites.iter().take(SHOWN).map(S::to_string).collect();
    if let Some(more) = suites.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}

/// The setting to change: names what the peer offered that is refused for being weak.
pub fn advice(offer: &SecurityAssociation) -> Option<String> {
    let mut found: Vec<&'static weak::WeakAlgorithm> = Vec::new();
    for transform in offer.proposals.iter().flat_map(|proposal| &proposal.transforms) {
        let weak = match transform.id {
            TransformId::Encr(id) => weak::encryption(id),
            TransformId::Prf(id) => weak::prf(id),
            TransformId::Integ(id) => weak::integrity(id),
            TransformId::Ke(method) => weak::kex(method),
            _ => None,
        };
        if let Some(weak) = weak
            && !found.contains(&weak)
        {
            found.push(weak);
        }
    }
    if found.is_empty() {
        return None;
    }
    Some(found.iter().map(|weak| weak.to_string()).collect::<Vec<_>>().join("; "))
}

fn push_transform(out: &mut String, transform: &Transform) {
    // Writing to a String cannot fail.
    let _ = match transform.id {
        TransformId::Encr(id) => match transform.key_bits() {
            Some(bits) => write!(out, "{id}_{bits}"),
            None => write!(out, "{id}"),
        },
        TransformId::Prf(id) => write!(out, "PRF_{id}"),
        TransformId::Integ(id) => write!(out, "{id}"),
        TransformId::Ke(method) => write!(out, "{method}"),
        TransformId::Esn(id) => write!(out, "{id}"),
        TransformId::AddKe { slot, method } => write!(out, "ADDKE{slot}_{method}"),
        TransformId::Unknown { kind, id } => write!(out, "{kind}/{id}"),
    };
}

fn has(proposal: &Proposal, id: TransformId) -> bool {
    proposal
        .transforms
        .iter()
        .any(|transform| transform.id == id && transform.attributes.is_empty())
}

fn has_type(proposal: &Proposal, kind: TransformType) -> bool {
    proposal.of(kind).next().is_some()
}

fn has_encr(proposal: &Proposal, id: EncrId, bits: Option<u16>) -> bool {
    proposal.transforms.iter().any(|transform| {
        transform.id == TransformId::Encr(id)
            && transform.key_bits() == bits
            && transform.attributes.len() == usize::from(bits.is_some())
    })
}

fn has_integ(proposal: &Proposal, integ: Option<IntegId>) -> bool {
    match integ {
        Some(id) => has(proposal, TransformId::Integ(id)),
        // RFC 7296 3.3: with an AEAD, no integrity transform or NONE.
        None => {
            !has_type(proposal, TransformType::Integ)
                || has(proposal, TransformId::Integ(IntegId::None))
        }
    }
}

/// The slots of additional key exchanges that a proposal has, each once.
fn slots(proposal: &Proposal) -> impl Iterator<Item = u8> {
    (1..=MAX_ADDITIONAL).filter(|wanted| {
        proposal.transforms.iter().any(
            |transform| matches!(transform.id, TransformId::AddKe { slot, .. } if slot == *wanted),
        )
    })
}

/// The additional key exchange of a slot, unless it is left out.
fn method(additional: &[AdditionalKex], slot: u8) -> Option<KeMethod> {
    let found = additional.iter().find(|kex| kex.slot == slot)?;
    (found.method != KeMethod::None).then_some(found.method)
}

/// Whether these additional key exchanges, and no others, are a choice the proposal allows:
/// every slot it has takes one of its methods or, where it says so, NONE (RFC 9370 2.2.1).
fn additional_matches(additional: &[AdditionalKex], proposal: &Proposal) -> bool {
    let wanted = |slot| method(additional, slot).unwrap_or(KeMethod::None);
    let offered = |slot| has(proposal, TransformId::AddKe { slot, method: wanted(slot) });
    slots(proposal).all(offered)
        && additional.iter().all(|kex| kex.method == KeMethod::None || offered(kex.slot))
}

/// Transforms of an unknown type cannot be answered (RFC 7296 3.3.6).
fn has_only_known(proposal: &Proposal) -> bool {
    proposal.transforms.iter().all(|transform| !matches!(transform.id, TransformId::Unknown { .. }))
}

fn ike_matches(suite: &IkeSuite, proposal: &Proposal) -> bool {
    proposal.protocol == ProtocolId::Ike
        && has_encr(proposal, suite.encryption.id, suite.encryption.key_bits)
        && has(proposal, TransformId::Prf(suite.prf))
        && has_integ(proposal, suite.integ)
        && has(proposal, TransformId::Ke(suite.kex))
        && has_only_known(proposal)
        && additional_matches(&suite.additional, proposal)
}

/// All but the key exchanges, which have their own rules in each exchange.
/// Whether an SPI can be one of ESP: some are reserved, and in UDP zero marks IKE (RFC 3948 2.1).
fn has_esp_spi(proposal: &Proposal) -> bool {
    let spi = <[u8; 4]>::try_from(proposal.spi.as_slice()).map(u32::from_be_bytes);
    spi.is_ok_and(|spi| spi > LAST_RESERVED_SPI)
}

fn esp_matches(suite: &EspSuite, proposal: &Proposal) -> bool {
    let esn = if suite.esn {
        has(proposal, TransformId::Esn(EsnId::Esn))
    } else {
        // A proposal without the type predates it and means 32 bits.
        has(proposal, TransformId::Esn(EsnId::NoEsn)) || !has_type(proposal, TransformType::Esn)
    };
    esn && has_only_known(proposal)
        && has_encr(proposal, suite.encryption.id, suite.encryption.key_bits)
        && has_integ(proposal, suite.integ)
}

/// The key exchanges of a child of its own: no first one means without PFS. `None`: what the
/// proposal wants is not acceptable.
fn choose_pfs(
    ours: &EspSuite,
    proposal: &Proposal,
    sent: Option<KeMethod>,
    accepted: &Accepted,
) -> Option<(Option<KeMethod>, Vec<AdditionalKex>)> {
    let offered: Vec<KeMethod> =
        proposal.ke_methods().filter(|method| *method != KeMethod::None).collect();
    if let Some(method) = ours.kex {
        let fits = offered.contains(&method) && additional_matches(&ours.additional, proposal);
        return fits.then(|| (Some(method), ours.additional.clone()));
    }
    let optional = offered.is_empty() || has(proposal, TransformId::Ke(KeMethod::None));
    let groups = &accepted.groups;
    let sent = sent.filter(|method| offered.contains(method) && groups.contains(method));
    let other = || groups.iter().find(|method| offered.contains(method)).copied();
    match sent.or_else(other) {
        Some(first) => Some((Some(first), choose_additional(proposal, first, accepted)?)),
        None if optional && additional_matches(&[], proposal) => Some((None, Vec::new())),
        None => None,
    }
}

/// For each slot the peer offers, the first method we accept that is not used already, or none
/// where the peer allows that.
fn choose_additional(
    proposal: &Proposal,
    first: KeMethod,
    accepted: &Accepted,
) -> Option<Vec<AdditionalKex>> {
    let mut used = vec![first];
    let mut out = Vec::new();
    for slot in slots(proposal) {
        let offered = |method| has(proposal, TransformId::AddKe { slot, method });
        let found = accepted.additional.iter().copied();
        match found.into_iter().find(|method| offered(*method) && !used.contains(method)) {
            Some(method) => {
                used.push(method);
                out.push(AdditionalKex { slot, method });
            }
            None if offered(KeMethod::None) => {}
            None => return None,
        }
    }
    Some(out)
}

fn ike_transforms(suite: &IkeSuite) -> Vec<Transform> {
    let mut out = vec![Transform::encr(suite.encryption.id, suite.encryption.key_bits)];
    out.extend(suite.integ.map(Transform::integ));
    out.push(Transform::prf(suite.prf));
    out.push(Transform::ke(suite.kex));
    out.extend(additional_transforms(&suite.additional));
    out
}

fn esp_transforms(suite: &EspSuite) -> Vec<Transform> {
    let mut out = vec![Transform::encr(suite.encryption.id, suite.encryption.key_bits)];
    out.extend(suite.integ.map(Transform::integ));
    if let Some(kex) = suite.kex {
        out.push(Transform::ke(kex));
        out.extend(additional_transforms(&suite.additional));
    }
    out.push(Transform::esn(if suite.esn { EsnId::Esn } else { EsnId::NoEsn }));
    out
}

fn additional_transforms(additional: &[AdditionalKex]) -> impl Iterator<Item = Transform> {
    let made = additional.iter().filter(|kex| kex.method != KeMethod::None);
    made.map(|kex| Transform::add_ke(kex.slot, kex.method))
}

fn none_transforms(left_out: &[u8]) -> impl Iterator<Item = Transform> {
    left_out.iter().map(|slot| Transform::add_ke(*slot, KeMethod::None))
}

#[cfg(test)]
mod tests;
