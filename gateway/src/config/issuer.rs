//! `[[issuer]]` and its rules in `[[role.match]]`: whose OIDC tokens open leases, and of which
//! project. Keys are fetched, and files read, when a token comes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pki::JwtAlgorithm;
use pki::enrol::jwt::{
    ClaimPattern, ClaimRule, Issuer, IssuerKind, JobDeadline, KeySource, Pin, TokenReview,
    known_claims, takes_wildcard,
};

use super::read::named;
use super::section::{Findings, Section, Text};
use super::value;

/// Issuers of platforms that are one for everybody.
const GITHUB: &str = "https://token.actions.githubusercontent.com";
const GITLAB: &str = "https://gitlab.com";

pub(super) fn issuers(
    sections: Vec<Section<'_, '_>>,
    enrol_url: Option<&str>,
    found: &mut Findings<'_>,
) -> Vec<Issuer> {
    let mut issuers: Vec<Issuer> = Vec::new();
    for mut section in sections {
        let Some(name) = named(&mut section, found) else {
            section.finish_quietly();
            continue;
        };
        let kind = kind(&mut section, &name, found);
        let url = url(&mut section, &name, kind, found);
        let audience = audience(&mut section, &name, enrol_url, found);
        let keys = keys(&mut section, found);
        if matches!(keys, KeySource::Discovery { .. })
            && url.as_deref().is_some_and(|url| !url.starts_with("https://"))
        {
            found.error(
                section.place("issuer"),
                format!("the keys of issuer \"{name}\" can only be fetched from https://; give them with static_jwks = \"/etc/runnel/{name}-jwks.json\""),
            );
        }
        let algorithms = algorithms(&mut section, found);
        let review = review(&mut section, &name, kind, found);
        let deadline = section.string("job_deadline", found);
        let twice = |other: &Issuer| {
            other.name == name || url.as_deref().is_some_and(|url| other.issuer == url)
        };
        if issuers.iter().any(twice) {
            found.error(section.offset, format!("issuer \"{name}\" is there twice; keep one"));
        }
        section.finish(&[], found);
        let Some(kind) = kind else { continue };
        let (url, audience) = (url.unwrap_or_default(), audience.unwrap_or_default());
        let mut issuer = Issuer::new(name, kind, url, audience, keys);
        issuer.algorithms = algorithms.unwrap_or(issuer.algorithms);
        issuer.review = review;
        issuer.job_deadline = match deadline {
            None => issuer.job_deadline,
            Some((word, _)) if word == "none" => JobDeadline::Unknown,
            Some((claim, _)) => JobDeadline::Claim(claim),
        };
        issuers.push(issuer);
    }
    issuers
}

fn kind(section: &mut Section<'_, '_>, name: &str, found: &mut Findings<'_>) -> Option<IssuerKind> {
    let names = IssuerKind::ALL.map(IssuerKind::name);
    let Some((word, at)) = section.string("kind", found) else {
        if !section.has("kind") {
            found.error(
                section.offset,
                format!("issuer \"{name}\" has no kind; add kind = one of {}", names.join(", ")),
            );
        }
        return None;
    };
    let kind = IssuerKind::ALL.into_iter().find(|kind| kind.name() == word);
    if kind.is_none() {
        found.error(at, format!("`kind = \"{word}\"` must be one of {}", names.join(", ")));
    }
    kind
}

fn url(
    section: &mut Section<'_, '_>,
    name: &str,
    kind: Option<IssuerKind>,
    found: &mut Findings<'_>,
) -> Option<String> {
    if let Some((url, at)) = section.string("issuer", found) {
        let fits = url.contains("://") && !url.contains([' ', '?', '#']);
        if !fits {
            found.error(at, format!("`issuer = \"{url}\"` must be the `iss` of the tokens, exactly: a URL like \"{GITLAB}\""));
        }
        // Everybody can have tokens of these: which project one is of, only their kind knows.
        for (public, its) in [(GITHUB, IssuerKind::Github), (GITLAB, IssuerKind::Gitlab)] {
            if url.trim_end_matches('/') == public && kind.is_some_and(|kind| kind != its) {
                found.error(
                    at,
                    format!(
                        "`issuer = \"{url}\"` is that of kind = \"{}\"; write that kind",
                        its.name()
                    ),
                );
            }
        }
        return fits.then_some(url);
    }
    match kind {
        Some(IssuerKind::Github) => Some(GITHUB.to_owned()),
        Some(IssuerKind::Gitlab) => Some(GITLAB.to_owned()),
        Some(_) if !section.has("issuer") => {
            found.error(
                section.offset,
                format!("issuer \"{name}\" has no `issuer`; add issuer = \"https://...\", exactly as its tokens have it in `iss`"),
            );
            None
        }
        _ => None,
    }
}

