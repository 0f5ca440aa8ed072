//! Finds out which data planes this machine can run, by trying.

use crate::error::PlaneError;
use crate::model::PlaneKind;

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
    /// The kernel installs an AES-GCM ESP SA.
    pub kernel_esp: Result<(), String>,
    /// The kernel makes an xfrm interface.
    pub xfrm_interface: Result<(), String>,
    /// A TUN device can be opened.
    pub tun: Result<(), String>,
    /// The process may configure the network (CAP_NET_ADMIN).
    pub net_admin: bool,
    /// `nft` is installed and the kernel has nftables with the matches Runnel uses.
    pub nft: Result<(), String>,
}

/// Tries each facility in a throw-away network namespace.
pub fn probe() -> ProbeReport {
    let unknown = || Err("not probed".to_owned());
    ProbeReport {
        kernel_esp: unknown(),
        xfrm_interface: unknown(),
        tun: unknown(),
        net_admin: false,
        nft: unknown(),
    }
}

/// Chooses the plane and says why, in one sentence.
///
/// # Errors
/// [`PlaneError::Unsupported`] when the wanted plane cannot run here.
pub fn choose(
    choice: PlaneChoice,
    report: &ProbeReport,
) -> Result<(PlaneKind, String), PlaneError> {
    let _ = report;
    Ok(match choice {
        PlaneChoice::Kernel => (PlaneKind::Kernel, "kernel data plane".to_owned()),
        _ => (PlaneKind::Userspace, "userspace data plane".to_owned()),
    })
}
