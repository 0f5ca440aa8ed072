//! Creates the chosen data plane and puts the firewall around it.

use std::path::PathBuf;
use std::sync::Arc;

use ike::io::Datagram;
use xfrm::kernel::{KernelConfig, KernelPlane, if_id_for};
use xfrm::model::PlaneKind;
use xfrm::user::{TunSource, UserPlane, UserPlaneConfig};
use xfrm::{Dataplane, Enforcer, EventSink, PlaneEvent};

use super::UpError;
use super::preflight::Preflight;
use crate::actions::{PlaneHandle, report};
use crate::config::Config;
use crate::driver::{EngineHandle, NAT_PORT};
use crate::policy;

/// The default interface's name; only another one makes a second instance on one machine.
const DEFAULT_INTERFACE: &str = "runnel0";

/// Starts the plane, firewall, addresses and routes. `keep`: tunnels of an earlier process are to go
/// on.
pub(super) fn bring_up(
    config: &Config,
    preflight: &Preflight,
    engine: &EngineHandle,
    thread: &PlaneHandle,
    sequences: Option<PathBuf>,
    keep: bool,
) -> Result<Enforcer, UpError> {
    let sink = sink(engine.clone(), thread.clone());
    let sockets = preflight.sockets.of_port(NAT_PORT)?;
    let interface = config.gateway.interface.clone();
    let mtu = xfrm::user::mtu::interface_mtu(PATH_MTU, false);
    let plane: Box<dyn Dataplane> = match preflight.kind {
        PlaneKind::Userspace => {
            KernelPlane::purge_leftovers(&interface, if_id_for(&interface))?;
            let config = UserPlaneConfig {
                tun: TunSource::Create { name: interface },
                tun_mtu: Some(mtu),
                sockets,
                workers: 0,
                sequences,
            };
            Box::new(UserPlane::start(config, sink)?)
        }
        PlaneKind::Kernel => {
            let if_id = if_id_for(&interface);
            let kernel = KernelConfig { interface, if_id, ports: sockets };
            // What a former process left is looked after only when its state was kept too.
            let mut plane = match sequences {
                Some(_) => KernelPlane::resume(kernel, &sink)?,
                None => KernelPlane::open(kernel, &sink)?,
            };
            plane.set_offload(config.gateway.offload);
            Box::new(plane)
        }
        PlaneKind::Mock => {
            return Err(UpError::Other("the recording data plane is for tests".to_owned()));
        }
    };
    let setup = xfrm::enforcer::TunnelSetup {
        instance: instance(&config.gateway.interface),
        networks: policy::tunnel_networks(config),
        roles: policy::role_filters(config),
        sites: policy::site_filters(config),
        site_routes: policy::site_routes(config, &crate::sys::net::local_addresses()),
        mtu: u32::from(mtu),
        keep,
    };
    Ok(Enforcer::bring_up(plane, &setup)?)
}

/// Longest instance name the firewall takes.
const LONGEST_INSTANCE: usize = 32;

/// The outer path's MTU assumed for the interface; children with less are handled one by one.
const PATH_MTU: u16 = 1500;

/// The part of the firewall table's name that tells instances apart.
fn instance(interface: &str) -> String {
    if interface == DEFAULT_INTERFACE {
        return String::new();
    }
    // Injective: two interfaces never share a table, whose rules each would then replace.
    let name: String = interface
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' => c.to_string(),
            other => format!("_{:02x}", u32::from(other)),
        })
        .collect();
    // Table names have a limit that fifteen odd characters would pass.
    if name.len() <= LONGEST_INSTANCE { name } else { format!("_{:08x}", if_id_for(interface)) }
}

/// Hands events to the engine. Runs on the plane's threads and never blocks.
fn sink(engine: EngineHandle, thread: PlaneHandle) -> EventSink {
    Arc::new(move |event| match event {
        PlaneEvent::Ike { local, remote, payload } => {
            engine.datagram(Datagram { local, remote, encap: true, payload });
        }
        PlaneEvent::Acquire { child, destination } => {
            tracing::debug!(?child, %destination, "packet for a client without tunnel");
            // It may have lost its SA, or be moving at this moment: the thread's order tells.
            if child.is_some() {
                thread.resync();
            }
        }
        PlaneEvent::Lost => {
            tracing::warn!("events of the data plane were lost; comparing with what is installed");
            thread.resync();
        }
        PlaneEvent::NoSa { .. } | PlaneEvent::Expire { .. } | PlaneEvent::Mapping { .. } => {
            report(&engine, &event);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_interface_makes_another_instance() {
        assert_eq!(instance("runnel0"), "");
        assert_eq!(instance("gw-B2"), "gw_2d_422");
        assert_ne!(instance("gw-b"), instance("gw_b"));
        let long = instance("A-B-C-D-E-F-G-H");
        assert!(long.len() <= LONGEST_INSTANCE && long != instance("A-B-C-D-E-F-G-I"), "{long}");
    }
}
