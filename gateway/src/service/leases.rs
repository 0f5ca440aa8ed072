//! Tokens, leases and certificates as the operator sees them.

use pki::{Actor, Serial, TokenCreate};

use super::{Instance, PATIENCE, failed, now, pki_error, views};
use crate::admin::proto::{AdminError, ErrorCode, Page, Paging};
use crate::admin::view;
use crate::sys::failpoint;

impl Instance {
    pub(super) fn token_create(
        &self,
        actor: &Actor,
        create: &TokenCreate,
    ) -> Result<view::NewToken, AdminError> {
        let role = &create.role;
        if self.config.get().role(role).is_none() {
            let known: Vec<_> = self.config.get().roles.iter().map(|r| r.name.clone()).collect();
            return Err(AdminError::new(
                ErrorCode::BadRequest,
                format!("there is no role \"{role}\"; use one of {}", known.join(", ")),
            ));
        }
        let (token, secret) =
            self.authority.token_create(create, actor, now()).map_err(pki_error)?;
        failpoint::hit("token.before_answer");
        Ok(view::NewToken {
            id: token.id,
            token: secret.expose().to_owned(),
            role: token.role,
            expires: token.expires.to_string(),
            uses: token.uses,
            from: token.bound_net.map(|net| net.to_string()),
            key: token.bound_spki,
        })
    }

    pub(super) fn decide(
        &self,
        actor: &Actor,
        id: &str,
        approved: bool,
        reason: Option<&str>,
    ) -> Result<view::Pending, AdminError> {
        let decided = self.authority.decide_pending(id, approved, reason, actor, now());
        let decided = decided.map_err(pki_error)?;
        tracing::info!(%actor, lease = %id, approved, "decided about a lease that waited");
        Ok(views::pending(&decided))
    }

    /// Tokens and their state.
    pub(super) fn tokens(&self, paging: &Paging) -> Result<Page<view::Token>, AdminError> {
        let now = now();
        let page = self.authority.token_page(paging.after.as_deref(), paging.size());
        Ok(shown(page.map_err(pki_error)?, |token| views::token(token, now)))
    }

    /// What revocation keeps out.
    pub(super) fn bars(&self, paging: &Paging) -> Result<Page<view::Bar>, AdminError> {
        let page = self.authority.bar_page(paging.after.as_deref(), paging.size());
        Ok(shown(page.map_err(pki_error)?, views::bar))
    }

    /// Leases; with `all` ended ones too.
    pub(super) fn leases(
        &self,
        all: bool,
        paging: &Paging,
    ) -> Result<Page<view::Lease>, AdminError> {
        let page = self.authority.lease_page(all, paging.after.as_deref(), paging.size());
        let sas = views::by_lease(&self.engine.sas(PATIENCE).map_err(failed)?);
        Ok(shown(page.map_err(pki_error)?, |lease| views::lease(lease, &sas)))
    }

    pub(super) fn lease(&self, id: &str) -> Result<view::Lease, AdminError> {
        let mut found = self.authority.lease(id).map_err(pki_error)?;
        if found.is_none()
            && let Ok(serial) = id.parse::<Serial>()
        {
            found = self.authority.lease_by_serial(None, &serial).map_err(pki_error)?;
        }
        let lease = found.ok_or_else(|| {
            AdminError::new(
                ErrorCode::NotFound,
                format!("there is no lease {id}; see `runnel lease list --all`"),
            )
        })?;
        let sas = views::by_lease(&self.engine.sas(PATIENCE).map_err(failed)?);
        Ok(views::lease(&lease, &sas))
    }

    /// Certificates; with `all` also those that are not valid.
    pub(super) fn certificates(
        &self,
        all: bool,
        paging: &Paging,
    ) -> Result<Page<view::Cert>, AdminError> {
        let now = now();
        let keep =
            |record: &pki::CertRecord| all || views::certificate(record, now).state == "valid";
        let page = self.authority.certificate_page(keep, paging.after.as_deref(), paging.size());
        Ok(shown(page.map_err(pki_error)?, |record| views::certificate(record, now)))
    }

    pub(super) fn certificate(&self, text: &str) -> Result<view::Cert, AdminError> {
        let serial: Serial = text.parse().map_err(pki_error)?;
        let record = self.authority.certificate(&serial).map_err(pki_error)?.ok_or_else(|| {
            AdminError::new(
                ErrorCode::NotFound,
                format!("there is no certificate {text}; see `runnel cert list --all`"),
            )
        })?;
        let mut certificate = views::certificate(&record, now());
        certificate.pem = Some(views::pem("CERTIFICATE", &record.der));
        Ok(certificate)
    }
}

/// A page as the operator sees it.
fn shown<T, V>(page: pki::Page<T>, view: impl Fn(&T) -> V) -> Page<V> {
    Page { items: page.items.iter().map(view).collect(), next: page.next }
}
