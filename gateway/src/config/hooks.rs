//! `[hooks]` and `[[hooks.from]]`: webhooks of CI platforms. Secrets and certificates are read when
//! the gateway starts or reloads, not here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use pki::enrol::jwt::{Issuer, IssuerKind};
use pki::hook::HookKind;

use super::section::{Findings, Section};
use super::value;
use crate::http::Rate;

/// Where deliveries are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// HTTP over TLS, or in the clear behind a proxy.
    pub listen: SocketAddr,
    /// Certificate chain and key, PEM; `None`: a proxy in front speaks TLS.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How often one source may ask.
    pub rate: Rate,
    /// Whose deliveries are believed.
    pub from: Vec<HookFrom>,
}

/// One `[[hooks.from]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFrom {
    /// The issuer's name.
    pub issuer: String,
    /// `iss` of its tokens.
    pub iss: String,
    /// Its platform.
    pub kind: HookKind,
    /// Files that hold one secret each.
    pub secrets: Vec<PathBuf>,
}

pub(super) fn hooks(
    mut section: Section<'_, '_>,
    issuers: &[Issuer],
    found: &mut Findings<'_>,
) -> Hooks {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8444));
    let listen = section.socket("listen", found).unwrap_or(any);
    let mut path = |key| section.string(key, found).map(|(text, _)| PathBuf::from(text));
    let certificate = match (path("cert"), path("key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (certificate, _) => {
            let missing = if certificate.is_some() { "key" } else { "cert" };
            found.error(section.offset, format!("[hooks] has `cert` or `key` without the other; add {missing} = \"/etc/runnel/hooks.{missing}\""));
            None
        }
    };
    let proxied = section.boolean("behind_proxy", found).unwrap_or(false);
    match (certificate.is_some(), proxied) {
        (false, false) if !section.has("cert") && !section.has("key") => found.error(
            section.offset,
            "[hooks] has no certificate, and platforms deliver to https:// only; add `cert` and `key` (a public certificate), or behind_proxy = true when a proxy in front has one",
        ),
        (true, true) => found.error(
            section.place("behind_proxy"),
            "`behind_proxy` takes plain HTTP, which makes `cert` and `key` useless; keep one",
        ),
        _ => {}
    }
    let mut rate = Rate { per_second: 50, burst: 500 };
    if let Some(number) = section.number("rate", 1..=100_000, found) {
        rate.per_second = u32::try_from(number).unwrap_or(rate.per_second);
    }
    if let Some(number) = section.number("burst", 1..=1_000_000, found) {
        rate.burst = u32::try_from(number).unwrap_or(rate.burst);
    }
    let sections = section.tables("from", "[[hooks.from]]", found).unwrap_or_default();
    let mut from: Vec<HookFrom> = Vec::new();
    for inner in sections {
        let at = inner.offset;
        let Some(source) = source(inner, issuers, found) else { continue };
        if from.iter().any(|other| other.issuer == source.issuer) {
            let issuer = &source.issuer;
            found.error(at, format!("[[hooks.from]] \"{issuer}\" is there twice; put all its files into one `secrets`"));
        }
        from.push(source);
    }
    if from.is_empty() && !section.has("from") {
        found.error(section.offset, "[hooks] believes nobody; add [[hooks.from]] with issuer = \"...\" and secrets = [\"/etc/runnel/hook.secret\"]");
    }
    section.finish(&[], found);
    Hooks { listen, certificate, rate, from }
}

fn source(
    mut section: Section<'_, '_>,
    issuers: &[Issuer],
    found: &mut Findings<'_>,
) -> Option<HookFrom> {
    let name = section.string("issuer", found);
    let at = section.place("secrets");
    let secrets: Vec<PathBuf> = section
        .strings("secrets", found)
        .unwrap_or_default()
        .into_iter()
        .map(|(text, _)| PathBuf::from(text))
        .collect();
    if secrets.is_empty() {
        found.error(at, "[[hooks.from]] has no secret, and unsigned deliveries are never believed; add secrets = [\"/etc/runnel/hook.secret\"] (`openssl rand -hex 32`)");
    }
    let offset = section.offset;
    section.finish(&[], found);
    let Some((name, at)) = name else {
        found.error(
            offset,
            "[[hooks.from]] names no issuer; add issuer = \"NAME\" of an [[issuer]] section",
        );
        return None;
    };
    let Some(issuer) = issuers.iter().find(|issuer| issuer.name == name) else {
        let names: Vec<&str> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
        let hint = match value::nearest(&name, &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "add an [[issuer]] section of that name".to_owned(),
        };
        found.error(at, format!("[[hooks.from]] names the unknown issuer \"{name}\"; {hint}"));
        return None;
    };
    let kind = match issuer.kind {
        IssuerKind::Github => HookKind::Github,
        IssuerKind::Gitlab => HookKind::Gitlab,
        other => {
            let kind = other.name();
            found.error(at, format!("webhooks of kind = \"{kind}\" (issuer \"{name}\") are not understood, only those of github and gitlab; remove this section: its leases end when their tunnels do"));
            return None;
        }
    };
    Some(HookFrom { issuer: name, iss: issuer.issuer.clone(), kind, secrets })
}
