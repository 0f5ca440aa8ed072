//! Finds out which data planes this machine can run, by trying.
//!
//! Duty: one report with one clear reason for each thing that is missing. Everything is tried in
//! a fresh network namespace on a thread of its own, so nothing of it can touch the machine or
//! stay behind. Where no namespace can be made (a container with CAP_NET_ADMIN alone) it is tried
//! in place, under throw-away names and on addresses that no packet has, and taken away again.

use std::fs::OpenOptions;
use std::io;

use crate::error::PlaneError;
use crate::kernel::{if_id_for, try_esp};
use crate::model::PlaneKind;
use crate::netns::in_fresh_namespace;
use crate::nft::try_ruleset;
use crate::route::RouteSocket;

/// The configuration's choice of plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlaneChoice {
    /// The kernel where it can, userspace otherwise.
    #[default]
    Auto,
    /// The kernel or nothing.
    Kernel,
    /// Userspace or nothing.
    Userspace,
}

/// What this machine can do. Each `Err` holds one sentence: what is missing and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// The kernel installs an AES-GCM ESP SA, and nftables can match by it.
    pub kernel_esp: Result<(), String>,
    /// The kernel makes an xfrm interface.
    pub xfrm_interface: Result<(), String>,
    /// A TUN device can be opened.
    pub tun: Result<(), String>,
    /// The process may configure the network (CAP_NET_ADMIN).
    pub net_admin: bool,
    /// `nft` is installed and the kernel has what Runnel's rules need.
    pub nft: Result<(), String>,
}

/// Tries each facility in a throw-away network namespace, or in place where there can be none.
pub fn probe() -> ProbeReport {
    let net_admin = has_net_admin();
    let tun = try_tun();
    let Tried { kernel_esp, xfrm_interface, nft } = match in_fresh_namespace(|| attempt("probe")) {
        Ok(tried) => tried,
        Err(_) if net_admin => {
            // At most 15 characters, the limit of an interface's name.
            attempt(&format!("rnlp{}", std::process::id()))
        }
        Err(error) => {
            let sentence = format!(
                "cannot try it: no network namespace can be made ({error}) and the process lacks \
                 CAP_NET_ADMIN; run as root or with CAP_NET_ADMIN"
            );
            Tried {
                kernel_esp: Err(sentence.clone()),
                xfrm_interface: Err(sentence.clone()),
                nft: Err(sentence),
            }
        }
    };
    ProbeReport { kernel_esp, xfrm_interface, tun, net_admin, nft }
}

/// Tries what needs the network, in the calling thread's network namespace.
fn attempt(name: &str) -> Tried {
    Tried {
        // The kernel plane's filter matches the SA a packet came by, which is part of IPsec
        // support too.
        kernel_esp: explain(try_esp().and_then(|()| try_ruleset(PlaneKind::Kernel, name))),
        xfrm_interface: explain(try_interface(name)),
        nft: explain(try_ruleset(PlaneKind::Userspace, name)),
    }
}

struct Tried {
    kernel_esp: Result<(), String>,
    xfrm_interface: Result<(), String>,
    nft: Result<(), String>,
}

fn explain(result: Result<(), PlaneError>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn try_interface(name: &str) -> Result<(), PlaneError> {
    let mut socket = RouteSocket::open()?;
    socket.add_xfrm_interface(name, if_id_for(name))?;
    socket.delete_link(name)
}

fn try_tun() -> Result<(), String> {
    const PATH: &str = "/dev/net/tun";
    let fix = |error: &io::Error| match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "enable CONFIG_TUN or load the module tun (`modprobe tun`); in a container pass the \
             device /dev/net/tun in"
        }
        Some(libc::ENODEV | libc::ENXIO) => "enable CONFIG_TUN or load the module tun",
        Some(libc::EPERM | libc::EACCES) => {
            "run as root; in a container allow the device /dev/net/tun"
        }
        _ => "see the kernel log",
    };
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(PATH)
        .map(|_| ())
        .map_err(|error| format!("cannot open {PATH}: {error}; {}", fix(&error)))
}

/// Bit 12 of the effective capability set (capabilities(7)).
fn has_net_admin() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set >> CAP_NET_ADMIN & 1 == 1)
}

impl ProbeReport {
    /// Why the kernel plane cannot run here; `None` when it can.
    pub fn against_kernel(&self) -> Option<String> {
        self.against_any()
            .or_else(|| self.kernel_esp.clone().err())
            .or_else(|| self.xfrm_interface.clone().err())
            .map(|why| format!("kernel data plane not possible: {why}"))
    }

    /// Why the userspace plane cannot run here; `None` when it can.
    pub fn against_userspace(&self) -> Option<String> {
        self.against_any()
            .or_else(|| self.tun.clone().err())
            .map(|why| format!("userspace data plane not possible: {why}"))
    }

    fn against_any(&self) -> Option<String> {
        if !self.net_admin {
            return Some(
                "the process lacks CAP_NET_ADMIN; run as root or grant it with \
                 AmbientCapabilities=CAP_NET_ADMIN"
                    .to_owned(),
            );
        }
        self.nft.clone().err()
    }
}

