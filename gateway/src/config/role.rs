//! `[[role]]`: who may reach what, and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use pki::signer::KeyKind;

use super::model::{AllowEntry, Config, Pool, Role};
use super::read::named;
use super::section::{Findings, Section};
use super::{external, issuer, limits, value};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn role_list(
    sections: Vec<Section<'_, '_>>,
    config: &Config,
    found: &mut Findings<'_>,
) -> Vec<Role> {
    let pools = config.pools.as_slice();
    let mut roles: BTreeMap<String, Role> = BTreeMap::new();
    let mut order = Vec::new();
    for mut section in sections {
        let Some(name) = named(&mut section, found) else {
            section.finish_quietly();
            continue;
        };
        if roles.contains_key(&name) {
            found.error(section.offset, format!("role \"{name}\" is there twice; rename one"));
        }
        let pool = role_pool(&mut section, &name, pools, found);
        let ttl = section.duration("ttl", MINUTE..=DAY, found).unwrap_or(HOUR);
        let max_at = section.place("max_lease");
        let max_lease = section.duration("max_lease", MINUTE..=30 * DAY, found).unwrap_or(DAY);
        if max_lease < ttl {
            found.error(
                max_at,
                format!(
                    "role \"{name}\": `max_lease` ({}) is shorter than `ttl` ({}); raise it",
                    value::duration_text(max_lease),
                    value::duration_text(ttl)
                ),
            );
        }
        let keys = role_keys(&mut section, found);
        let server_keys = section.boolean("allow_server_keygen", found).unwrap_or(false);
        let (max_leases, rate) = limits::of_role(&mut section, &name, found);
        let manual = approval(&mut section, &name, server_keys, found).unwrap_or(false);
        let san_address = section.boolean("san_address", found).unwrap_or(false);
        let verify_names = role_names(&mut section, found);
        let at = section.place("allow");
        let mut allow = Vec::new();
        for (text, at) in section.strings("allow", found).unwrap_or_default() {
            match value::allow_entry(&text) {
                Ok(entry) => {
                    check_reach(&entry, pools, at, found);
                    allow.push(entry);
                }
                Err(why) => found.error(at, why),
            }
        }
        if allow.is_empty() {
            found.warn(at, format!("role \"{name}\" allows nothing: its tunnels carry no traffic"));
        }
        allow.sort();
        allow.dedup();
        order.push(name.clone());
        let matches = section.tables("match", "[[role.match]]", found).unwrap_or_default();
        let (tokens, certificates): (Vec<_>, Vec<_>) =
            matches.into_iter().partition(|section| section.has("issuer"));
        let matches = external::rules(&name, certificates, &config.cas, found);
        let claims = issuer::rules((&name, server_keys), tokens, &config.issuers, found);
        roles.insert(
            name.clone(),
            Role {
                name,
                pool,
                ttl,
                max_lease,
                keys,
                server_keys,
                manual,
                san_address,
                verify_names,
                max_leases,
                rate,
                allow,
                matches,
                claims,
            },
        );
        section.finish(&[], found);
    }
    order.into_iter().filter_map(|name| roles.remove(&name)).collect()
}

/// `approval = "manual"`: leases wait for an operator. `None`: nothing is said.
pub(super) fn approval(
    section: &mut Section<'_, '_>,
    role: &str,
    server_keys: bool,
    found: &mut Findings<'_>,
) -> Option<bool> {
    let (word, at) = section.string("approval", found)?;
    match word.as_str() {
        "auto" => return Some(false),
        "manual" if server_keys => found.error(
            at,
            format!(
                "role \"{role}\" has both approval = \"manual\" and `allow_server_keygen`; a key \
                 that is made here is never kept and so cannot wait: keep one"
            ),
        ),
        "manual" => {}
        _ => found.error(at, format!("`approval = \"{word}\"` must be \"auto\" or \"manual\"")),
    }
    Some(true)
}

