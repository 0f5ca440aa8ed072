//! The packet filter of the tunnel interface, in an nftables table of Runnel's own.
//!
//! Duty: enforce each lease's allow list on every packet that enters or leaves the tunnel
//! interface, default deny, the same way for every data plane. It never touches other tables.
//!
//! The base ruleset (`ruleset`) is loaded by the `nft` program in one transaction, seldom: at
//! start and when policy changes. What changes with every client, the binding of a lease's
//! addresses to its role's chains, is one batched nfnetlink transaction (`elements`) and never
//! a process. A verdict is looked up for every packet, so removing a binding stops live flows at
//! once; conntrack is consulted only for replies, never to let a client's packet through.

mod conntrack;
mod elements;
mod ruleset;
#[cfg(any(test, feature = "fuzzing"))]
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use self::conntrack::FlowCleaner;
use self::elements::TableIdentity;
use self::ruleset::{ChainKind, table_name};
use crate::enforcer::PacketFilter;
use crate::error::PlaneError;
use crate::model::{LeaseFilter, PlaneKind, RoleFilter, SiteFilter, TunnelNetwork};
use crate::netlink::{Message, Netlink, Protocol};

#[cfg(any(test, feature = "fuzzing"))]
pub use self::targets::nft_message;
#[cfg(test)]
pub(crate) use self::targets::samples;

/// Reasons of the named drop counters.
const DROP_REASONS: [&str; 4] = ["from_client", "to_client", "client_to_client", "spoofed"];
/// Messages of one transaction: a datagram of them stays well below the socket's send buffer.
const TRANSACTION_MESSAGES: usize = 600;
/// Where distributions install `nft`. A fixed list: PATH of a service is not to be trusted.
const NFT_PATHS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

/// What the base ruleset is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallConfig {
    /// Name of this instance (`[a-z0-9_]*`, at most 32 characters); empty for the only one on a
    /// machine. The table is `inet runnel` or `inet runnel_INSTANCE`.
    pub instance: String,
    /// The tunnel interface. It need not exist yet.
    pub interface: String,
    /// Pools.
    pub networks: Vec<TunnelNetwork>,
    /// Allow lists.
    pub roles: Vec<RoleFilter>,
    /// Filters of sites.
    pub sites: Vec<SiteFilter>,
    /// The kernel plane also binds the SA's reqid; the others check sources themselves.
    pub plane: PlaneKind,
}

/// Packets and bytes counted by a rule or element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
}

impl std::ops::AddAssign for Counter {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Counters of one lease at the firewall; they begin anew at each binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseCounters {
    /// Packets of the client that reached its role's chains (allowed and refused ones).
    pub from_client: Counter,
    /// Packets towards the client that reached its role's reply chain.
    pub to_client: Counter,
    /// Packets of the client that its role does not allow: dropped.
    pub refused: Counter,
}

/// Counters of the firewall.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilterCounters {
    /// By the lease's reqid.
    pub leases: BTreeMap<u32, LeaseCounters>,
    /// Dropped packets by reason: `from_client` (not allowed or not bound), `to_client` (no
    /// reply), `client_to_client`, `spoofed` (a pool's address outside the tunnel).
    pub drops: BTreeMap<&'static str, Counter>,
}

/// The installed firewall of one instance.
#[derive(Debug)]
pub struct Firewall {
    config: FirewallConfig,
    table: String,
    netlink: Netlink,
    identity: TableIdentity,
    /// The generation of the machine's ruleset in which the table was seen complete.
    seen: Option<Vec<u8>>,
    leases: BTreeMap<u32, LeaseFilter>,
    owners: BTreeMap<IpAddr, u32>,
    /// Chains of roles that are gone but still have bound leases; empty, so everything drops.
    retired: BTreeSet<String>,
    cleaner: FlowCleaner,
}

impl Firewall {
    /// Installs the base ruleset in one transaction, replacing what a killed instance left.
    ///
    /// # Errors
    /// [`PlaneError::System`] when `nft` is missing or refuses; [`PlaneError::Conflict`] for a
    /// name or rule that cannot be. Nothing is installed then.
    pub fn install(config: &FirewallConfig) -> Result<Self, PlaneError> {
        Self::install_by(config, identify)
    }

