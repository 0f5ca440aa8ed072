//! The TUN device: opens `/dev/net/tun`, one queue per worker, with vnet headers and offloads.
//!
//! The interface is not persistent: it vanishes with the last descriptor, so a killed process
//! leaves none behind. Addresses and routes are set elsewhere.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::sys;
use crate::error::PlaneError;

const DEVICE: &str = "/dev/net/tun";
/// `TUN_F_*` of `<linux/if_tun.h>`.
const CSUM: u32 = 0x01;
const TSO4: u32 = 0x02;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;

/// One queue of a TUN interface, non-blocking; every packet follows a vnet header.
#[derive(Debug)]
pub(super) struct TunQueue {
    file: File,
}

impl TunQueue {
    /// Reads one packet with its vnet header.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet, its vnet header first, gathered from `parts`.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(drop)
    }

    /// Wraps a descriptor that behaves like a TUN queue: one packet with vnet header per read and
    /// write.
    pub(super) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { file: File::from(fd) })
    }

    /// A second handle on the same queue.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Creates the interface with `queues` queues, sets its MTU and brings it up.
pub(super) fn create(
    name: &str,
    queues: usize,
    mtu: u16,
) -> Result<(String, Vec<TunQueue>), PlaneError> {
    let queues = queues.max(1);
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut taken = name.to_owned();
    let mut open = Vec::with_capacity(queues);
    for index in 0..queues {
        let file = open_device()?;
        // The first queue must create the interface: attaching to one that exists would share
        // another process's packets.
        let exclusive = if index == 0 { libc::IFF_TUN_EXCL } else { 0 };
        taken = sys::tun_attach(file.as_fd(), &taken, (flags | exclusive) as i16)
            .map_err(|error| attach_error(&taken, &error))?;
        offload(&file);
        open.push(TunQueue { file });
    }
    bring_up(&taken, mtu).map_err(|error| PlaneError::System {
        what: format!("set the MTU of {taken} to {mtu} and bring it up"),
        reason: error.to_string(),
        fix: "run as root or grant CAP_NET_ADMIN".into(),
    })?;
    Ok((taken, open))
}

/// Whether this machine lets us create a TUN interface, without leaving one behind.
///
/// # Errors
/// A [`PlaneError::System`] that says what is missing and how to get it.
pub fn probe() -> Result<(), PlaneError> {
    let file = open_device()?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    sys::tun_attach(file.as_fd(), "rnlprobe%d", flags as i16)
        .map(drop)
        .map_err(|error| attach_error("a TUN interface", &error))
}

fn open_device() -> Result<File, PlaneError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|error| device_error(&error))
}

fn device_error(error: &io::Error) -> PlaneError {
    let (reason, fix) = match error.raw_os_error() {
        Some(libc::ENOENT) => (
            "the device file is missing".to_owned(),
            "run `modprobe tun`; in a container pass the device through (`--device \
             /dev/net/tun`) or make it: `mkdir -p /dev/net && mknod /dev/net/tun c 10 200`",
        ),
        Some(libc::ENODEV | libc::ENXIO) => (
            "the kernel has no TUN driver loaded".to_owned(),
            "run `modprobe tun`, or use a kernel with CONFIG_TUN",
        ),
        Some(libc::EACCES | libc::EPERM) => (
            "permission denied".to_owned(),
            "run as root, or allow the device (systemd: DeviceAllow=/dev/net/tun rw)",
        ),
        _ => (error.to_string(), "see the system log"),
    };
    PlaneError::System { what: format!("cannot open {DEVICE}"), reason, fix: fix.into() }
}

fn attach_error(name: &str, error: &io::Error) -> PlaneError {
    let (reason, fix) = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ("permission denied".to_owned(), "run as root or grant CAP_NET_ADMIN")
        }
        Some(libc::EBUSY) => (
            "an interface of that name exists; another process (a second gateway?) may hold it"
                .to_owned(),
            "stop that process, remove the interface with `ip link delete`, or choose another name",
        ),
        Some(libc::EINVAL) => (
            "the kernel refuses the name or the options".to_owned(),
            "choose a name of at most 15 letters and digits, or use a newer kernel",
        ),
        _ => (error.to_string(), "choose a name of at most 15 letters and digits"),
    };
    PlaneError::System { what: format!("cannot create {name}"), reason, fix: fix.into() }
}

/// Takes the most offload the kernel gives: UDP segmentation came with Linux 6.2.
fn offload(file: &File) {
    let tcp = CSUM | TSO4 | TSO6 | TSO_ECN;
    for flags in [tcp | USO4 | USO6, tcp, CSUM | TSO4 | TSO6, CSUM, 0] {
        if sys::tun_offload(file.as_fd(), flags).is_ok() {
            return;
        }
    }
}

fn bring_up(name: &str, mtu: u16) -> io::Result<()> {
    // Any socket of this network namespace serves; IPv4 may be absent.
    let socket = UdpSocket::bind(("0.0.0.0", 0)).or_else(|_| UdpSocket::bind(("::", 0)))?;
    sys::set_link_mtu(socket.as_fd(), name, mtu)?;
    sys::set_link_up(socket.as_fd(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_and_missing_rights_are_explained() {
        let missing = device_error(&io::Error::from_raw_os_error(libc::ENOENT)).to_string();
        assert!(missing.contains("modprobe tun") && missing.contains("mknod"), "{missing}");
        let denied = attach_error("runnel0", &io::Error::from_raw_os_error(libc::EPERM));
        assert!(denied.to_string().contains("CAP_NET_ADMIN"), "{denied}");
        let busy = attach_error("runnel0", &io::Error::from_raw_os_error(libc::EBUSY));
        assert!(busy.to_string().contains("another process"), "{busy}");
    }
}
