//! Fresh network namespaces for tests that need privileges.

#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

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

type Job = Box<dyn FnOnce() + Send>;

/// Another machine: a thread in a network namespace of its own that runs jobs.
pub struct Host {
    jobs: Option<std::sync::mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    tid: i32,
}

impl Host {
    /// A host with only `lo`, which is up.
    pub fn new() -> Self {
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        let (ready, wait) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            xfrm::netns::in_fresh_namespace(|| {
                sh("ip link set lo up");
                ready.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                for job in queue {
                    job();
                }
            })
            .unwrap();
        });
        let tid = wait.recv().expect("host namespace");
        Self { jobs: Some(jobs), thread: Some(thread), tid }
    }

    /// Runs a closure there; sockets it opens stay there.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = std::sync::mpsc::channel();
        let job = Box::new(move || {
            let _ = send.send(work());
        });
        self.jobs.as_ref().unwrap().send(job).expect("host thread");
        receive.recv().expect("job on the host")
    }

    /// Runs a command line there.
    pub fn sh(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(move || sh(&line))
    }

    /// Connects the caller's namespace to this host by a veth pair.
    pub fn connect(&self, here: &str, there: &str) {
        // Duplicate address detection would hold up the first packets for a second.
        sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        self.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        sh(&format!("ip link add {here} type veth peer name {there}"));
        sh(&format!("ip link set {there} netns {}", self.tid));
        sh(&format!("ip link set {here} up"));
        self.sh(&format!("ip link set {there} up"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