    /// As [`Self::install`], with what looks the new table up.
    fn install_by(
        config: &FirewallConfig,
        identify: impl FnOnce(&mut Netlink, &str) -> Result<Option<TableIdentity>, PlaneError>,
    ) -> Result<Self, PlaneError> {
        ruleset::check(config)?;
        let table = table_name(&config.instance);
        let mut netlink = Netlink::open(Protocol::Netfilter)?;
        let cleaner = FlowCleaner::start()?;
        load(&ruleset::base(config))?;
        let identity = identify(&mut netlink, &table).and_then(|found| {
            found.ok_or_else(|| {
                PlaneError::Malformed(format!("nft loaded the table {table}, but it is not there"))
            })
        });
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => {
                if let Err(second) = delete_table(&mut netlink, &table) {
                    tracing::warn!(error = %second, "firewall not removed after a failed start");
                }
                return Err(error);
            }
        };
        Ok(Self {
            config: config.clone(),
            table,
            netlink,
            identity,
            seen: None,
            leases: BTreeMap::new(),
            owners: BTreeMap::new(),
            retired: BTreeSet::new(),
            cleaner,
        })
    }

    /// Name of the nftables table (family `inet`).
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Binds many leases in as few transactions as possible.
    ///
    /// # Errors
    /// As [`PacketFilter::bind`]; leases before the one refused may be bound.
    pub fn bind_all(&mut self, leases: &[LeaseFilter]) -> Result<(), PlaneError> {
        let mut claimed = BTreeMap::new();
        for lease in leases {
            self.check_lease(lease)?;
            for address in &lease.addresses {
                if claimed.insert(*address, lease.reqid).is_some_and(|id| id != lease.reqid) {
                    return Err(PlaneError::Conflict(format!(
                        "address {address} is claimed by two leases"
                    )));
                }
            }
        }
        // Elements of one lease never straddle two transactions.
        let mut messages: Vec<Message> = Vec::new();
        let mut pending: Vec<&LeaseFilter> = Vec::new();
        for lease in leases {
            if self.leases.get(&lease.reqid) == Some(lease) {
                continue;
            }
            if let Some(former) = self.leases.get(&lease.reqid) {
                messages.extend(elements::unbind(&self.table, self.config.plane, former));
            }
            messages.extend(elements::bind(&self.table, self.config.plane, lease));
            pending.push(lease);
            if messages.len() >= TRANSACTION_MESSAGES {
                self.commit_bind(std::mem::take(&mut messages), std::mem::take(&mut pending))?;
            }
        }
        self.commit_bind(messages, pending)
    }

    fn commit_bind(
        &mut self,
        messages: Vec<Message>,
        leases: Vec<&LeaseFilter>,
    ) -> Result<(), PlaneError> {
        self.netlink.transaction("bind a lease in the firewall", messages)?;
        for lease in leases {
            if let Some(former) = self.leases.insert(lease.reqid, lease.clone()) {
                for address in &former.addresses {
                    self.owners.remove(address);
                }
            }
            self.owners.extend(lease.addresses.iter().map(|address| (*address, lease.reqid)));
        }
        Ok(())
    }

    /// A site's networks are intervals, which only `nft` orders rightly; sites are few and seldom
    /// come or go.
    fn bind_site(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        if self.leases.get(&lease.reqid) == Some(lease) {
            return Ok(());
        }
        let known = self.config.sites.iter().find(|site| site.site == lease.role);
        let site = known.ok_or_else(|| {
            PlaneError::Conflict(format!("no site {} in the firewall", lease.role))
        })?;
        if let Some(net) = lease.networks.iter().find(|net| !site.remote.contains(net)) {
            return Err(PlaneError::Conflict(format!("{net} is not a network of {}", site.site)));
        }
        let other = self.leases.values().find(|other| {
            other.reqid != lease.reqid
                && other.networks.iter().any(|net| lease.networks.contains(net))
        });
        if let Some(other) = other {
            return Err(PlaneError::Conflict(format!(
                "the networks of site {} are bound to another lease (reqid {})",
                lease.role, other.reqid
            )));
        }
        load(&ruleset::site_elements(&self.config, lease, true))?;
        self.leases.insert(lease.reqid, lease.clone());
        Ok(())
    }

    fn unbind_site(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        let text = ruleset::site_elements(&self.config, lease, false);
        // Somebody may have removed the elements; they are put back to be removed.
        if load(&text).is_err() {
            self.seen = None;
            self.ensure()?;
            load(&text)?;
        }
        self.leases.remove(&lease.reqid);
        Ok(())
    }

    fn check_lease(&self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        if !self.config.roles.iter().any(|role| role.role == lease.role) {
            return Err(PlaneError::Conflict(format!("no role {} in the firewall", lease.role)));
        }
        for address in &lease.addresses {
            if self.owners.get(address).is_some_and(|owner| *owner != lease.reqid) {
                return Err(PlaneError::Conflict(format!(
                    "address {address} is bound to another lease"
                )));
            }
            let networks = &self.config.networks;
            // An address outside the pools would be answered by somebody else's route.
            if !networks.iter().any(|n| n.network.contains(address) && n.gateway != *address) {
                return Err(PlaneError::Conflict(format!(
                    "address {address} is in no pool of this gateway"
                )));
            }
        }
        Ok(())
    }

    fn list(&mut self, kind: ChainKind) -> Result<Vec<(IpAddr, Counter)>, PlaneError> {
        let mut all = Vec::new();
        for ipv6 in [false, true] {
            let request = elements::list_elements(&self.table, kind, ipv6);
            let parts =
                self.netlink.dump("list the firewall's elements", &request, |_, payload| {
                    elements::parse_elements(ipv6, payload).map(Some)
                })?;
            all.extend(parts.into_iter().flatten());
        }
        Ok(all)
    }
}

