//! One run of the virtual machine, with hardware help where it works.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{HOST_TAG, PROGRAMS_TAG, RESULTS_TAG};

/// A guest with hardware help says its first word in a second; one without such help that says
/// nothing for this long never will.
const KVM_LIMIT: Duration = Duration::from_secs(8);

/// Hardware help. What QEMU says of it is no news where it does not work.
const KVM: &str = "kvm";

/// The guest's first word.
const BOOTED: &str = "booted";

/// What to boot and for how long.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) programs: &'a Path,
    pub(super) results: &'a Path,
    pub(super) limit: Duration,
}

/// Boots, prints the guest's lines, and returns when it has switched itself off.
///
/// # Errors
/// When QEMU fails or the guest still runs after the limit; it is killed then.
pub(super) fn boot(machine: &Machine<'_>) -> Result<()> {
    if kvm_may_work(machine.programs) {
        let mut run = Run::start(machine, KVM)?;
        if run.booted(KVM_LIMIT) {
            return run.follow(machine.limit);
        }
        drop(run);
        // Remembered until the machine is restarted.
        fs::write(kvm_note(machine.programs), boot_id())?;
    }
    // One processor: two would spend half of their time on waiting for each other.
    Run::start(machine, "tcg,thread=single")?.follow(machine.limit)
}

fn kvm_may_work(folder: &Path) -> bool {
    Path::new("/dev/kvm").exists()
        && fs::read_to_string(kvm_note(folder)).unwrap_or_default() != boot_id()
}

fn kvm_note(folder: &Path) -> PathBuf {
    folder.join("kvm-does-not-work")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// A running QEMU; dropping it kills it.
struct Run {
    child: Child,
    lines: Receiver<String>,
    started: Instant,
}

impl Run {
    fn start(machine: &Machine<'_>, accelerator: &str) -> Result<Self> {
        let share = |tag: &str, path: &Path, options: &str| {
            let path = path.display();
            format!("local,path={path},mount_tag={tag},security_model=none,{options}")
        };
        // QEMU dies with this process, whatever ends it, and lets everything else go first.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nice", "-n", "5", "qemu-system-x86_64"]);
        command.args(["-accel", accelerator, "-cpu", "max", "-m", "2048"]);
        command.args(["-no-reboot", "-nodefaults", "-nic", "none", "-display", "none"]);
        command.args(["-serial", "stdio", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(machine.kernel).arg("-initrd").arg(machine.initramfs);
        command.args([
            "-append",
            "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check cryptomgr.notests \
             tsc=reliable rcupdate.rcu_expedited=1",
        ]);
        command.args(["-virtfs", &share(HOST_TAG, Path::new("/"), "readonly=on,multidevs=remap")]);
        let programs = fs::canonicalize(machine.programs)?;
        command.args(["-virtfs", &share(PROGRAMS_TAG, &programs, "readonly=on,multidevs=remap")]);
        let results = fs::canonicalize(machine.results)?;
        command.args(["-virtfs", &share(RESULTS_TAG, &results, "multidevs=remap")]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if accelerator == KVM { Stdio::null() } else { Stdio::inherit() })
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let out = child.stdout.take().context("QEMU has no output")?;
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n') {
                let Ok(line) = line else { break };
                if send.send(clean(&line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines, started: Instant::now() })
    }

    /// Whether the guest says its first word in time.
    fn booted(&mut self, limit: Duration) -> bool {
        let deadline = self.started + limit;
        while let Ok(line) = self.lines.recv_timeout(deadline.duration_since(Instant::now())) {
            if line == BOOTED {
                return true;
            }
        }
        false
    }

    #[allow(clippy::print_stdout)] // a developer's terminal is this crate's user interface
    fn follow(mut self, limit: Duration) -> Result<()> {
        loop {
            let left = limit.saturating_sub(self.started.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) if line == BOOTED => {
                    println!("guest: booted after {:.1} s", self.started.elapsed().as_secs_f64());
                }
                Ok(line) if line.is_empty() => {}
                Ok(line) => println!("guest: {line}"),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest still ran after {} s and was killed", limit.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("QEMU failed ({status})");
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of the serial console without what the firmware does to the screen.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // An escape sequence ends with a letter.
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if !c.is_control() || c == '\t' {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_left_out() {
        assert_eq!(clean(b"\x1bc\x1b[?7l\x1b[2Jbooted\r"), BOOTED);
        assert_eq!(clean(b"ok    kernel-esp"), "ok    kernel-esp");
    }
}