/// Tokens for another audience were made for somebody else, who could use them here.
fn audience(
    section: &mut Section<'_, '_>,
    name: &str,
    enrol_url: Option<&str>,
    found: &mut Findings<'_>,
) -> Option<String> {
    let at = section.place("audience");
    let audience = match section.string("audience", found) {
        Some((audience, _)) => Some(audience),
        None if section.has("audience") => return None,
        None => enrol_url.map(str::to_owned),
    };
    let audience = audience.filter(|audience| !audience.trim().is_empty());
    if audience.is_none() {
        found.error(
            at,
            format!("issuer \"{name}\" has no audience; add audience = \"https://gw.example.com:8443\" here, or url in [enrol], and have jobs ask for tokens with it"),
        );
    }
    audience
}

fn keys(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> KeySource {
    let mut path = |key: &'static str| {
        let (text, at) = section.string(key, found)?;
        let path = PathBuf::from(&text);
        if !path.is_absolute() {
            found.error(at, format!("`{key} = \"{text}\"` must be an absolute path"));
        }
        Some((path, at))
    };
    match (path("static_jwks"), path("ca")) {
        (Some(_), Some((_, at))) => {
            found
                .error(at, "`ca` is for fetching keys, which `static_jwks` does without; keep one");
            KeySource::Discovery { ca: None }
        }
        (Some((file, _)), None) => KeySource::File(file),
        (None, ca) => KeySource::Discovery { ca: ca.map(|(path, _)| path) },
    }
}

/// `token_review = { url, ca, token_file, unreachable }`
fn review(
    section: &mut Section<'_, '_>,
    name: &str,
    kind: Option<IssuerKind>,
    found: &mut Findings<'_>,
) -> Option<TokenReview> {
    let at = section.place("token_review");
    let mut inner = section.table("token_review", "token_review", found)?;
    if kind.is_some_and(|kind| kind != IssuerKind::Kubernetes) {
        found.error(at, format!("issuer \"{name}\" has a `token_review`, which only kind = \"kubernetes\" knows; remove it"));
    }
    let url = inner.string("url", found);
    if let Some((url, at)) = &url
        && (!url.starts_with("https://") || url.contains([' ', '?', '#']))
    {
        found.error(*at, format!("`url = \"{url}\"` must be the API server's https://HOST[:PORT]"));
    }
    let mut path = |key| inner.string(key, found).map(|(text, _)| PathBuf::from(text));
    let (ca, token_file) = (path("ca"), path("token_file"));
    let strict = match inner.string("unreachable", found) {
        None => true,
        Some((word, at)) => {
            if !matches!(word.as_str(), "refuse" | "accept") {
                found.error(
                    at,
                    format!("`unreachable = \"{word}\"` must be \"refuse\" or \"accept\""),
                );
            }
            word != "accept"
        }
    };
    let missing = |inner: &Section<'_, '_>, key: &str, there: bool| !there && !inner.has(key);
    if missing(&inner, "url", url.is_some()) || missing(&inner, "token_file", token_file.is_some())
    {
        found.error(at, "`token_review` needs `url` of the API server and `token_file` with a token that may create reviews (system:auth-delegator)");
    }
    inner.finish(&[], found);
    Some(TokenReview { url: url?.0, ca, token_file: token_file?, strict })
}

fn algorithms(
    section: &mut Section<'_, '_>,
    found: &mut Findings<'_>,
) -> Option<Vec<JwtAlgorithm>> {
    let texts = section.strings("algorithms", found)?;
    let mut algorithms = Vec::new();
    for (text, at) in &texts {
        match JwtAlgorithm::from_name(text) {
            Some(algorithm) => algorithms.push(algorithm),
            None => found.error(
                *at,
                format!("\"{text}\" in `algorithms` must be RS256, ES256 or EdDSA: others are never accepted"),
            ),
        }
    }
    if texts.is_empty() {
        found.error(section.place("algorithms"), "`algorithms` is empty; leave it out");
    }
    Some(algorithms)
}

/// The rules of one role.
pub(super) fn rules(
    (role, server_keys): (&str, bool),
    sections: Vec<Section<'_, '_>>,
    issuers: &[Issuer],
    found: &mut Findings<'_>,
) -> Vec<ClaimRule> {
    let mut rules = Vec::new();
    for (index, mut section) in sections.into_iter().enumerate() {
        let Some((name, at)) = section.string("issuer", found) else {
            section.finish_quietly();
            continue;
        };
        let offset = section.offset;
        if section.has("ca") {
            found.error(
                section.place("ca"),
                format!("this rule of role \"{role}\" has both `issuer` and `ca`; make two rules"),
            );
            section.finish_quietly();
            continue;
        }
        let Some(issuer) = issuers.iter().find(|issuer| issuer.name == name) else {
            let names: Vec<&str> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
            let hint = match value::nearest(&name, &names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "add an [[issuer]] section of that name".to_owned(),
            };
            found.error(at, format!("role \"{role}\" names the unknown issuer \"{name}\"; {hint}"));
            section.finish_quietly();
            continue;
        };
        let manual = super::role::approval(&mut section, role, server_keys, found);
        let mut claims = BTreeMap::new();
        for (claim, at, values) in section.others(found) {
            if let Some(patterns) = patterns(issuer.kind, &claim, at, values, found) {
                claims.insert(claim, patterns);
            }
        }
        let (role_name, number) = (role.to_owned(), index + 1);
        let rule = ClaimRule { role: role_name, number, issuer: name, claims, manual };
        match rule.pin(issuer.kind) {
            Pin::Stable => {}
            Pin::NameOnly(add) => found.warn(
                offset,
                format!("this rule of role \"{role}\" knows the project by its name alone, which somebody else can come to have; add {add}"),
            ),
            Pin::Missing(add) => found.error(
                offset,
                format!("this rule of role \"{role}\" is about no project: every job on {} could use it; add {add}", issuer.issuer),
            ),
        }
        rules.push(rule);
    }
    rules
}

