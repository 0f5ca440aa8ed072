//! Fresh network namespaces for tests that need privileges.

#![allow(dead_code, unreachable_pub)]

use std::process::Command;

/// Runs a test in a fresh network namespace with `lo` up; says why when it cannot.
pub fn in_namespace(test: impl FnOnce() + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to make a network namespace");
        return;
    }
    xfrm::netns::in_fresh_namespace(|| {
        sh("ip link set lo up");
        test();
    })
    .expect("test in a network namespace");
}

/// Runs a command line in the calling thread's namespace and returns its output.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().expect("sh");
    assert!(
        output.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a command line succeeds.
pub fn succeeds(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).output().is_ok_and(|output| output.status.success())
}