/// `csr_sans = "verify"`: requests ask for no other names than they get.
fn role_names(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> bool {
    match section.string("csr_sans", found) {
        None => false,
        Some((word, at)) => {
            if !matches!(word.as_str(), "ignore" | "verify") {
                found
                    .error(at, format!("`csr_sans = \"{word}\"` must be \"ignore\" or \"verify\""));
            }
            word == "verify"
        }
    }
}

/// `keys = [...]`: what kinds of key a role takes.
fn role_keys(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> Vec<KeyKind> {
    let at = section.place("keys");
    let Some(texts) = section.strings("keys", found) else { return Vec::new() };
    if texts.is_empty() {
        found.error(at, "`keys` is empty: no client could enrol; leave it out to take any kind");
    }
    let mut kinds = Vec::new();
    for (text, at) in texts {
        match text.parse::<KeyKind>() {
            Ok(kind) if !kinds.contains(&kind) => kinds.push(kind),
            Ok(_) => found.error(at, format!("\"{text}\" is in `keys` twice; keep one")),
            Err(_) => found.error(
                at,
                format!(
                    "\"{text}\" in `keys` must be one of {}",
                    KeyKind::ALL.map(KeyKind::name).join(", ")
                ),
            ),
        }
    }
    kinds
}

fn role_pool(
    section: &mut Section<'_, '_>,
    role: &str,
    pools: &[Pool],
    found: &mut Findings<'_>,
) -> String {
    let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    match section.string("pool", found) {
        Some((pool, at)) => {
            if !names.contains(&pool.as_str()) {
                let hint = match value::nearest(&pool, &names) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("the pools are {}", names.join(", ")),
                };
                found.error(
                    at,
                    format!("role \"{role}\" names the unknown pool \"{pool}\"; {hint}"),
                );
            }
            pool
        }
        None => match names.as_slice() {
            [only] => (*only).to_owned(),
            _ => {
                found.error(
                    section.offset,
                    format!(
                        "role \"{role}\" names no pool and there are {}; add pool = \"NAME\"",
                        names.len()
                    ),
                );
                String::new()
            }
        },
    }
}

/// Clients never reach each other: an allow entry inside a pool is a mistake, unless it is the
/// gateway's own tunnel address.
fn check_reach(entry: &AllowEntry, pools: &[Pool], at: usize, found: &mut Findings<'_>) {
    for pool in pools {
        for network in &pool.addresses {
            let gateway = IpNet::from(Pool::gateway_address(*network));
            if network.contains(&entry.net) && entry.net != gateway {
                found.error(at, format!("{} lies in pool \"{}\": clients cannot reach each other; only the gateway's own address {} can be allowed", entry.net, pool.name, gateway.addr()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn a_role_is_approved_by_hand_or_has_its_keys_made() {
        let role = |lines: &str| {
            let text = format!("[[role]]\nname = \"a\"\nallow = [\"10.20.0.10\"]\n{lines}");
            let config = Config::parse(&text, "runnel.toml");
            config.map(|config| (config.roles[0].manual, config.roles[0].server_keys))
        };
        assert_eq!(role("").unwrap(), (false, false));
        assert_eq!(
            role("approval = \"auto\"\nallow_server_keygen = true\n").unwrap(),
            (false, true)
        );
        assert_eq!(role("approval = \"manual\"\n").unwrap(), (true, false));
        let both = role("approval = \"manual\"\nallow_server_keygen = true\n").unwrap_err();
        assert!(both.to_string().contains("runnel.toml:4: role \"a\" has both"), "{both}");
        // A rule may say otherwise than its role.
        let rule = |role: &str, rule: &str| {
            let text = format!(
                "[[issuer]]\nname = \"github\"\nkind = \"github\"\naudience = \"https://a\"\n\
                 [[role]]\nname = \"a\"\nallow = [\"10.20.0.10\"]\n{role}\
                 [[role.match]]\nissuer = \"github\"\nrepository_id = \"1\"\n{rule}"
            );
            let config = Config::parse(&text, "runnel.toml");
            config.map(|config| (config.roles[0].manual, config.roles[0].claims[0].manual))
        };
        assert_eq!(rule("", "").unwrap(), (false, None));
        assert_eq!(rule("", "approval = \"manual\"\n").unwrap(), (false, Some(true)));
        let auto = rule("approval = \"manual\"\n", "approval = \"auto\"\n").unwrap();
        assert_eq!(auto, (true, Some(false)));
        let keys = rule("allow_server_keygen = true\n", "approval = \"manual\"\n").unwrap_err();
        assert!(keys.to_string().contains("runnel.toml:12: role \"a\" has both"), "{keys}");
        let word = role("approval = \"maybe\"\n").unwrap_err().to_string();
        assert!(word.contains("must be \"auto\" or \"manual\""), "{word}");
    }

    #[test]
    fn names_in_certificates_are_the_roles_business() {
        let role = |lines: &str| {
            let text = format!("[[role]]\nname = \"a\"\nallow = [\"10.20.0.10\"]\n{lines}");
            let config = Config::parse(&text, "runnel.toml")?;
            let settings = crate::service::pki_settings(&config, "gw.example.com");
            Ok::<_, crate::config::ConfigErrors>(settings.roles["a"].clone())
        };
        let names = |role: pki::RoleProfile| (role.verify_names, role.san_address);
        assert_eq!(names(role("").unwrap()), (false, false));
        let both = role("csr_sans = \"verify\"\nsan_address = true\n").unwrap();
        assert_eq!(names(both), (true, true));
        assert!(!role("csr_sans = \"ignore\"\n").unwrap().verify_names);
        let word = role("csr_sans = \"copy\"\n").unwrap_err().to_string();
        assert!(word.contains("must be \"ignore\" or \"verify\""), "{word}");
    }
}