fn patterns(
    kind: IssuerKind,
    claim: &str,
    at: usize,
    values: Vec<Text>,
    found: &mut Findings<'_>,
) -> Option<Vec<ClaimPattern>> {
    if matches!(claim, "iss" | "aud" | "exp" | "nbf" | "iat" | "jti") {
        found.error(at, format!("`{claim}` is judged for every token; remove it from the rule"));
        return None;
    }
    let known = known_claims(kind);
    if !known.is_empty() && !known.contains(&claim) {
        let what = kind.name();
        match value::nearest(claim, known) {
            Some(near) => found.error(
                at,
                format!("unknown claim `{claim}` of {what} tokens; did you mean `{near}`?"),
            ),
            None => found.warn(
                at,
                format!("`{claim}` is no claim that {what} tokens are known to have; without it the rule never matches"),
            ),
        }
    }
    if values.is_empty() {
        found.error(at, format!("`{claim}` lists no value, so the rule never matches; remove it"));
    }
    let mut patterns = Vec::new();
    for (text, at) in values {
        let pattern = ClaimPattern::new(text);
        if !pattern.is_exact() && !takes_wildcard(kind, claim) {
            found.error(at, format!("`{claim} = \"{pattern}\"`: this claim is compared as it is, without *; list the values"));
        }
        patterns.push(pattern);
    }
    Some(patterns)
}

#[cfg(test)]
mod tests {
    use pki::enrol::jwt::JobDeadline;

    use crate::config::Config;
    use crate::config::tests::errors;

    #[test]
    fn a_cluster_is_asked_about_its_tokens() {
        let with = |kind: &str, review: &str| {
            format!(
                "[[issuer]]\nname = \"k8s\"\nkind = \"{kind}\"\nissuer = \"https://k8s.example.com\"\n\
             audience = \"https://gw.example.com\"\ntoken_review = {{ {review} }}\n"
            )
        };
        let whole =
            "url = \"https://10.0.0.1:6443\", ca = \"/etc/ca\", token_file = \"/etc/token\"";
        let config = Config::parse(&with("kubernetes", whole), "test").unwrap();
        let review = config.issuers[0].review.clone().unwrap();
        assert!(review.strict && review.url == "https://10.0.0.1:6443" && review.ca.is_some());
        let soft = format!("{whole}, unreachable = \"accept\"");
        let config = Config::parse(&with("kubernetes", &soft), "test").unwrap();
        assert!(!config.issuers[0].review.as_ref().unwrap().strict);
        for (kind, review, part) in [
            ("kubernetes", "url = \"https://a\"", "needs `url`"),
            ("kubernetes", &whole.replace("https", "http"), "must be the API server's"),
            ("kubernetes", &format!("{whole}, unreachable = \"no\""), "\"refuse\" or \"accept\""),
            ("kubernetes", &format!("{whole}, tokn = \"x\""), "unknown key `tokn`"),
            ("generic", whole, "only kind = \"kubernetes\""),
        ] {
            let found = errors(&with(kind, review));
            assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
        }
    }

    #[test]
    fn an_issuer_may_say_when_its_jobs_end() {
        let deadline = |kind: &str, line: &str| {
            let text = format!(
                "[[issuer]]\nname = \"a\"\nkind = \"{kind}\"\naudience = \"https://gw\"\n\
                 issuer = \"https://ci.example.com\"\n{line}"
            );
            Config::parse(&text, "test").unwrap().issuers.remove(0).job_deadline
        };
        assert_eq!(deadline("gitlab", ""), JobDeadline::Lifetime);
        assert_eq!(deadline("github", ""), JobDeadline::Unknown);
        assert_eq!(deadline("gitlab", "job_deadline = \"none\""), JobDeadline::Unknown);
        let claim = JobDeadline::Claim("exp".to_owned());
        assert_eq!(deadline("generic", "job_deadline = \"exp\""), claim);
    }
}