impl PacketFilter for Firewall {
    fn bind(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        if !lease.networks.is_empty() {
            return self.bind_site(lease);
        }
        self.bind_all(std::slice::from_ref(lease))
    }

    fn unbind(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        let Some(bound) = self.leases.get(&lease.reqid) else {
            return Ok(());
        };
        if !bound.networks.is_empty() {
            let bound = bound.clone();
            return self.unbind_site(&bound);
        }
        let messages = elements::unbind(&self.table, self.config.plane, bound);
        match self.netlink.try_transaction(messages)? {
            Ok(()) => {}
            // Somebody removed the table or its elements: nothing of the lease passes them.
            Err(refusal) if refusal.errno == libc::ENOENT => {
                self.ensure()?;
                return self.unbind_repaired(lease);
            }
            Err(refusal) => {
                return Err(refusal.into_error("unbind a lease in the firewall"));
            }
        }
        self.forget(lease.reqid);
        Ok(())
    }

    fn replace_roles(&mut self, roles: &[RoleFilter]) -> Result<(), PlaneError> {
        ruleset::check_roles(roles)?;
        // What others changed would otherwise pass for our own from here on.
        self.ensure()?;
        let wanted: BTreeSet<&str> = roles.iter().map(|role| role.role.as_str()).collect();
        let clients = self.leases.values().filter(|lease| lease.networks.is_empty());
        let bound: BTreeSet<&str> = clients.map(|lease| lease.role.as_str()).collect();
        let former = self.config.roles.iter().map(|role| &role.role).chain(&self.retired);
        let gone: BTreeSet<String> =
            former.filter(|name| !wanted.contains(name.as_str())).cloned().collect();
        let (emptied, delete): (Vec<String>, Vec<String>) =
            gone.into_iter().partition(|name| bound.contains(name.as_str()));
        load(&ruleset::replace_roles(&self.config, roles, &emptied, &delete))?;
        self.config.roles = roles.to_vec();
        self.retired = emptied.into_iter().collect();
        if let Some(identity) = identify(&mut self.netlink, &self.table)? {
            self.identity = identity;
        }
        Ok(())
    }

    fn replace_sites(&mut self, sites: &[SiteFilter]) -> Result<(), PlaneError> {
        if self.config.sites == sites {
            return Ok(());
        }
        ruleset::check_sites(sites)?;
        self.ensure()?;
        let stays = |lease: &LeaseFilter| {
            sites.iter().any(|site| {
                site.site == lease.role && lease.networks.iter().all(|n| site.remote.contains(n))
            })
        };
        let bound = self.leases.values().filter(|lease| !lease.networks.is_empty());
        if let Some(lease) = bound.into_iter().find(|lease| !stays(lease)) {
            return Err(PlaneError::Conflict(format!(
                "site {} is still connected and cannot be changed",
                lease.role
            )));
        }
        load(&ruleset::replace_sites(&self.config, &self.config.sites, sites))?;
        self.config.sites = sites.to_vec();
        if let Some(identity) = identify(&mut self.netlink, &self.table)? {
            self.identity = identity;
        }
        Ok(())
    }

