//! A newer strongSwan than the machine's, unpacked into a folder and run with `chroot`.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names the folder `cargo xtask` fills.
const FOLDER: &str = "RUNNEL_NEXT_DIR";

/// The root folder of the newer strongSwan.
///
/// # Errors
/// When it has not been fetched.
pub fn root() -> Result<PathBuf> {
    let folder = env::var_os(FOLDER).map(PathBuf::from);
    let root = folder.context("start this lab with `cargo xtask lab NAME`")?.join("root");
    if !root.join("usr/sbin/charon-systemd").exists() {
        bail!("the newer strongSwan is not in {}: `cargo xtask` fetches it", root.display());
    }
    Ok(root)
}

/// Shell words that put what a daemon needs below `root` (in a mount namespace of its own) and
/// run `program` there: processes, devices, an empty `/run`, and `shared` under its own name.
#[must_use]
pub fn enter(root: &Path, shared: &Path, program: &str) -> String {
    let (root, shared) = (root.display(), shared.display());
    format!(
        "mount --rbind /proc {root}/proc && mount --rbind /dev {root}/dev && \
         mount -t tmpfs lab {root}/run && mount -t tmpfs lab {root}/tmp && \
         mkdir -p {root}{shared} && mount --bind {shared} {root}{shared} && \
         exec chroot {root} {program}"
    )
}
