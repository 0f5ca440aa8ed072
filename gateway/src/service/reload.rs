//! `reload`: the configuration file again, applied to what runs.

use std::sync::PoisonError;
use std::time::Duration;

use ike::event::CloseReason;
use ike::io::Command;
use pki::{Actor, AuditEvent};

use super::{Instance, PATIENCE, failed, now, pki_error, setup};
use crate::actions::{Externals, PeerKeys};
use crate::admin::proto::{AdminError, ErrorCode};
use crate::config::{Config, Gateway, Hooks, Pki};
use crate::driver::Message;
use crate::policy;

impl Instance {
    pub(super) fn reload(&self, actor: &Actor) -> Result<String, AdminError> {
        // One at a time: of two, the later file must win.
        let _turn = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.config.get();
        let config = Config::load(self.facts.config_path.as_deref()).map_err(failed)?;
        if let Some(what) = needs_restart(&before, &config) {
            return Err(AdminError::new(
                ErrorCode::Failed,
                format!("{what} changed, which a reload cannot apply: restart the gateway"),
            ));
        }
        if !self.facts.capabilities.transport_mode
            && let Some(why) = policy::against_sites(&config)
        {
            return Err(failed(why));
        }
        let keys = PeerKeys::load(&config).map_err(|errors| failed(errors.join("\n")))?;
        crate::oidc::check(&config).map_err(|errors| failed(errors.join("\n")))?;
        let externals = Externals::load(&config).map_err(|errors| failed(errors.join("\n")))?;
        let hooks = crate::hooks::sources(&config).map_err(|errors| failed(errors.join("\n")))?;
        let settings = setup::pki_settings(&config, &self.facts.id);
        self.authority.reconfigure(settings).map_err(pki_error)?;
        crate::oidc::reread(&self.authority, &config);
        self.hooks.replace(hooks);
        self.plane.replace_roles(policy::role_filters(&config)).wait(PATIENCE).map_err(failed)?;
        // In force from here on.
        let adopted = self.authority.adopt_policy(&policy::text(&config), actor, now());
        adopted.map_err(pki_error)?;
        self.peers.replace_externals(externals);
        let engine = self.engine_config(&config)?;
        self.engine.post(Message::Command(Command::Reconfigure(Box::new(engine))));
        let roles = config.roles.len();
        self.peers.replace_keys(keys);
        let redirect = config.gateway.redirect_to.clone();
        let changed = redirect != before.gateway.redirect_to;
        // What has lost its allowance is cut off even when the sites could not all be changed.
        let sites = self.replace_sites(&before, config);
        if sites.is_ok() && changed {
            self.redirect(redirect.as_deref(), false);
        }
        self.regrant()?;
        sites?;
        let event = AuditEvent::new("config.reload", actor, now());
        self.authority.record_audit(&event).map_err(pki_error)?;
        tracing::info!(%actor, roles, "configuration reloaded");
        Ok(format!("reloaded: {roles} role(s); live tunnels obey the new allow lists"))
    }

    /// Tells the engine what live leases may reach now; it narrows selectors by that from the next
    /// exchange on. The packet filter obeys already.
    pub(super) fn regrant(&self) -> Result<(), AdminError> {
        for sa in self.engine.sas(PATIENCE).map_err(failed)? {
            let (Some(id), Some(deadline)) = (sa.lease, sa.deadline) else { continue };
            let lease = self.authority.lease(&id.0).map_err(pki_error)?;
            let role = sa.lease_role.unwrap_or_default();
            let lease = lease.filter(|lease| lease.state.is_live());
            let grant = lease.and_then(|lease| self.peers.regrant(&lease, &role, deadline));
            let command = match grant {
                Some(grant) => Command::UpdateLease(id, grant),
                // Its role is gone from the configuration, and with it every allowance.
                None => Command::CloseLease(id, CloseReason::Operator),
            };
            self.engine.post(Message::Command(command));
        }
        Ok(())
    }
}

/// What a reload cannot apply.
fn needs_restart(before: &Config, after: &Config) -> Option<&'static str> {
    let fixed = |gateway: &Gateway| Gateway { redirect_to: None, ..gateway.clone() };
    if fixed(&before.gateway) != fixed(&after.gateway) {
        return Some("[gateway]");
    }
    let fixed = |pki: &Pki| Pki { keep_ended: Duration::ZERO, ..pki.clone() };
    if before.audit != after.audit {
        return Some("[audit]");
    }
    if fixed(&before.pki) != fixed(&after.pki) || before.enrol != after.enrol {
        return Some("[pki] or [enrol]");
    }
    let listening =
        |config: &Config| config.hooks.clone().map(|hooks| Hooks { from: Vec::new(), ..hooks });
    if listening(before) != listening(after) {
        return Some("[hooks]");
    }
    let networks = |config: &Config| {
        config
            .pools
            .iter()
            .map(|pool| (pool.name.clone(), pool.addresses.clone(), pool.masquerade))
            .collect::<Vec<_>>()
    };
    (networks(before) != networks(after)).then_some("a [[pool]]'s networks")
}
