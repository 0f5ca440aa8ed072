//! What every run of the program does to itself first.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Installs the one rustls cryptography provider of this process.
pub fn install_crypto_provider() {
    // An error means that one is installed already, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// No core files (they would hold session keys), no ptrace by the same user, and files that are
/// created for the owner only.
pub fn harden() {
    // Failures are harmless here: the limits only get stricter, and a refusal keeps the old ones.
    let _ =
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // Strangers' connections are bounded (`http::server`) well below what even a small hard limit
    // allows, so that the admin socket and the store always get a descriptor.
    let files = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: files.maximum, maximum: files.maximum },
    );
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Whether this process may configure interfaces, routes and firewalls.
pub fn has_net_admin() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

/// The machine's name, for the default gateway identity.
pub fn hostname() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().trim().to_owned();
    if name.is_empty() || name == "(none)" { "runnel".to_owned() } else { name }
}

/// The operating system's words without the error number.
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
