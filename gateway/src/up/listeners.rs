//! The HTTP listeners: enrolment, status, and the page inside the tunnel.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use super::UpError;
use crate::hooks::PublicCertificate;
use crate::http::{
    self, Api, ApiService, EnrolService, EstService, HookService, Limited, Limits, PageService,
    StatusService,
};
use crate::oidc::KeyFetcher;
use crate::service::Instance;

/// The page's port: what a browser and `curl` use by default.
const PAGE_PORT: u16 = 80;

/// Binds the page on the gateway's tunnel addresses.
pub(super) fn bind_page(addresses: &[IpAddr]) -> Result<Vec<TcpListener>, UpError> {
    let bind = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // A fresh IPv6 address is tentative for a moment and could not be bound otherwise.
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        } else {
            socket.set_freebind_v4(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(128)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    addresses
        .iter()
        .map(|address| {
            let address = SocketAddr::new(*address, PAGE_PORT);
            bind(address).map_err(|error| {
                UpError::Other(format!(
                    "cannot listen on the tunnel address {address}: {}; stop what listens on \
                     TCP port 80 of every address, or bind that to its own address",
                    crate::sys::reason(&error)
                ))
            })
        })
        .collect()
}

/// A listener's address.
pub(super) fn address(listener: &TcpListener) -> Result<SocketAddr, UpError> {
    listener.local_addr().map_err(|error| UpError::Other(format!("a listener is gone: {error}")))
}

/// Looks for a certificate's successor, and has the operator see how it is.
fn watch_certificate(
    instance: &Instance,
    certificate: PublicCertificate,
    stopped: &watch::Receiver<bool>,
) {
    let mut known = instance.certificates.lock().unwrap_or_else(PoisonError::into_inner);
    known.push(certificate.health());
    tokio::spawn(certificate.watch(stopped.clone()));
}

/// Starts taking webhooks.
pub(super) fn serve_hooks(
    instance: &Arc<Instance>,
    listener: TcpListener,
    certificate: Option<PublicCertificate>,
    stopped: &watch::Receiver<bool>,
) -> Result<(), UpError> {
    let other = |error: &dyn std::fmt::Display| UpError::Other(error.to_string());
    let Some(rate) = instance.config.get().hooks.as_ref().map(|hooks| hooks.rate) else {
        return Ok(());
    };
    let tls = match certificate {
        Some(certificate) => {
            let tls = http::public_acceptor(certificate.slot()).map_err(|e| other(&e))?;
            watch_certificate(instance, certificate, stopped);
            Some(tls)
        }
        None => None,
    };
    let refusals = || Arc::clone(&instance.refusals);
    let service = HookService::new(
        Arc::clone(&instance.authority),
        refusals(),
        Box::new(instance.ender.clone()),
        Arc::clone(&instance.hooks),
    );
    let service = Limited::new(Arc::new(service), rate, refusals(), "[hooks]");
    let (body, connections) = (http::MAX_RECEIVED, http::MAX_HOOK_CONNECTIONS);
    // One source must not keep the others out.
    let limits = Limits { body, connections, per_source: connections / 2, ..Limits::default() };
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| other(&error))?;
    tokio::spawn(http::serve(listener, tls, Arc::new(service), limits, stopped.clone()));
    Ok(())
}

/// Starts serving on all of them.
pub(super) fn serve(
    instance: &Arc<Instance>,
    (enrol, certificate): (TcpListener, Option<PublicCertificate>),
    status: TcpListener,
    page: Vec<TcpListener>,
    stopped: &watch::Receiver<bool>,
) -> Result<(), UpError> {
    let other = |error: &dyn std::fmt::Display| UpError::Other(error.to_string());
    let tokio_listener = |listener: TcpListener| {
        tokio::net::TcpListener::from_std(listener).map_err(|error| other(&error))
    };
    let authority = || Arc::clone(&instance.authority);
    let limits = Limits::default();

    let public = certificate.as_ref().map(PublicCertificate::slot);
    let own = instance.identity.tls();
    let tls = http::acceptor(authority(), own, public).map_err(|e| other(&e))?;
    if let Some(certificate) = certificate {
        watch_certificate(instance, certificate, stopped);
    }
    let keys = Arc::new(KeyFetcher::new(authority()));
    let refusals = || Arc::clone(&instance.refusals);
    let api = Api {
        authority: authority(),
        refusals: refusals(),
        keys: Arc::clone(&keys),
        config: instance.config.clone(),
        ender: Box::new(instance.ender.clone()),
        gateway: instance.facts.id.clone(),
    };
    let est = EstService::new(authority(), refusals(), keys);
    let service = Arc::new(EnrolService { est, api: ApiService(Arc::new(api)) });
    let rate = instance.config.get().enrol.rate;
    let service = Arc::new(Limited::new(service, rate, refusals(), "[enrol]"));
    tokio::spawn(http::serve(tokio_listener(enrol)?, Some(tls), service, limits, stopped.clone()));

    let service = Arc::new(StatusService::new(authority()));
    let service = Limited::new(service, http::STATUS_RATE, refusals(), "[status]");
    let service = Arc::new(service.counting_all(
        "put a cache between if many clients share this address: answers say how long they keep",
    ));
    tokio::spawn(http::serve(tokio_listener(status)?, None, service, limits, stopped.clone()));

    let service = Arc::new(PageService::new(authority(), instance.facts.id.clone()));
    for listener in page {
        let listener = tokio_listener(listener)?;
        let service = Arc::clone(&service);
        tokio::spawn(http::serve(listener, None, service, limits, stopped.clone()));
    }
    Ok(())
}
