//! The admin API's operations on sites.

use std::collections::BTreeSet;
use std::time::Instant;

use ike::IkeSaView;
use ike::event::CloseReason;
use pki::{Actor, AuditEvent};

use super::{Instance, PATIENCE, end_error, failed, now, pki_error, views};
use crate::admin::proto::{AdminError, ErrorCode};
use crate::admin::view;
use crate::config::{Config, Site};
use crate::policy;
use crate::site::SiteState;
use crate::sys;

impl Instance {
    pub(super) fn site_list(&self) -> Result<Vec<view::Site>, AdminError> {
        let config = self.config.get();
        let sas = self.engine.sas(PATIENCE).map_err(failed)?;
        Ok(config.sites.iter().map(|site| self.site(site, &sas)).collect())
    }

    fn site(&self, site: &Site, sas: &[IkeSaView]) -> view::Site {
        let its: Vec<&IkeSaView> = of_site(sas, &site.name).collect();
        let report = self.sites.report(&site.name);
        let state = match (&report, its.is_empty()) {
            (_, false) => "connected",
            (Some(report), true) => match report.state {
                SiteState::Due(_) if report.attempts > 0 => "retrying",
                SiteState::Waiting => "waiting",
                _ => "connecting",
            },
            (None, true) => "waiting",
        };
        let text = |networks: &[ipnet::IpNet]| networks.iter().map(ToString::to_string).collect();
        view::Site {
            name: site.name.clone(),
            state: state.to_owned(),
            remote: site.remote.clone(),
            id: site.id.clone(),
            local_networks: text(&site.local),
            remote_networks: text(&site.networks),
            lease: its.first().and_then(|sa| sa.lease.as_ref()).map(|lease| lease.0.clone()),
            sas: its.iter().map(|sa| sa.id.0).collect(),
            since: its.iter().filter_map(|sa| sa.established_at).min().map(views::since),
            attempts: report.as_ref().map_or(0, |report| report.attempts),
            last_error: report.and_then(|report| report.last_error),
        }
    }

    pub(super) fn site_counts(&self, config: &Config, sas: &[IkeSaView]) -> view::SiteCounts {
        let connected = |site: &&Site| of_site(sas, &site.name).next().is_some();
        view::SiteCounts {
            configured: config.sites.len(),
            connected: config.sites.iter().filter(connected).count(),
        }
    }

    pub(super) fn site_connect(&self, actor: &Actor, name: &str) -> Result<String, AdminError> {
        let config = self.config.get();
        let Some(site) = config.site(name) else {
            return Err(AdminError::new(
                ErrorCode::NotFound,
                format!("there is no site {name}; see `runnel site list`"),
            ));
        };
        self.authority.allow_site(name, actor, now()).map_err(pki_error)?;
        if !site.connect {
            return Ok(format!("site {name} may connect; this side waits for it"));
        }
        let event = AuditEvent::new("site.connect", actor, now()).object(name);
        self.authority.record_audit(&event).map_err(pki_error)?;
        self.sites.connect_now(name, Instant::now());
        Ok(format!("site {name} is being connected; see `runnel site list`"))
    }

    /// Puts a configuration into force with its sites: tunnels of those that went or changed are
    /// ended, and those that are still there come back under the new terms.
    pub(super) fn replace_sites(&self, before: &Config, after: Config) -> Result<(), AdminError> {
        self.sites.hold();
        let done = self.replace_held(before, after);
        self.sites.go_on();
        done
    }

    fn replace_held(&self, before: &Config, after: Config) -> Result<(), AdminError> {
        let stays =
            |site: &&Site| after.site(&site.name).is_some_and(|new| site.has_same_tunnel(new));
        let doomed: Vec<&Site> = before.sites.iter().filter(|site| !stays(site)).collect();
        let gone = |site: &Site| after.site(&site.name).is_none();
        let doomed: Vec<(&Site, bool)> = doomed.iter().map(|site| (*site, gone(site))).collect();
        let routes = policy::site_routes(&after, &sys::net::local_addresses());
        let filters = policy::site_filters(&after);
        // In this order: what is authorised from here on is judged by the new terms, and what was
        // authorised before is among the tunnels.
        self.config.replace(after);
        self.peers.configuration_changed();
        let sas = self.engine.sas(PATIENCE).map_err(failed)?;
        let cut: Vec<_> =
            doomed.into_iter().map(|(site, is_gone)| self.cut_site(&sas, site, is_gone)).collect();
        self.plane.replace_sites(filters, routes).wait(PATIENCE).map_err(failed)?;
        cut.into_iter().collect()
    }

    /// Ends the tunnels of a site that went or changed.
    fn cut_site(&self, sas: &[IkeSaView], site: &Site, is_gone: bool) -> Result<(), AdminError> {
        let leases: BTreeSet<String> =
            of_site(sas, &site.name).filter_map(|sa| Some(sa.lease.as_ref()?.0.clone())).collect();
        for id in leases {
            let Some(lease) = self.authority.lease(&id).map_err(pki_error)? else { continue };
            self.ender.cut_tunnels(&lease, CloseReason::Operator).map_err(end_error)?;
            if is_gone && lease.site().is_some() {
                self.authority.release(&id, "admin", &Actor::System, now()).map_err(pki_error)?;
            }
        }
        let event = AuditEvent::new("site.change", &Actor::System, now());
        self.authority.record_audit(&event.object(&site.name)).map_err(pki_error)
    }
}

/// Established IKE SAs of a site.
fn of_site<'a>(sas: &'a [IkeSaView], site: &str) -> impl Iterator<Item = &'a IkeSaView> {
    let role = policy::site_role(site);
    sas.iter().filter(move |sa| {
        sa.state == ike::SaState::Established && sa.lease_role.as_deref() == Some(role.as_str())
    })
}
