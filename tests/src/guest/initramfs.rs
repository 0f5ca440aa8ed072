//! The guest's first root: a static busybox, the modules that reach the shares, one script.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{EST_CONF, HOST_TAG, Kernel, PROGRAMS, PROGRAMS_TAG, RESULTS, RESULTS_TAG};

/// A shell and the usual commands in one static program.
const BUSYBOX: &str = "/bin/busybox";

/// What the shares, the overlay and the labs need. The kernel would ask for most of it by
/// itself, but each such request starts `modprobe` from a share, half a second under
/// emulation; so it is told to ask for nothing more.
const MODULES: [&str; 46] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_rng",
    "veth",
    "tun",
    "xfrm_user",
    "xfrm_interface",
    "esp4",
    "esp6",
    "tunnel4",
    "tunnel6",
    "af_packet",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_xfrm",
    "nft_objref",
    "nft_fib",
    "nft_numgen",
    "nft_reject_inet",
    "nft_log",
    "nft_limit",
    "nf_conntrack_netlink",
    "aesni_intel",
    "ghash_clmulni_intel",
    "ghash_generic",
    "gcm",
    "ccm",
    "ctr",
    "cbc",
    "hmac",
    "sha256_ssse3",
    "sha512_ssse3",
    "sha3_generic",
    "authenc",
    "authencesn",
    "chacha20poly1305",
    "chacha_x86_64",
    "poly1305_x86_64",
    "seqiv",
    "echainiv",
    "drbg",
];

/// What every lab starts again and again, read whole and once: page by page over a share it takes
/// several times as long.
const READ_FIRST: &str = "/usr/lib/ipsec/*.so.0 /usr/lib/ipsec/plugins/*.so /usr/bin/pki \
     /usr/bin/openssl /usr/sbin/swanctl /usr/sbin/charon-systemd /usr/bin/tcpdump /usr/sbin/nft \
     /bin/ip /bin/ping /usr/lib/x86_64-linux-gnu/libcrypto.so.3 \
     /usr/lib/x86_64-linux-gnu/libssl.so.3 /usr/lib/x86_64-linux-gnu/libnftables.so.1";

/// What `pki` needs. By itself it tries every plugin there is, which takes most of its time.
const PKI_PLUGINS: &str = "random x509 pubkey pkcs1 pkcs7 pkcs8 pem openssl";

/// Its configuration.
const PKI_CONF: &str = "/run/guest/pki.conf";

/// A directory and a program, in cpio's words.
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes the archive.
///
/// # Errors
/// When busybox or a module is missing.
pub(super) fn build(kernel: &Kernel, file: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "modules", "dev", "proc", "low", "rw", "new"] {
        archive.add(folder, DIRECTORY, &[]);
    }
    let busybox = fs::read(BUSYBOX).context("the guest needs busybox-static")?;
    archive.add("bin/busybox", PROGRAM, &busybox);
    let mut load = String::new();
    for module in kernel.modules(&MODULES)? {
        let name = module.file_name().context("a module without a name")?;
        let name = format!("modules/{}", name.to_string_lossy());
        archive.add(&name, PROGRAM, &fs::read(&module)?);
        load.push_str(&format!("insmod /{name} 2> /dev/null\n"));
    }
    archive.add("init", PROGRAM, init(&load, &kernel.version).as_bytes());
    fs::write(file, archive.finish())?;
    Ok(())
}

/// The first process: finds the shares, makes a root of them and hands over to the job. Power is
/// cut in every case, so a guest never stays.
fn init(load: &str, version: &str) -> String {
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root LC_ALL=C.UTF-8\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc\n\
         mount -t devtmpfs dev /dev\n\
         echo booted\n\
         {load}\
         share() {{ mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,$3 $1 $2; }}\n\
         share {HOST_TAG} /low ro,cache=loose\n\
         mount -t tmpfs rw /rw\n\
         mkdir /rw/up /rw/work\n\
         mount -t overlay -o lowerdir=/low,upperdir=/rw/up,workdir=/rw/work root /new\n\
         umount /proc\n\
         mount -t proc proc /new/proc\n\
         mount -t sysfs sys /new/sys\n\
         mount -t devtmpfs dev /new/dev\n\
         mkdir -p /new/dev/pts /new/dev/shm\n\
         mount -t devpts pts /new/dev/pts\n\
         for folder in dev/shm run tmp; do mount -t tmpfs t /new/$folder; done\n\
         chmod 1777 /new/tmp /new/dev/shm\n\
         mkdir -p /new{PROGRAMS} /new{RESULTS} /new/run/lock\n\
         share {PROGRAMS_TAG} /new{PROGRAMS} ro,cache=loose\n\
         share {RESULTS_TAG} /new{RESULTS} cache=none\n\
         mkdir -p /new/lib/modules\n\
         rm -rf /new/lib/modules/{version}\n\
         ln -s {PROGRAMS}/kernel/lib/modules/{version} /new/lib/modules/{version}\n\
         cat > /new/run/guest/start <<'END'\n\
         mount --make-rshared /\n\
         ip link set lo up\n\
         echo > /proc/sys/kernel/modprobe\n\
         for f in /sys/class/bdi/9p*/read_ahead_kb; do echo 2048 > $f; done\n\
         cat {PROGRAMS}/bin/labs {PROGRAMS}/bin/runnel {READ_FIRST} > /dev/null 2>&1\n\
         mkdir -p /dev/net\n\
         [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200\n\
         plugins() {{ echo 'pki {{'; echo load = $1; echo '}}'; }}\n\
         plugins '{PKI_PLUGINS}' > {PKI_CONF}\n\
         plugins '{PKI_PLUGINS} curl' > {EST_CONF}\n\
         export STRONGSWAN_CONF={PKI_CONF}\n\
         sh {RESULTS}/job.sh\n\
         sync\n\
         echo o > /proc/sysrq-trigger\n\
         while :; do :; done\n\
         END\n\
         exec switch_root /new /bin/sh /run/guest/start\n"
    )
}

/// A cpio archive of the kind the kernel unpacks (`newc`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(0);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(0);
        // inode, mode, owner, group, links, time, size, device and its number twice, name, check.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_trailer_ends_them() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"12345");
        let first = archive.bytes.len();
        assert_eq!(first % 4, 0);
        assert_eq!(archive.bytes.get(..14), Some(b"07070100000001".as_slice()));
        let bytes = archive.finish();
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
