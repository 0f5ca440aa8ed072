//! Work that a network device takes over: encryption alone, or all of ESP.
//!
//! What a device can is known only by asking it for each SA: it may lack a suite, or room. Where it
//! refuses, the SA is installed with less, at last without it; a tunnel never fails for this. A
//! device that does not know of IPsec at all takes "crypto" without a word and leaves the work to
//! the kernel, so what is really in force is read back with the counters.
//!
//! SAs that move to other addresses are made anew without a device, until their next rekey.

use netlink_packet_xfrm::constants::{XFRM_OFFLOAD_INBOUND, XFRM_OFFLOAD_IPV6};
use netlink_packet_xfrm::{UserOffloadDev, XfrmAttrs};

use super::KernelPlane;
use super::encode::{Context, Half};
use crate::error::PlaneError;
use crate::model::{ChildId, ChildSpec, Offload};
use crate::route::{RouteSocket, route_to};

/// The device does all of ESP, policies included (Linux 6.2); the packet crate does not know it.
const XFRM_OFFLOAD_PACKET: u8 = 4;
/// Length of struct xfrm_user_offload.
const LENGTH: usize = 8;

/// A device and what it does for a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) level: Offload,
}

impl Device {
    /// `XFRMA_OFFLOAD_DEV` of an SA.
    pub(super) fn of_sa(self, half: Half, ipv6: bool) -> XfrmAttrs {
        let mut flags = 0;
        if ipv6 {
            flags |= XFRM_OFFLOAD_IPV6;
        }
        if half == Half::In {
            flags |= XFRM_OFFLOAD_INBOUND;
        }
        if self.level == Offload::Packet {
            flags |= XFRM_OFFLOAD_PACKET;
        }
        self.attr(flags)
    }

    /// `XFRMA_OFFLOAD_DEV` of an outbound policy: one that the device does not know finds no SA
    /// that the device has whole.
    pub(super) fn of_policy(self) -> Option<XfrmAttrs> {
        (self.level == Offload::Packet).then(|| self.attr(XFRM_OFFLOAD_PACKET))
    }

    fn attr(self, flags: u8) -> XfrmAttrs {
        let ifindex = i32::try_from(self.index).unwrap_or_default();
        XfrmAttrs::OffloadDevice(UserOffloadDev { ifindex, flags })
    }

    /// What the kernel says about an SA.
    pub(super) fn parse(value: &[u8]) -> Result<Self, PlaneError> {
        let short = || PlaneError::Malformed(format!("offload of {} bytes", value.len()));
        let (fixed, _) = value.split_at_checked(LENGTH).ok_or_else(short)?;
        let [a, b, c, d, flags, ..] = *fixed else { return Err(short()) };
        let packet = flags & XFRM_OFFLOAD_PACKET != 0;
        let level = if packet { Offload::Packet } else { Offload::Crypto };
        Ok(Self { index: u32::from_ne_bytes([a, b, c, d]), level })
    }
}

/// What to ask a device for, most first.
fn levels(wanted: Offload) -> &'static [Offload] {
    match wanted {
        Offload::None => &[],
        Offload::Crypto => &[Offload::Crypto],
        Offload::Packet => &[Offload::Packet, Offload::Crypto],
    }
}

/// Whether a refusal says that the device, or the kernel, will never do it.
fn is_final(error: &PlaneError) -> bool {
    matches!(error, PlaneError::Kernel { errno: libc::EINVAL | libc::EOPNOTSUPP, .. })
}

impl KernelPlane {
    /// Has devices on the way to peers do a part of the work for children installed from now on.
    pub fn set_offload(&mut self, wanted: Offload) {
        self.offload = wanted;
        self.refusing.clear();
    }

    /// The devices to try for a child, most work first; then comes none at all.
    pub(super) fn devices(&self, spec: &ChildSpec) -> Vec<Option<Device>> {
        let levels = levels(self.offload);
        let mut tries = Vec::new();
        // Kernels refuse ESP in UDP there.
        if !levels.is_empty() && !spec.hosts.encap {
            match device_towards(spec) {
                Ok(Some(index)) => {
                    let devices = levels.iter().map(|&level| Device { index, level });
                    tries.extend(devices.filter(|one| !self.refusing.contains(one)).map(Some));
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "no device to ask for offload"),
            }
        }
        tries.push(None);
        tries
    }

    /// A device refused a child; it gets less.
    pub(super) fn refused(&mut self, device: Device, error: &PlaneError) {
        let news = !is_final(error) || self.refusing.insert(device);
        if news {
            let (index, wanted) = (device.index, device.level.name());
            tracing::warn!(
                device = index, offload = wanted, %error,
                "the device does not take an SA; it gets less of the work, or none"
            );
        }
    }

    /// What the messages about a child have in common.
    pub(super) fn context_of(&self, child: ChildId) -> Context {
        Context { device: self.devices.get(&child).copied(), ..self.context }
    }
}

/// The index of the device that leads to a child's peer.
fn device_towards(spec: &ChildSpec) -> Result<Option<u32>, PlaneError> {
    let route = route_to(spec.hosts.remote.ip().to_canonical())?;
    let Some(name) = route.interface.filter(|_| !route.local) else { return Ok(None) };
    Ok(RouteSocket::open()?.link(&name)?.map(|link| link.index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(attr: &XfrmAttrs) -> Vec<u8> {
        use netlink_packet_core::Emitable;
        let mut bytes = vec![0; attr.buffer_len()];
        attr.emit(&mut bytes);
        bytes
    }

    #[test]
    fn the_attribute_names_device_and_direction() {
        let crypto = Device { index: 7, level: Offload::Crypto };
        // struct xfrm_user_offload: int ifindex, __u8 flags; attribute 28.
        let head = [[12, 0], [28, 0]].concat();
        let with = |flags: u8| [&head[..], &7_i32.to_ne_bytes(), &[flags, 0, 0, 0]].concat();
        assert_eq!(octets(&crypto.of_sa(Half::Out, false)), with(0));
        assert_eq!(octets(&crypto.of_sa(Half::In, false)), with(2));
        assert_eq!(octets(&crypto.of_sa(Half::In, true)), with(3));
        assert!(crypto.of_policy().is_none());
        let packet = Device { level: Offload::Packet, ..crypto };
        assert_eq!(octets(&packet.of_sa(Half::Out, false)), with(4));
        assert_eq!(octets(&packet.of_policy().unwrap()), with(4));
        for device in [crypto, packet] {
            let said = octets(&device.of_sa(Half::In, true));
            assert_eq!(Device::parse(&said[4..]).unwrap(), device);
        }
        assert!(Device::parse(&[0; 7]).is_err());
    }

    #[test]
    fn a_device_is_asked_for_less_until_it_is_asked_for_nothing() {
        assert!(levels(Offload::None).is_empty());
        assert_eq!(levels(Offload::Packet), [Offload::Packet, Offload::Crypto]);
        let kernel = |errno| PlaneError::Kernel {
            what: "install the inbound SA".to_owned(),
            reason: "Unrecognized flags in offload request".to_owned(),
            errno,
            fix: String::new(),
        };
        assert!(is_final(&kernel(libc::EOPNOTSUPP)) && is_final(&kernel(libc::EINVAL)));
        // A full table may have room again.
        assert!(!is_final(&kernel(libc::ENOSPC)));
    }
}
