//! Chains at random, judged by webpki as well.

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, NameConstraints, SanType,
};

use super::common::*;
use super::{Ca, below, der, dns, leaf, policies, root, verify};

/// Some thousand decisions from one number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.roll(times) == 0
    }
}

/// Every chain that webpki can judge gets the same verdict here. It does not look at key usage, key
/// identifiers and an anchor's path length, and refuses critical policies: those are left out.
#[test]
fn what_webpki_judges_we_judge_alike() {
    let mut dice = Dice(20_261_122);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..400 {
        let root_ca = root(|p| limit(&mut dice, p));
        let other = root(|_| {});
        let depth = dice.roll(4) as usize;
        let mut cas: Vec<Ca> = Vec::new();
        for level in 0..depth {
            let issuer = cas.last().unwrap_or(&root_ca);
            let ca = below(issuer, &format!("CA {level}"), |p| spoil_ca(&mut dice, p));
            cas.push(ca);
        }
        let leaf_der = leaf(cas.last().unwrap_or(&root_ca), |p| spoil_leaf(&mut dice, p));
        let mut chain: Vec<Vec<u8>> =
            std::iter::once(leaf_der).chain(cas.iter().rev().map(der)).collect();
        if dice.once_in(8) {
            chain.push(der(&root_ca));
        }
        if chain.len() > 2 && dice.once_in(4) {
            let last = chain.len() - 1;
            chain.swap(1, last);
        }
        if chain.len() > 1 && dice.once_in(16) {
            chain.remove(1);
        }
        if dice.once_in(16) {
            let victim = dice.roll(chain.len() as u64) as usize;
            let position = chain[victim].len() - 1;
            chain[victim][position] ^= 1;
        }
        let anchor = if dice.once_in(16) { &other } else { &root_ca };
        let ours = verify(&chain, anchor);
        let theirs = webpki_verdict(&chain, &der(anchor));
        assert_eq!(ours.is_ok(), theirs.is_ok(), "round {round}: {ours:?}\n{theirs:?}");
        if ours.is_ok() { accepted += 1 } else { refused += 1 }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}

/// Name constraints that the leaf may or may not meet: DNS names and addresses, the forms that
/// webpki compares as we do.
fn limit(dice: &mut Dice, params: &mut CertificateParams) {
    if !dice.once_in(4) {
        return;
    }
    let mut subtrees = |odds: u64| {
        let mut some = Vec::new();
        while some.is_empty() || dice.once_in(odds) {
            some.push(match dice.roll(6) {
                0 => GeneralSubtree::DnsName("r-1.example.com".to_owned()),
                1 => GeneralSubtree::DnsName("example.org".to_owned()),
                2 => GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([10, 77, 0, 0], 16)),
                3 => GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([10, 0, 0, 0], 8)),
                _ => GeneralSubtree::DnsName("example.com".to_owned()),
            });
        }
        some
    };
    let (permitted, excluded) = (subtrees(2), subtrees(4));
    let (permitted_subtrees, excluded_subtrees) = match dice.roll(6) {
        0 | 1 => (vec![], excluded),
        2 => (permitted, excluded),
        _ => (permitted, vec![]),
    };
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
}

fn spoil_ca(dice: &mut Dice, params: &mut CertificateParams) {
    limit(dice, params);
    if dice.once_in(4) {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(dice.roll(3) as u8));
    }
    if dice.once_in(24) {
        params.is_ca = IsCa::ExplicitNoCa;
    }
    if dice.once_in(8) {
        let usages = [Eku::ClientAuth, Eku::ServerAuth, Eku::Any];
        params.extended_key_usages = vec![usages[dice.roll(2) as usize].clone()];
    }
    if dice.once_in(24) {
        params.not_after = params.not_before + std::time::Duration::from_secs(60);
    }
    if dice.once_in(6) {
        params.custom_extensions.push(asserted(dice));
    }
    if dice.once_in(24) {
        unknown(dice, params);
    }
}

/// A policy that nobody requires changes nothing. Not critical: webpki does not know it.
fn asserted(dice: &mut Dice) -> CustomExtension {
    let mut asserted = policies(&[dice.roll(3) as u8]);
    asserted.set_criticality(false);
    asserted
}

fn spoil_leaf(dice: &mut Dice, params: &mut CertificateParams) {
    if dice.once_in(12) {
        params.extended_key_usages = vec![Eku::ServerAuth];
    }
    if dice.once_in(12) {
        params.extended_key_usages.clear();
    }
    if dice.once_in(3) {
        let address = ["10.77.3.4", "10.1.2.3", "192.0.2.1"][dice.roll(3) as usize];
        params.subject_alt_names.push(SanType::IpAddress(address.parse().unwrap()));
    }
    if dice.once_in(6) {
        params.subject_alt_names.push(dns("build.example.com"));
    }
    if dice.once_in(6) {
        params.custom_extensions.push(asserted(dice));
    }
    if dice.once_in(24) {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    if dice.once_in(24) {
        params.not_before = params.not_after - std::time::Duration::from_secs(60);
    }
    if dice.once_in(12) {
        unknown(dice, params);
    }
}

fn unknown(dice: &mut Dice, params: &mut CertificateParams) {
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999, 1], vec![5, 0]);
    extension.set_criticality(dice.once_in(2));
    params.custom_extensions.push(extension);
}

fn webpki_verdict(chain: &[Vec<u8>], anchor: &[u8]) -> Result<(), webpki::Error> {
    use rustls_pki_types::{CertificateDer, UnixTime as Time};
    let ders: Vec<CertificateDer<'_>> =
        chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let anchor = CertificateDer::from(anchor);
    let trust = [webpki::anchor_from_trusted_cert(&anchor)?];
    let leaf = webpki::EndEntityCert::try_from(&ders[0])?;
    let seconds = std::time::Duration::from_secs(NOW.secs().unsigned_abs());
    let time = Time::since_unix_epoch(seconds);
    let usage = webpki::KeyUsage::client_auth();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    leaf.verify_for_usage(algorithms, &trust, &ders[1..], time, usage, None, None).map(drop)
}