/// Chooses the plane and says why, in one sentence.
///
/// # Errors
/// [`PlaneError::System`] when the wanted plane cannot run here, with what is missing.
pub fn choose(
    choice: PlaneChoice,
    report: &ProbeReport,
) -> Result<(PlaneKind, String), PlaneError> {
    let refuse = |name: &str, why: String, fix: &str| {
        Err(PlaneError::System {
            what: format!("dataplane = \"{name}\" cannot run on this machine"),
            reason: why,
            fix: fix.to_owned(),
        })
    };
    match (choice, report.against_kernel(), report.against_userspace()) {
        (PlaneChoice::Kernel, None, _) => {
            Ok((PlaneKind::Kernel, "kernel data plane, as configured".to_owned()))
        }
        (PlaneChoice::Kernel, Some(why), user) => {
            let fix = match user {
                None => "or set dataplane = \"auto\" to use the userspace data plane",
                Some(_) => "the userspace data plane cannot run here either",
            };
            refuse("kernel", why, fix)
        }
        (PlaneChoice::Userspace, _, None) => {
            Ok((PlaneKind::Userspace, "userspace data plane, as configured".to_owned()))
        }
        (PlaneChoice::Userspace, _, Some(why)) => {
            refuse("userspace", why, "`runnel doctor` shows what this machine can do")
        }
        (PlaneChoice::Auto, None, _) => {
            Ok((PlaneKind::Kernel, "kernel data plane: this kernel has ESP".to_owned()))
        }
        (PlaneChoice::Auto, Some(why), None) => {
            Ok((PlaneKind::Userspace, format!("userspace data plane: {why}")))
        }
        (PlaneChoice::Auto, Some(_), Some(why)) => {
            refuse("auto", why, "`runnel doctor` shows what this machine can do")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> ProbeReport {
        ProbeReport {
            kernel_esp: Ok(()),
            xfrm_interface: Ok(()),
            tun: Ok(()),
            net_admin: true,
            nft: Ok(()),
        }
    }

    #[test]
    fn auto_prefers_the_kernel_and_says_why_not() {
        assert_eq!(choose(PlaneChoice::Auto, &able()).unwrap().0, PlaneKind::Kernel);
        let report = ProbeReport { kernel_esp: Err("no GCM; load gcm".to_owned()), ..able() };
        let (kind, sentence) = choose(PlaneChoice::Auto, &report).unwrap();
        assert_eq!(kind, PlaneKind::Userspace);
        assert_eq!(
            sentence,
            "userspace data plane: kernel data plane not possible: no GCM; load gcm"
        );
        let report = ProbeReport { xfrm_interface: Err("no type".to_owned()), ..able() };
        assert_eq!(choose(PlaneChoice::Auto, &report).unwrap().0, PlaneKind::Userspace);
    }

    #[test]
    fn a_forced_plane_is_refused_with_the_reason() {
        let report = ProbeReport { kernel_esp: Err("no GCM".to_owned()), ..able() };
        let error = choose(PlaneChoice::Kernel, &report).unwrap_err().to_string();
        assert!(error.contains("no GCM") && error.contains("auto"), "{error}");
        let report = ProbeReport { tun: Err("no tun".to_owned()), ..able() };
        assert!(choose(PlaneChoice::Userspace, &report).is_err());
        assert!(choose(PlaneChoice::Kernel, &report).is_ok());
    }

    #[test]
    fn without_privileges_nothing_runs() {
        let report = ProbeReport { net_admin: false, ..able() };
        for choice in [PlaneChoice::Auto, PlaneChoice::Kernel, PlaneChoice::Userspace] {
            let error = choose(choice, &report).unwrap_err().to_string();
            assert!(error.contains("CAP_NET_ADMIN"), "{error}");
        }
    }

    /// As in a container that has CAP_NET_ADMIN and nothing more.
    #[test]
    fn without_a_namespace_it_tries_in_place_and_cleans_up() {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let here = || {
            let run = |program: &str, arguments: &[&str]| {
                let output = std::process::Command::new(program).args(arguments).output().unwrap();
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            run("nft", &["list", "ruleset"]) + &run("ip", &["-br", "link"])
        };
        in_fresh_namespace(|| {
            let before = here();
            let mut mine = capabilities(None).unwrap();
            mine.effective.remove(CapabilitySet::SYS_ADMIN);
            mine.permitted.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, mine).unwrap();
            assert!(in_fresh_namespace(|| ()).is_err());
            let report = probe();
            assert_eq!(report.nft, Ok(()));
            for sentence in [&report.kernel_esp, &report.xfrm_interface] {
                assert!(
                    sentence.as_ref().err().is_none_or(|why| why.contains("CONFIG_")),
                    "{report:?}"
                );
            }
            assert_eq!(here(), before);
        })
        .unwrap();
    }

    #[test]
    fn probes_this_machine_without_a_trace() {
        let report = probe();
        println!("{report:#?}");
        if rustix::process::geteuid().is_root() {
            assert_eq!(report.nft, Ok(()));
            assert!(report.net_admin);
            for sentence in [&report.kernel_esp, &report.xfrm_interface] {
                if let Err(sentence) = sentence {
                    assert!(sentence.contains("CONFIG_"), "{sentence}");
                    assert!(!sentence.contains('\n'));
                }
            }
        }
        let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
        assert!(!devices.contains("probe"), "{devices}");
    }
}
