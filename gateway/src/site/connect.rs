//! Carries out what is due for sites: resolves names, finds our own address, tells the engine.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ike::config::{EngineConfig, FirstChild, LocalAuth, PeerConfig, RemoteAuth};
use ike::event::CloseReason;
use ike::io::Command;
use ike::wire::RedirectGateway;

use super::Step;
use crate::config::{Config, Site};
use crate::driver::{IKE_PORT, Message};
use crate::policy;
use crate::service::{Instance, identification};

/// How soon something due is noticed.
const TICK: Duration = Duration::from_millis(200);

/// Works until `stop` becomes true.
pub fn run(instance: &Arc<Instance>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tick(instance);
        std::thread::sleep(TICK);
    }
}

fn tick(instance: &Arc<Instance>) {
    let config = instance.config.get();
    let configured: Vec<_> =
        config.sites.iter().map(|site| (site.name.clone(), site.connect)).collect();
    for step in instance.sites.due(&configured, Instant::now()) {
        match step {
            Step::Connect(name) => connect_aside(instance, &config, name),
            Step::Close(ike) => {
                let why = "no child SA with the site".to_owned();
                let command = Command::CloseIkeSa(ike, CloseReason::Failed(why));
                instance.engine.post(Message::Command(command));
            }
        }
    }
}

/// Connects on a thread of its own: a name server that does not answer must not hold up the other
/// sites. A site has one attempt at a time, so there are not more threads than sites.
fn connect_aside(instance: &Arc<Instance>, config: &Arc<Config>, name: String) {
    let (its, config) = (Arc::clone(instance), Arc::clone(config));
    let site = name.clone();
    let attempt = move || {
        let Some(found) = config.site(&site) else { return };
        if let Err(why) = connect(&its, &config, found) {
            tracing::warn!(%site, %why, "site not connected; it is tried again");
            its.sites.failed(&site, why, Instant::now());
        }
    };
    let started = std::thread::Builder::new().name("site".to_owned()).spawn(attempt);
    if let Err(error) = started {
        instance.sites.failed(&name, crate::sys::reason(&error), Instant::now());
    }
}

fn connect(instance: &Instance, config: &Config, site: &Site) -> Result<(), String> {
    let (target, from) = instance.sites.target(&site.name);
    let host = target.as_deref().or(site.remote.as_deref()).ok_or("it has no remote")?;
    let remote = resolve(host, &config.gateway.listen)?;
    instance.sites.aimed(&site.name, remote.ip());
    let local = local_address(remote, &config.gateway.listen)?;
    let engine = instance.engine_config(config).map_err(|error| error.message)?;
    let mut peer = peer(site, &instance.facts.id, (local, remote), &engine)?;
    peer.redirected_from = from.map(RedirectGateway::Address);
    tracing::info!(site = %site.name, %remote, "connecting");
    instance.engine.post(Message::Command(Command::Initiate(Box::new(peer))));
    Ok(())
}

fn peer(
    site: &Site,
    own_id: &str,
    (local, remote): (SocketAddr, SocketAddr),
    engine: &EngineConfig,
) -> Result<PeerConfig, String> {
    let first = engine.ike_suites.first().ok_or("no IKE proposal is left")?;
    let (local_auth, remote_auth) = if site.psk.is_some() {
        (LocalAuth::SharedKey, RemoteAuth::SharedKey)
    } else {
        let credential = engine.credentials.first().ok_or("the gateway has no certificate")?;
        (LocalAuth::Certificate(credential.id), RemoteAuth::Certificate)
    };
    Ok(PeerConfig {
        name: site.name.clone(),
        local,
        remote,
        identity: identification(own_id),
        expected: Some(identification(&site.id)),
        local_auth,
        remote_auth,
        ppk: None,
        first_ke: first.kex,
        ike_suites: engine.ike_suites.clone(),
        esp_suites: engine.esp_suites.clone(),
        request_ipv4: false,
        request_ipv6: false,
        ts_local: policy::selectors(&site.local),
        ts_remote: policy::selectors(&site.networks),
        first_child: if site.childless { FirstChild::Separately } else { FirstChild::WithIkeAuth },
        transport: site.transport,
        mobike: false,
        initial_contact: true,
        follow_redirects: site.follow_redirects,
        redirected_from: None,
    })
}

/// The first address of a family we listen on.
fn resolve(host: &str, listen: &[IpAddr]) -> Result<SocketAddr, String> {
    let found = (host, IKE_PORT).to_socket_addrs().map_err(|error| {
        format!("{host} does not resolve: {}; check `remote` and DNS", crate::sys::reason(&error))
    })?;
    let ours = |address: &SocketAddr| listen.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    found.into_iter().find(ours).ok_or_else(|| {
        format!("{host} has no address of a family this gateway listens on; see `listen`")
    })
}

/// Our own address on the way to the peer: the one we listen on, or the one the routing table
/// would use.
fn local_address(remote: SocketAddr, listen: &[IpAddr]) -> Result<SocketAddr, String> {
    let family = |address: &&IpAddr| address.is_ipv4() == remote.is_ipv4();
    let routed = || -> std::io::Result<IpAddr> {
        let any: IpAddr = if remote.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        // Connecting a datagram socket sends nothing; it asks the routing table.
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(remote)?;
        Ok(socket.local_addr()?.ip())
    };
    let routed = routed().map_err(|error| {
        format!("no route leads to {}: {}", remote.ip(), crate::sys::reason(&error))
    })?;
    let listened: Vec<&IpAddr> = listen.iter().filter(family).collect();
    let anywhere = listened.iter().any(|own| own.is_unspecified() || **own == routed);
    match listened.first() {
        Some(own) if !anywhere => Ok(SocketAddr::new(**own, IKE_PORT)),
        _ => Ok(SocketAddr::new(routed, IKE_PORT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_address_is_the_routed_one_unless_we_listen_on_another() {
        let remote: SocketAddr = "127.0.0.1:500".parse().unwrap();
        let any: Vec<IpAddr> = vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()];
        let one: Vec<IpAddr> = vec!["127.0.0.9".parse().unwrap()];

        assert_eq!(local_address(remote, &any).unwrap().to_string(), "127.0.0.1:500");
        assert_eq!(local_address(remote, &one).unwrap().to_string(), "127.0.0.9:500");
    }

    #[test]
    fn a_remote_of_a_family_we_do_not_listen_on_is_refused_with_the_reason() {
        let v4: Vec<IpAddr> = vec!["0.0.0.0".parse().unwrap()];
        assert!(resolve("::1", &v4).unwrap_err().contains("listen"));
        assert_eq!(resolve("192.0.2.7", &v4).unwrap().to_string(), "192.0.2.7:500");
    }
}
