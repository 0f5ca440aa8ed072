//! Choosing and offering proposals (RFC 7296 2.7, 3.3).

use std::fmt::Write as _;

use crate::crypto::{EspSuite, IkeSuite, weak};
use crate::wire::{
    ChildSpi, EncrId, EsnId, IkeSpi, IntegId, KeMethod, Proposal, ProtocolId, SecurityAssociation,
    Transform, TransformId, TransformType,
};

/// Proposals in one offer at most; the rest of a long list of suites is left out.
const MAX_OFFERED: usize = 48;

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
}

/// Picks an IKE suite: our order decides, but a suite whose key exchange the peer has already
/// sent wins over one that costs a round trip with INVALID_KE_PAYLOAD. All accepted groups are
/// strong, so this gives nothing away.
pub fn choose_ike(
    ours: &[IkeSuite],
    offer: &SecurityAssociation,
    sent: KeMethod,
) -> Option<Chosen<IkeSuite>> {
    let find = |want: &dyn Fn(&IkeSuite) -> bool| {
        ours.iter().filter(|suite| want(suite)).find_map(|suite| {
            offer.proposals.iter().find(|proposal| ike_matches(suite, proposal)).map(|proposal| {
                Chosen { number: proposal.number, suite: suite.clone(), spi: proposal.spi.clone() }
            })
        })
    };
    find(&|suite| suite.kex == sent).or_else(|| find(&|_| true))
}

/// Which key exchange an ESP proposal is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EspKex<'a> {
    /// None: the child shares the IKE SA's (IKE_AUTH). What is offered is ignored.
    Ignored,
    /// CREATE_CHILD_SA: the method of the KE payload, and the methods we accept.
    Offered(Option<KeMethod>, &'a [KeMethod]),
}

/// Picks an ESP suite; its `kex` says whether a key exchange of its own is made (PFS).
pub fn choose_esp(
    ours: &[EspSuite],
    offer: &SecurityAssociation,
    kex: EspKex<'_>,
) -> Option<Chosen<EspSuite>> {
    for suite in ours {
        for proposal in &offer.proposals {
            if proposal.protocol != ProtocolId::Esp || !esp_matches(suite, proposal) {
                continue;
            }
            let method = match kex {
                EspKex::Ignored => None,
                EspKex::Offered(sent, accepted) => {
                    match choose_pfs(suite.kex, proposal, sent, accepted) {
                        Some(method) => method,
                        None => continue,
                    }
                }
            };
            let suite = EspSuite { kex: method, ..suite.clone() };
            return Some(Chosen { number: proposal.number, suite, spi: proposal.spi.clone() });
        }
    }
    None
}

/// The methods of our IKE suites: what PFS may use too.
pub fn accepted_groups(ours: &[IkeSuite]) -> Vec<KeMethod> {
    let mut out = Vec::new();
    for suite in ours {
        if !out.contains(&suite.kex) {
            out.push(suite.kex);
        }
    }
    out
}

/// The answer: the chosen proposal with one transform of each type.
pub fn answer_ike(chosen: &Chosen<IkeSuite>, spi: Option<IkeSpi>) -> SecurityAssociation {
    let proposal = Proposal::new(chosen.number, ProtocolId::Ike, ike_transforms(&chosen.suite));
    SecurityAssociation::new(vec![match spi {
        Some(spi) => proposal.with_ike_spi(spi),
        None => proposal,
    }])
}

/// The answer for a child SA.
pub fn answer_esp(chosen: &Chosen<EspSuite>, spi: u32) -> SecurityAssociation {
    let proposal = Proposal::new(chosen.number, ProtocolId::Esp, esp_transforms(&chosen.suite));
    SecurityAssociation::new(vec![proposal.with_child_spi(ChildSpi(spi))])
}

/// An offer with one proposal for each suite.
pub fn offer_ike(suites: &[IkeSuite], spi: Option<IkeSpi>) -> SecurityAssociation {
    let proposals = suites.iter().take(MAX_OFFERED).zip(1u8..).map(|(suite, number)| {
        let proposal = Proposal::new(number, ProtocolId::Ike, ike_transforms(suite));
        match spi {
            Some(spi) => proposal.with_ike_spi(spi),
            None => proposal,
        }
    });
    SecurityAssociation::new(proposals.collect())
}

