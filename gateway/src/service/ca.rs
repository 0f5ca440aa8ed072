//! The CA's life for operators: requests and imports, rotation, retirement, and what to warn of.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pki::{Actor, CaChange, CaStatus, Imported};
use serde_json::Value;

use super::{Instance, end_error, now, pki_error, value, views};
use crate::admin::proto::{AdminError, ErrorCode, Request};
use crate::admin::view;

const DAY: Duration = Duration::from_secs(86_400);
/// A CA's certificate that ends this soon is worth a warning, and its successor takes time: runners
/// must learn to know a root.
const CA_ENDS_SOON: Duration = Duration::from_secs(60 * 86_400);
/// The list of a root that is kept elsewhere: somebody must go there.
const LIST_ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);

impl Instance {
    /// Answers the requests about the CA.
    pub(super) fn ca(&self, actor: &Actor, request: Request) -> Result<Value, AdminError> {
        let authority = &self.authority;
        let configured = self.config.get().pki.ca_key;
        match request {
            Request::CaRoot => value(view::Pem { pem: authority.root_pem() }),
            Request::CaCrl { place } => {
                let crl = match &place {
                    None => authority.crl(now()).map(Some),
                    Some(place) => authority.crl_at(place, now()),
                };
                let crl = crl.map_err(pki_error)?.ok_or_else(|| {
                    AdminError::new(
                        ErrorCode::NotFound,
                        "there is no CA of this name: `runnel ca status` has them",
                    )
                })?;
                value(view::Pem { pem: views::pem("X509 CRL", &crl.der) })
            }
            Request::CaCsr { key, common_name, anew } => {
                let (kind, name) = (key.unwrap_or(configured), common_name.as_deref());
                let pem = authority.ca_request(kind, name, anew, actor, now());
                value(view::Pem { pem: pem.map_err(pki_error)? })
            }
            Request::CaImport { certificates } => {
                let imported = pki::certificates_of(certificates.as_bytes())
                    .and_then(|certificates| authority.ca_import(&certificates, actor, now()));
                self.changed(imported.map_err(pki_error)?)
            }
            Request::CaImportCrl { crl } => {
                let bad = |_| AdminError::new(ErrorCode::BadRequest, "the list is not base64");
                let crl = STANDARD.decode(crl).map_err(bad)?;
                let (mut imported, outcome) =
                    authority.ca_import_list(&crl, actor, now()).map_err(pki_error)?;
                if !(outcome.changes.is_empty() && outcome.renewed.is_empty())
                    || outcome.failed.is_some()
                {
                    let ended = self.ender.end_revoked(outcome).map_err(end_error)?;
                    imported.notes.push(format!("{} IKE SA(s) closed", ended.sas_closed));
                }
                value(ca_change(&imported))
            }
            Request::CaRotate { key, root } => {
                let kind = key.unwrap_or(configured);
                let change = authority.ca_rotate(kind, root, actor, now()).map_err(pki_error)?;
                self.changed(Imported { change, notes: Vec::new() })
            }
            Request::CaRevoke { place, reason } => {
                value(self.ender.revoke_ca(&place, &reason, actor).map_err(end_error)?)
            }
            Request::CaRetire => {
                let change = authority.ca_retire(actor, now()).map_err(pki_error)?;
                self.changed(Imported { change, notes: Vec::new() })
            }
            _ => {
                let crl = authority.crl(now()).map_err(pki_error)?;
                value(views::ca(&authority.ca_status(), &crl))
            }
        }
    }

    /// The gateway shows a certificate of the CA that issues now, from the next handshake on.
    fn changed(&self, mut imported: Imported) -> Result<Value, AdminError> {
        // The change is done whatever comes of this, and must not be asked for again.
        if let Err(error) = self.renew_identity() {
            imported.notes.push(format!(
                "the gateway still shows its old certificate ({}); it is tried again each minute",
                error.message
            ));
        }
        tracing::info!(issuing = %imported.change.issuing, "the CA was changed");
        value(ca_change(&imported))
    }

    /// Looks whether keys in tokens can be used; `status` says what is wrong. May block.
    ///
    /// # Errors
    /// One sentence.
    pub fn probe_ca_keys(&self) -> Result<(), String> {
        self.authority.probe_ca_keys().map_err(|error| error.to_string())
    }

    /// What of the CA needs somebody.
    pub(super) fn ca_warnings(&self, status: &CaStatus) -> Vec<String> {
        let now = now();
        let mut warnings = Vec::new();
        for ca in &status.certificates {
            if ca.retires.is_none() && ca.not_after.since(now) < CA_ENDS_SOON {
                let root = if ca.kind == "root" { " --root" } else { "" };
                let how = match status.offline {
                    true => "make a request with `runnel ca csr`".to_owned(),
                    false => format!("make the next one with `runnel ca rotate{root}`"),
                };
                warnings.push(format!("{} ends at {}: {how}", ca.subject, ca.not_after));
            }
            if let Some(trouble) = &ca.trouble {
                warnings.push(format!("nothing new is signed: {trouble}"));
            }
            if ca.revoked {
                warnings.push(match &ca.retires {
                    None => format!("{}: {}", ca.subject, pki::Error::IssuingRevoked),
                    Some(retires) => format!(
                        "{} issues no more and is revoked, says its root's list: nobody gets in \
                         with what it issued; it is forgotten after {retires}",
                        ca.subject
                    ),
                });
            }
            if ca.offline {
                warnings.extend(self.list_warning(&ca.subject, &ca.place));
            }
        }
        warnings
    }

    fn list_warning(&self, subject: &str, place: &str) -> Option<String> {
        let now = now();
        match self.authority.crl_at(place, now) {
            Ok(Some(list)) if list.next_update.since(now) >= LIST_ENDS_SOON => None,
            Ok(Some(list)) => Some(format!(
                "the revocation list of {subject} is good until {} ({} day(s)): import the next \
                 one with `runnel ca import --crl FILE`",
                list.next_update,
                list.next_update.since(now).as_secs() / DAY.as_secs()
            )),
            Ok(None) => None,
            Err(error) => Some(format!("{subject}: {error}")),
        }
    }
}

/// For the operator.
pub(crate) fn ca_change(imported: &Imported) -> view::CaChange {
    let CaChange { root_sha256, issuing, next_root_sha256 } = imported.change.clone();
    view::CaChange { root_sha256, issuing, next_root_sha256, notes: imported.notes.clone() }
}
