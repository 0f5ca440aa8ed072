//! What an operator should know first when something does not work.

use super::{Instance, PATIENCE, now, views};
use crate::admin::view;
use crate::policy;

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
}
