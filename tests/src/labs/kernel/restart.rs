//! The gateway's process dies; the kernel goes on.

use anyhow::Result;

use super::settings;
use crate::lab::Lab;
use crate::labs::keep;

/// Of the pings sent while no gateway runs only those are lost that meet the firewall before it has
/// the client's address again.
const SHARE: f32 = 0.5;

/// As lab `restart-tunnels`, over the kernel's ESP: packets pass while no gateway runs.
pub(in crate::labs) fn goes_on(lab: &Lab) -> Result<()> {
    keep::goes_on(lab, settings(), SHARE)
}
