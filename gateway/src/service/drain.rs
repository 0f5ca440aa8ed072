//! Draining: clients are sent to another gateway (RFC 5685).

use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use ike::io::Command;
use ike::wire::RedirectGateway;
use pki::{Actor, AuditEvent};

use super::{Instance, PATIENCE, failed, now, pki_error};
use crate::admin::proto::{AdminError, ErrorCode};
use crate::config;
use crate::driver::Message;

impl Instance {
    /// Sends new clients to another gateway, and with `existing` those that are connected.
    pub fn redirect(&self, to: Option<&str>, existing: bool) {
        *self.draining() = to.map(str::to_owned);
        let to = to.map(gateway);
        self.engine.post(Message::Command(Command::Redirect { to, existing }));
    }

    /// Where clients are sent.
    pub(super) fn draining_to(&self) -> Option<String> {
        self.draining().clone()
    }

    pub(super) fn drain(&self, actor: &Actor, to: Option<String>) -> Result<String, AdminError> {
        if let Some(to) = &to
            && !config::is_host(to)
        {
            return Err(AdminError::new(
                ErrorCode::BadRequest,
                format!("\"{to}\" is neither a DNS name nor an IP address"),
            ));
        }
        let event = AuditEvent::new("gateway.drain", actor, now());
        let target = to.clone().unwrap_or_else(|| "off".to_owned());
        self.authority.record_audit(&event.object(target)).map_err(pki_error)?;
        self.redirect(to.as_deref(), true);
        // The engine has taken the command when it answers what comes after it.
        let sas = self.engine.sas(PATIENCE).map_err(failed)?;
        Ok(match to {
            Some(to) => {
                format!("{} IKE SA(s) are being sent to {to}; see `runnel status`", sas.len())
            }
            None => "clients stay from now on".to_owned(),
        })
    }

    fn draining(&self) -> MutexGuard<'_, Option<String>> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gateway as REDIRECT names it.
pub fn gateway(host: &str) -> RedirectGateway {
    match host.parse::<IpAddr>() {
        Ok(address) => RedirectGateway::Address(address),
        Err(_) => RedirectGateway::Fqdn(host.as_bytes().to_vec()),
    }
}

/// The gateway REDIRECT names, as text; `None` for what is no host.
pub fn host(gateway: &RedirectGateway) -> Option<String> {
    match gateway {
        RedirectGateway::Address(address) => Some(address.to_string()),
        RedirectGateway::Fqdn(name) => {
            String::from_utf8(name.clone()).ok().filter(|name| config::is_host(name))
        }
    }
}
