//! What an operator should know first when something does not work.

use super::{Instance, now, views};
use crate::admin::view;
use crate::policy;

impl Instance {
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
