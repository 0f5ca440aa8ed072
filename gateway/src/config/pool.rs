//! `[[pool]]`: the addresses that clients get.

use std::time::Duration;

use ipnet::IpNet;

use super::model::Pool;
use super::read::named;
use super::section::{Findings, Section};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn pool_list(sections: Vec<Section<'_, '_>>, found: &mut Findings<'_>) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    let mut taken: Vec<(IpNet, String)> = Vec::new();
    for mut section in sections {
        let Some(name) = named(&mut section, found) else {
            section.finish_quietly();
            continue;
        };
        if pools.iter().any(|pool| pool.name == name) {
            found.error(section.offset, format!("pool \"{name}\" is there twice; rename one"));
        }
        let at = section.place("addresses");
        let mistakes = found.errors.len();
        let mut addresses: Vec<IpNet> = Vec::new();
        for (text, at) in section.strings("addresses", found).unwrap_or_default() {
            match pool_network(&text) {
                Ok(network) => {
                    if addresses
                        .iter()
                        .any(|other| other.addr().is_ipv4() == network.addr().is_ipv4())
                    {
                        found.error(at, format!("pool \"{name}\" has two networks of one family; make another pool for {network}"));
                    }
                    if let Some((other, whose)) = taken
                        .iter()
                        .find(|(other, _)| other.contains(&network) || network.contains(other))
                    {
                        found.error(at, format!("{network} overlaps {other} of pool \"{whose}\"; pools must not share addresses"));
                    }
                    taken.push((network, name.clone()));
                    addresses.push(network);
                }
                Err(why) => found.error(at, why),
            }
        }
        if addresses.is_empty() && found.errors.len() == mistakes {
            found.error(at, format!("pool \"{name}\" has no addresses; add addresses = [\"10.77.0.0/16\", \"fd77::/64\"]"));
        }
        pools.push(Pool {
            dns: section.addresses("dns", found).unwrap_or_default(),
            masquerade: section.boolean("masquerade", found).unwrap_or(false),
            quarantine: section
                .duration("quarantine", Duration::ZERO..=DAY, found)
                .unwrap_or(10 * MINUTE),
            name,
            addresses,
        });
        section.finish(&[], found);
    }
    pools
}

fn pool_network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text.parse().map_err(|_| {
        format!("\"{text}\" is not a network; write it like \"10.77.0.0/16\" or \"fd77::/64\"")
    })?;
    if network.trunc() != network {
        return Err(format!("{network} has host bits set; write \"{}\"", network.trunc()));
    }
    let (longest, shortest) = match network {
        IpNet::V4(_) => (29, 8),
        IpNet::V6(_) => (120, 32),
    };
    if network.prefix_len() > longest || network.prefix_len() < shortest {
        return Err(format!(
            "{network} must be between /{shortest} and /{longest} to serve as a pool"
        ));
    }
    Ok(network)
}