    fn counters(&mut self) -> Result<FilterCounters, PlaneError> {
        let mut counters = FilterCounters::default();
        for kind in ChainKind::MAPS {
            for (address, counter) in self.list(kind)? {
                let Some(reqid) = self.owners.get(&address) else {
                    continue;
                };
                let lease = counters.leases.entry(*reqid).or_default();
                match kind {
                    ChainKind::Forward | ChainKind::Local => lease.from_client += counter,
                    ChainKind::Return => lease.to_client += counter,
                    ChainKind::Refused => lease.refused += counter,
                }
            }
        }
        let table = self.table.clone();
        let request = elements::list_counters(&table);
        let drops = self.netlink.dump("list the firewall's counters", &request, |_, payload| {
            elements::parse_drop_counter(&table, payload)
        })?;
        counters.drops.extend(drops);
        Ok(counters)
    }

    fn ensure(&mut self) -> Result<bool, PlaneError> {
        // Read before the table is looked at: a change in between makes another generation.
        let generation = generation(&mut self.netlink)?;
        if self.seen.as_ref() == Some(&generation) {
            return Ok(false);
        }
        if identify(&mut self.netlink, &self.table)?.as_ref() == Some(&self.identity) {
            self.seen = Some(generation);
            return Ok(false);
        }
        self.seen = None;
        let mut config = self.config.clone();
        // Retired roles come back as empty chains, for the elements that still name them.
        config.roles.extend(self.retired.iter().map(|role| RoleFilter {
            role: role.clone(),
            allow: Vec::new(),
            own_ports: Vec::new(),
        }));
        load(&ruleset::base(&config))?;
        let (leases, sites): (Vec<LeaseFilter>, Vec<LeaseFilter>) =
            self.leases.values().cloned().partition(|lease| lease.networks.is_empty());
        for site in &sites {
            load(&ruleset::site_elements(&self.config, site, true))?;
        }
        for chunk in leases.chunks(TRANSACTION_MESSAGES / 8) {
            let messages = chunk
                .iter()
                .flat_map(|lease| elements::bind(&self.table, self.config.plane, lease))
                .collect();
            self.netlink.transaction("bind the leases in the firewall again", messages)?;
        }
        if let Some(identity) = identify(&mut self.netlink, &self.table)? {
            self.identity = identity;
        }
        Ok(true)
    }

    fn remove(&mut self) -> Result<(), PlaneError> {
        delete_table(&mut self.netlink, &self.table)?;
        let addresses: Vec<IpAddr> = self.owners.keys().copied().collect();
        self.leases.clear();
        self.owners.clear();
        self.cleaner.clean(addresses);
        self.cleaner.stop();
        Ok(())
    }
}

impl Firewall {
    /// Unbinds after [`PacketFilter::ensure`] put the elements back.
    fn unbind_repaired(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        if let Some(bound) = self.leases.get(&lease.reqid) {
            let messages = elements::unbind(&self.table, self.config.plane, bound);
            if let Err(refusal) = self.netlink.try_transaction(messages)?
                && refusal.errno != libc::ENOENT
            {
                return Err(refusal.into_error("unbind a lease in the firewall"));
            }
        }
        self.forget(lease.reqid);
        Ok(())
    }

    fn forget(&mut self, reqid: u32) {
        if let Some(lease) = self.leases.remove(&reqid) {
            for address in &lease.addresses {
                self.owners.remove(address);
            }
            // Its flows are blocked already; their conntrack entries would let late replies reach
            // whoever gets the address next.
            self.cleaner.clean(lease.addresses);
        }
    }
}

/// Deletes a table; one that is not there is no error.
fn delete_table(netlink: &mut Netlink, table: &str) -> Result<(), PlaneError> {
    match netlink.try_transaction(vec![elements::delete_table(table)])? {
        Err(refusal) if refusal.errno != libc::ENOENT => {
            Err(refusal.into_error("delete Runnel's nftables table"))
        }
        _ => Ok(()),
    }
}

/// The generation of the machine's ruleset.
fn generation(netlink: &mut Netlink) -> Result<Vec<u8>, PlaneError> {
    match netlink.try_query(elements::get_generation())? {
        Ok((_, payload)) => elements::parse_generation(&payload),
        Err(refusal) => Err(refusal.into_error("show the generation of the nftables ruleset")),
    }
}

