//! `[[ca]]` and `[[role.match]]`: external CAs and what their certificates get. The certificates
//! themselves are read when the gateway starts or reloads, not here.

use std::path::PathBuf;
use std::time::Duration;

use pki::validate::{DnPattern, SanPattern};

use super::model::{ExternalCa, MatchRule, Revocation};
use super::read::named;
use super::section::{Findings, Section};
use super::value;

pub(super) fn cas(sections: Vec<Section<'_, '_>>, found: &mut Findings<'_>) -> Vec<ExternalCa> {
    let mut cas: Vec<ExternalCa> = Vec::new();
    for mut section in sections {
        let Some(name) = named(&mut section, found) else {
            section.finish_quietly();
            continue;
        };
        if cas.iter().any(|ca| ca.name == name) {
            found.error(section.offset, format!("ca \"{name}\" is there twice; rename one"));
        }
        let certificate = match section.string("certificate", found) {
            Some((text, _)) => PathBuf::from(text),
            None => {
                if !section.has("certificate") {
                    found.error(
                        section.offset,
                        format!("ca \"{name}\" has no certificate; add certificate = \"/etc/runnel/{name}.pem\""),
                    );
                }
                PathBuf::new()
            }
        };
        let revocation = match section.string("revocation", found) {
            None => Revocation::Soft,
            Some((word, at)) => match word.as_str() {
                "off" => Revocation::Off,
                "soft" => Revocation::Soft,
                "strict" => Revocation::Strict,
                _ => {
                    found.error(
                        at,
                        format!(
                            "`revocation = \"{word}\"` must be \"off\", \"soft\" or \"strict\""
                        ),
                    );
                    Revocation::Strict
                }
            },
        };
        let ocsp = section.string("ocsp", found).map(|(url, at)| {
            http(&url, "ocsp", at, found);
            url
        });
        let mut crl = Vec::new();
        for (place, at) in section.strings("crl", found).unwrap_or_default() {
            if place.contains("://") {
                http(&place, "crl", at, found);
            }
            crl.push(place);
        }
        let timeout = section
            .duration("timeout", Duration::from_secs(1)..=Duration::from_secs(10), found)
            .unwrap_or(Duration::from_secs(3));
        let refresh = section
            .duration("refresh", Duration::from_secs(5)..=Duration::from_secs(86_400), found)
            .unwrap_or(Duration::from_secs(600));
        section.finish(&[], found);
        cas.push(ExternalCa { name, certificate, revocation, ocsp, crl, timeout, refresh });
    }
    cas
}

fn http(url: &str, key: &str, at: usize, found: &mut Findings<'_>) {
    if !url.starts_with("http://") {
        found.error(
            at,
            format!("\"{url}\" in `{key}` must begin with http://: what is fetched is signed, and https:// could need what it fetches"),
        );
    }
}

/// The rules of one role.
pub(super) fn rules(
    role: &str,
    sections: Vec<Section<'_, '_>>,
    cas: &[ExternalCa],
    found: &mut Findings<'_>,
) -> Vec<MatchRule> {
    let mut rules = Vec::new();
    for mut section in sections {
        let Some((ca, at)) = section.string("ca", found) else {
            if !section.has("ca") {
                found.error(
                    section.offset,
                    format!("this rule of role \"{role}\" names no ca; add ca = \"NAME\" of a [[ca]] section, or issuer = \"NAME\" of an [[issuer]] section"),
                );
            }
            section.finish_quietly();
            continue;
        };
        if !cas.iter().any(|known| known.name == ca) {
            let names: Vec<&str> = cas.iter().map(|ca| ca.name.as_str()).collect();
            let hint = match value::nearest(&ca, &names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "add a [[ca]] section of that name".to_owned(),
            };
            found.error(at, format!("role \"{role}\" names the unknown ca \"{ca}\"; {hint}"));
        }
        let subject = section.string("subject", found).and_then(|(text, at)| {
            DnPattern::parse(&text)
                .map_err(|why| found.error(at, format!("`subject = \"{text}\"`: {why}")))
                .ok()
        });
        let san = section.string("san", found).and_then(|(text, at)| {
            SanPattern::parse(&text).map_err(|why| found.error(at, format!("`san`: {why}"))).ok()
        });
        if !section.has("subject") && !section.has("san") {
            found.warn(
                section.offset,
                format!("role \"{role}\" takes every certificate of ca \"{ca}\"; add subject = \"...\" or san = \"...\" to take fewer"),
            );
        }
        section.finish(&[], found);
        rules.push(MatchRule { ca, subject, san });
    }
    rules
}
