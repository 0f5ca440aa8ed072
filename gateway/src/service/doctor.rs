//! What an operator should know first when something does not work.

use ipnet::IpNet;
use xfrm::PlaneError;
use xfrm::kernel::{conflicting_policies, if_id_for, missing_suites};
use xfrm::model::PlaneKind;
use xfrm::route::Problem;
use xfrm::user::mtu::{MIN_INNER_V4, MIN_INNER_V6};

use super::{Instance, PATIENCE, now, views};
use crate::admin::view;
use crate::config::Config;
use crate::policy;

/// So many children are looked at for the narrowest path.
const PATHS: usize = 64;

impl Instance {
    /// The data plane, with its counters where it answers.
    pub(super) fn dataplane(&self) -> view::DataplaneStatus {
        let mut status = self.facts.dataplane.clone();
        if let Ok(stats) = self.plane.stats().wait(PATIENCE) {
            let counted = stats.drops.into_iter().filter(|(_, count)| *count > 0);
            status.drops = counted.map(|(reason, count)| (reason.to_owned(), count)).collect();
            status.counters = stats.counters.into_iter().collect();
        }
        status
    }

    pub(super) fn doctor(&self) -> view::Doctor {
        let config = self.config.get();
        let mut checks = Vec::new();
        let destinations: Vec<_> = policy::destinations(&config);
        match xfrm::route::forwarding_report(&destinations) {
            Ok(problems) if problems.is_empty() => {
                checks.push(views::check("forwarding", true, "enabled where it is needed"));
            }
            Ok(problems) => checks.extend(problems.iter().map(|problem| {
                views::check(
                    "forwarding",
                    false,
                    &format!("{}: {}", problem.subject, problem.sentence),
                )
            })),
            Err(error) => checks.push(views::check("forwarding", false, &error.to_string())),
        }
        let plane = &self.facts.dataplane;
        let found = format!("on {}: {}", plane.interface, plane.why);
        checks.push(views::check("data plane", true, &found));
        self.look_at_machine(&config, &destinations, &mut checks);
        match self.authority.crl(now()) {
            Ok(crl) => checks.push(views::check(
                "CRL",
                crl.next_update > now(),
                &format!("number {}, good until {}", crl.number, crl.next_update),
            )),
            Err(error) => checks.push(views::check("CRL", false, &error.to_string())),
        }
        for (section, health) in self.certificate_health() {
            let (ok, found) = health.map_or_else(|why| (false, why), |found| (true, found));
            checks.push(views::check(&format!("certificate of {section}"), ok, &found));
        }
        match self.status() {
            Ok(status) => checks.push(views::check(
                "tunnels without lease",
                status.sas_without_lease == 0,
                &status.sas_without_lease.to_string(),
            )),
            Err(error) => checks.push(views::check("status", false, &error.message)),
        }
        view::Doctor { checks, refusals: self.refusals.recent() }
    }

    /// What on this machine, other than forwarding, keeps tunnelled packets from passing.
    fn look_at_machine(
        &self,
        config: &Config,
        destinations: &[IpNet],
        checks: &mut Vec<view::Check>,
    ) {
        let interface = &self.facts.dataplane.interface;
        let is_kernel = self.facts.dataplane.kind == PlaneKind::Kernel.name();
        let kind = if is_kernel { PlaneKind::Kernel } else { PlaneKind::Userspace };
        let pools = config.pools.iter().flat_map(|pool| pool.addresses.iter().map(IpNet::trunc));
        let sites = config.sites.iter().filter(|site| !site.transport);
        let inside: Vec<IpNet> =
            pools.chain(sites.flat_map(|site| site.networks.iter().copied())).collect();
        let mut report =
            |name: &str, good: &str, found: Result<Vec<Problem>, PlaneError>| match found {
                Ok(problems) if problems.is_empty() => checks.push(views::check(name, true, good)),
                Ok(problems) => checks.extend(
                    problems.iter().map(|problem| views::check(name, false, &problem.sentence)),
                ),
                Err(error) => checks.push(views::check(name, false, &error.to_string())),
            };
        report(
            "routes and rp_filter",
            "clients and sites lead to the tunnel interface, and nothing filters them there",
            xfrm::route::settings_report(interface, kind, &inside),
        );
        report(
            "IPsec of others",
            "no policy of another program takes tunnelled packets",
            conflicting_policies(if_id_for(interface), &inside, destinations),
        );
        if is_kernel {
            let missing = missing_suites(&self.facts.capabilities);
            let found = match missing.as_slice() {
                [] => "the kernel has every ESP suite".to_owned(),
                missing => format!("the kernel does without {}", missing.join("; ")),
            };
            checks.push(views::check("ESP suites", true, &found));
        }
        checks.extend(self.mtu(inside.iter().any(|net| net.addr().is_ipv6())));
    }

    /// The narrowest path to a peer, and what it leaves for inner packets.
    fn mtu(&self, ipv6: bool) -> Option<view::Check> {
        let sas = self.engine.sas(PATIENCE).ok()?;
        let children = sas.iter().flat_map(|sa| &sa.children).take(PATHS);
        let narrowest = children
            .filter_map(|child| Some((self.inner_mtu(child)?, child.hosts.remote.ip())))
            .min_by_key(|(mtu, _)| *mtu);
        let Some((mtu, peer)) = narrowest else {
            return Some(views::check("MTU", true, "no tunnel to look at"));
        };
        let found = format!("the narrowest tunnel, to {peer}, takes inner packets of {mtu} bytes");
        let least = if ipv6 { u32::from(MIN_INNER_V6) } else { u32::from(MIN_INNER_V4) };
        if mtu >= least {
            return Some(views::check("MTU", true, &found));
        }
        let detail = format!(
            "{found}, of which every link must take {least}: its ESP packets are sent in fragments; \
             raise the MTU on the way there (`ip route get {peer}` shows what this machine knows), \
             or use IPv4 pools alone"
        );
        Some(views::check("MTU", false, &detail))
    }
}

#[cfg(test)]
mod tests {
    use xfrm::model::EspSuite;

    use super::*;

    #[test]
    fn missing_suites_come_with_the_module_to_load() {
        let mut capabilities = xfrm::model::Capabilities {
            plain_esp: true,
            transport_mode: true,
            esn: true,
            max_replay_window: 4096,
            update_hosts: true,
            suites: vec![EspSuite::Aes256Gcm16, EspSuite::Aes128Gcm16],
        };
        let missing = missing_suites(&capabilities);
        assert_eq!(missing.len(), 5, "{missing:?}");
        assert!(missing[0].contains("modprobe -a chacha20poly1305"), "{missing:?}");
        capabilities.suites = EspSuite::ALL.to_vec();
        assert!(missing_suites(&capabilities).is_empty());
    }
}