/// Whether the table is there, and which one it is, rules included.
fn identify(netlink: &mut Netlink, table: &str) -> Result<Option<TableIdentity>, PlaneError> {
    let parts = match netlink.try_query(elements::get_table(table))? {
        Ok((_, payload)) => elements::parse_table(&payload)?,
        Err(refusal) if refusal.errno == libc::ENOENT => return Ok(None),
        Err(refusal) => return Err(refusal.into_error("show Runnel's nftables table")),
    };
    let chains =
        netlink.dump("list the firewall's chains", &elements::list_chains(), |_, payload| {
            elements::parse_chain(table, payload)
        })?;
    let rules =
        netlink.dump("list the firewall's rules", &elements::list_rules(table), |_, payload| {
            elements::parse_rule(table, payload)
        })?;
    Ok(Some(TableIdentity { table: parts, chains, rules }))
}

/// Loads text with `nft -f -`: one transaction, all or nothing.
fn load(text: &str) -> Result<(), PlaneError> {
    let fail = |reason: String, fix: &str| PlaneError::System {
        what: "cannot load the packet filter".to_owned(),
        reason,
        fix: fix.to_owned(),
    };
    let path = NFT_PATHS
        .into_iter()
        .find(|path| std::fs::exists(path).unwrap_or(false))
        .ok_or_else(|| fail("nft is not installed".to_owned(), "install the package nftables"))?;
    let run = || -> std::io::Result<_> {
        let mut child = Command::new(path)
            .args(["-f", "-"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| {
        fail(format!("{path} did not run: {error}"), "reinstall the package nftables")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let reason = words.lines().find(|line| line.contains("Error")).unwrap_or("nft failed");
    let fix = if words.contains("Operation not permitted") {
        "run as root or with CAP_NET_ADMIN"
    } else {
        "the kernel needs nf_tables with the modules nft_ct, nft_fib, nft_masq and nft_xfrm; see \
         `nft list ruleset`"
    };
    Err(fail(reason.to_owned(), fix))
}

/// Tries the ruleset of a plane in the calling thread's network namespace, for the probe, and
/// removes it. `name` names the table and an interface that must not exist. The networks are ones
/// no packet has (class E and the discard prefix, RFC 6666): the namespace may be in use.
///
/// # Errors
/// One sentence: what is missing.
pub(crate) fn try_ruleset(plane: PlaneKind, name: &str) -> Result<(), PlaneError> {
    let network = |network: &str, gateway: &str| -> Option<TunnelNetwork> {
        Some(TunnelNetwork {
            network: network.parse().ok()?,
            gateway: gateway.parse().ok()?,
            masquerade: true,
        })
    };
    let networks = [network("240.0.0.0/24", "240.0.0.1"), network("100::/64", "100::1")];
    let config = FirewallConfig {
        instance: name.to_owned(),
        interface: name.to_owned(),
        networks: networks.into_iter().flatten().collect(),
        roles: vec![RoleFilter {
            role: "probe".to_owned(),
            allow: Vec::new(),
            own_ports: Vec::new(),
        }],
        sites: Vec::new(),
        plane,
    };
    let mut firewall = Firewall::install(&config)?;
    let addresses = ["240.0.0.2", "100::2"];
    let bound = firewall.bind(&LeaseFilter {
        reqid: 1,
        addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        networks: Vec::new(),
        role: "probe".to_owned(),
    });
    let removed = firewall.remove();
    bound.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::in_fresh_namespace;

    #[test]
    fn a_start_that_fails_after_loading_leaves_no_table() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let config = FirewallConfig {
            instance: String::new(),
            interface: "runnel0".to_owned(),
            networks: Vec::new(),
            roles: Vec::new(),
            sites: Vec::new(),
            plane: PlaneKind::Userspace,
        };
        in_fresh_namespace(|| {
            let refused = || PlaneError::Malformed("on demand".to_owned());
            let result = Firewall::install_by(&config, |_, _| Err(refused()));
            assert_eq!(result.err(), Some(refused()));
            let mut netlink = Netlink::open(Protocol::Netfilter).unwrap();
            assert_eq!(identify(&mut netlink, "runnel").unwrap(), None);
            let result = Firewall::install_by(&config, |_, _| Ok(None));
            assert!(matches!(result, Err(PlaneError::Malformed(_))));
            assert_eq!(identify(&mut netlink, "runnel").unwrap(), None);
        })
        .unwrap();
    }
}
