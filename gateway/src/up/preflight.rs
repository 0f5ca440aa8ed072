//! Everything that can be refused before anything is created: privileges, devices, ports.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use pki::hook::HookSource;
use xfrm::model::PlaneKind;
use xfrm::probe::{self, PlaneChoice, ProbeReport};

use super::UpError;
use crate::actions::{Externals, PeerKeys};
use crate::config::{Config, DataplaneChoice, Hooks};
use crate::driver::IkeSockets;
use crate::hooks::PublicCertificate;
use crate::{policy, service, sys};

/// What was found, with every port already held.
pub(super) struct Preflight {
    /// IKE identity.
    pub(super) id: String,
    /// Chosen data plane.
    pub(super) kind: PlaneKind,
    /// Why this one.
    pub(super) why: String,
    /// The keys shared with peers.
    pub(super) keys: PeerKeys,
    /// The external CAs.
    pub(super) externals: Externals,
    /// UDP 500 and 4500.
    pub(super) sockets: IkeSockets,
    /// The enrolment port, and its public certificate.
    pub(super) enrol: (TcpListener, Option<PublicCertificate>),
    /// The status port.
    pub(super) status: TcpListener,
    /// The webhooks' port, and their certificate.
    pub(super) hooks: Option<(TcpListener, Option<PublicCertificate>)>,
    /// The webhooks' secrets.
    pub(super) hook_sources: Vec<HookSource>,
}

impl Preflight {
    /// Looks; creates nothing that outlives the process.
    pub(super) fn look(config: &Config) -> Result<Self, UpError> {
        let id = service::gateway_id(config);
        service::pki_settings(config, &id).validate()?;
        crate::oidc::check(config).map_err(|errors| UpError::Other(errors.join("\n")))?;
        crate::hooks::check(config).map_err(|errors| UpError::Other(errors.join("\n")))?;
        let keys = PeerKeys::load(config).map_err(|errors| UpError::Other(errors.join("\n")))?;
        let externals =
            Externals::load(config).map_err(|errors| UpError::Other(errors.join("\n")))?;
        if !sys::has_net_admin() {
            return Err(UpError::Other(
                "this process may not configure the network (no CAP_NET_ADMIN); run it as root, \
                 or give its service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE"
                    .to_owned(),
            ));
        }
        let report = probe::probe();
        check_nft(&report)?;
        let (kind, why) = probe::choose(choice(config.gateway.dataplane), &report)?;
        if kind != PlaneKind::Kernel
            && let Some(why) = policy::against_sites(config)
        {
            return Err(UpError::Other(why));
        }
        let sockets = IkeSockets::bind(&config.gateway.listen, kind == PlaneKind::Kernel)?;
        let certificate = public("[enrol]", config.enrol.certificate.as_ref())?;
        let enrol = (bind(config.enrol.listen, "[enrol] listen")?, certificate);
        let status = bind(config.pki.status_listen, "[pki] status_listen")?;
        let hooks = config.hooks.as_ref().map(hooks).transpose()?;
        let hook_sources = crate::hooks::sources(config);
        let hook_sources = hook_sources.map_err(|errors| UpError::Other(errors.join("\n")))?;
        Ok(Self { id, kind, why, keys, externals, sockets, enrol, status, hooks, hook_sources })
    }
}

fn hooks(hooks: &Hooks) -> Result<(TcpListener, Option<PublicCertificate>), UpError> {
    let certificate = public("[hooks]", hooks.certificate.as_ref())?;
    Ok((bind(hooks.listen, "[hooks] listen")?, certificate))
}

/// A public certificate, where a section names one.
fn public(
    section: &'static str,
    files: Option<&(PathBuf, PathBuf)>,
) -> Result<Option<PublicCertificate>, UpError> {
    let open = |(chain, key): &(PathBuf, PathBuf)| {
        PublicCertificate::open(section, chain, key)
            .map_err(|error| UpError::Other(format!("{section}: {error}")))
    };
    files.map(open).transpose()
}

fn check_nft(report: &ProbeReport) -> Result<(), UpError> {
    report.nft.as_ref().map_err(|sentence| UpError::Other(sentence.clone())).copied()
}

fn choice(choice: DataplaneChoice) -> PlaneChoice {
    match choice {
        DataplaneChoice::Auto => PlaneChoice::Auto,
        DataplaneChoice::Kernel => PlaneChoice::Kernel,
        DataplaneChoice::Userspace => PlaneChoice::Userspace,
    }
}

fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, UpError> {
    let sentence = |error: &std::io::Error| {
        let port = address.port();
        let fix = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "find who has it with `ss -ltnp 'sport = :{port}'` and stop it, or change {key}"
            ),
            std::io::ErrorKind::PermissionDenied => {
                "run as root, or choose a port above 1023".to_owned()
            }
            std::io::ErrorKind::AddrNotAvailable => {
                format!("use an address that `ip address` shows in {key}, or 0.0.0.0")
            }
            _ => format!("check {key}"),
        };
        let reason = sys::reason(error);
        UpError::Other(format!("cannot listen on TCP {address}: {reason}; {fix}"))
    };
    let listener = TcpListener::bind(address).map_err(|error| sentence(&error))?;
    listener.set_nonblocking(true).map_err(|error| sentence(&error))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occupied_port_is_one_sentence_with_a_fix() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address, "[enrol] listen").unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on TCP {address}: ")), "{error}");
        assert!(error.contains("ss -ltnp") && error.contains("[enrol] listen"), "{error}");
        assert!(!error.contains("os error") && !error.contains('\n'), "{error}");
    }
}