/// An offer for a child SA, with one proposal for each suite.
pub fn offer_esp(suites: &[EspSuite], spi: u32) -> SecurityAssociation {
    let proposals = suites.iter().take(MAX_OFFERED).zip(1u8..).map(|(suite, number)| {
        Proposal::new(number, ProtocolId::Esp, esp_transforms(suite)).with_child_spi(ChildSpi(spi))
    });
    SecurityAssociation::new(proposals.collect())
}

/// The suite an answer chose, which must be one of those offered (RFC 7296 2.7).
pub fn accept_ike(offered: &[IkeSuite], answer: &SecurityAssociation) -> Option<Chosen<IkeSuite>> {
    let [proposal] = answer.proposals.as_slice() else {
        return None;
    };
    offered.iter().find(|suite| ike_matches(suite, proposal)).map(|suite| Chosen {
        number: proposal.number,
        suite: suite.clone(),
        spi: proposal.spi.clone(),
    })
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
    if proposal.protocol != ProtocolId::Esp {
        return None;
    }
    let suite = offered.iter().find(|suite| esp_matches(suite, proposal))?;
    let suite = EspSuite { kex, ..suite.clone() };
    Some(Chosen { number: proposal.number, suite, spi: proposal.spi.clone() })
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

/// Additional key exchanges and unknown types must be negotiable away (RFC 7296 3.3.6).
fn has_only_known(proposal: &Proposal) -> bool {
    proposal.transforms.iter().all(|transform| match transform.id {
        TransformId::Unknown { .. } => false,
        TransformId::AddKe { slot, .. } => {
            has(proposal, TransformId::AddKe { slot, method: KeMethod::None })
        }
        _ => true,
    })
}

fn ike_matches(suite: &IkeSuite, proposal: &Proposal) -> bool {
    proposal.protocol == ProtocolId::Ike
        && suite.additional.is_empty()
        && has_only_known(proposal)
        && has_encr(proposal, suite.encryption.id, suite.encryption.key_bits)
        && has(proposal, TransformId::Prf(suite.prf))
        && has_integ(proposal, suite.integ)
        && has(proposal, TransformId::Ke(suite.kex))
}

fn esp_matches(suite: &EspSuite, proposal: &Proposal) -> bool {
    let esn = if suite.esn {
        has(proposal, TransformId::Esn(EsnId::Esn))
    } else {
        // A proposal without the type predates it and means 32 bits.
        has(proposal, TransformId::Esn(EsnId::NoEsn)) || !has_type(proposal, TransformType::Esn)
    };
    esn && suite.additional.is_empty()
        && has_only_known(proposal)
        && has_encr(proposal, suite.encryption.id, suite.encryption.key_bits)
        && has_integ(proposal, suite.integ)
}

/// `Some(None)`: without PFS; `Some(Some(method))`: with; `None`: not acceptable.
#[allow(clippy::option_option)]
fn choose_pfs(
    wanted: Option<KeMethod>,
    proposal: &Proposal,
    sent: Option<KeMethod>,
    accepted: &[KeMethod],
) -> Option<Option<KeMethod>> {
    let offered: Vec<KeMethod> =
        proposal.ke_methods().filter(|method| *method != KeMethod::None).collect();
    let optional = offered.is_empty() || has(proposal, TransformId::Ke(KeMethod::None));
    match wanted {
        Some(method) => offered.contains(&method).then_some(Some(method)),
        None => {
            let sent = sent.filter(|method| offered.contains(method) && accepted.contains(method));
            let other = || accepted.iter().find(|method| offered.contains(method)).copied();
            match sent.or_else(other) {
                Some(method) => Some(Some(method)),
                None => optional.then_some(None),
            }
        }
    }
}

fn ike_transforms(suite: &IkeSuite) -> Vec<Transform> {
    let mut out = vec![Transform::encr(suite.encryption.id, suite.encryption.key_bits)];
    out.extend(suite.integ.map(Transform::integ));
    out.push(Transform::prf(suite.prf));
    out.push(Transform::ke(suite.kex));
    out
}

fn esp_transforms(suite: &EspSuite) -> Vec<Transform> {
    let mut out = vec![Transform::encr(suite.encryption.id, suite.encryption.key_bits)];
    out.extend(suite.integ.map(Transform::integ));
    out.extend(suite.kex.map(Transform::ke));
    out.push(Transform::esn(if suite.esn { EsnId::Esn } else { EsnId::NoEsn }));
    out
}

#[cfg(test)]
mod tests;
