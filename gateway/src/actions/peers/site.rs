//! Peers that are sites: other gateways, with a certificate or a shared key.

use std::time::Duration;

use ike::event::Refusal;
use ike::io::{Authorise, Grant, VerifyPeer};
use ike::time::WallTime;

use super::context::Context;
use super::{Peers, now};
use crate::config::Site;
use crate::policy;

/// What was proved with a shared key is to be proved again in this time.
const SHARED_KEY_LIFE: Duration = Duration::from_secs(86_400);

impl Peers {
    /// Which site a peer claims to be: the one we connect to, or the one with that identity.
    pub(super) fn site_of(
        &self,
        request: &VerifyPeer,
        context: &Context,
    ) -> Result<Option<Site>, Refusal> {
        let config = self.config.get();
        let Some(name) = &request.connection else {
            return Ok(config.site_of(&request.identity).cloned());
        };
        let site = config.site(name).cloned().ok_or_else(|| {
            context.refuse(
                "unknown_site",
                format!("site {name} is not configured any more"),
                "nothing, if it was removed; else add it to the configuration".to_owned(),
            )
        })?;
        Ok(Some(site))
    }

    /// A site's lease. One that our own CA certified has the lease of its certificate; one that
    /// another certified gets a lease for this.
    pub(super) fn grant_site(
        &self,
        site: &str,
        peer: &pki::VerifiedPeer,
        context: &Context,
    ) -> Result<Box<Grant>, Refusal> {
        let config = self.config.get();
        let foreign = config.site(site).is_some_and(|site| !site.anchors.is_empty());
        let (lease, deadline) = if foreign {
            let proved = pki::SitePeer {
                site,
                subject: &peer.subject,
                spki_sha256: &peer.spki_sha256,
                until: peer.not_after,
            };
            let lease = self.authority.site_lease(&proved, now());
            (lease.map_err(|error| context.access(&error))?, peer.not_after)
        } else {
            let access = self.authority.authorise(peer, now());
            let access = access.map_err(|error| context.access(&error))?;
            (access.lease, access.deadline)
        };
        let deadline = WallTime(deadline.micros());
        let grant = self.regrant(&lease, &policy::site_role(site), deadline).ok_or_else(|| {
            context.refuse(
                "unknown_site",
                format!("site {site} is not configured any more"),
                "nothing, if it was removed; else add it to the configuration".to_owned(),
            )
        })?;
        Ok(Box::new(grant))
    }

    /// The lease of a site that has proved that it knows the shared key. The key has no end, so the
    /// lease has one, which every new authentication moves.
    pub(super) fn grant_shared(
        &self,
        request: &Authorise,
        context: &Context,
    ) -> Result<Box<Grant>, Refusal> {
        let config = self.config.get();
        let unknown = || {
            context.refuse(
                "unknown_site",
                format!("no site shares a key with {} any more", request.identity),
                "nothing, if it was removed; else add it to the configuration".to_owned(),
            )
        };
        let site = config.site_of(&request.identity).filter(|site| site.psk.is_some());
        let site = site.ok_or_else(unknown)?;
        let until = now().plus(SHARED_KEY_LIFE);
        let proved = pki::SitePeer { site: &site.name, subject: &site.id, spki_sha256: "", until };
        let lease = self.authority.site_lease(&proved, now());
        let lease = lease.map_err(|error| context.access(&error))?;
        let deadline = WallTime(until.micros());
        self.regrant(&lease, &policy::site_role(&site.name), deadline)
            .map(Box::new)
            .ok_or_else(unknown)
    }
}
