//! The labs themselves: each one a function with a name, run by `cargo xtask lab NAME`.

mod approval;
mod backup;
mod badinput;
mod baseline;
pub mod bench;
mod bench_revoke;
mod ca;
mod ca_hsm;
mod choices;
mod crash;
mod critical;
mod daemon;
pub mod demo;
mod eap;
mod endings;
mod enrolment;
mod enrolment_next;
mod external;
mod hooks;
mod hostile;
mod interop;
mod keep;
mod kernel;
mod many;
mod message_ids;
mod mlkem;
mod oidc;
mod openssl;
mod paths;
mod ppk;
mod psk;
mod reauth;
mod redirect;
mod refusals;
mod runner;
mod scene;
mod site_responder;
mod sites;
mod staple;
mod status;
mod suites;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::guest;
use crate::lab::{Lab, cleanup};

/// One lab of the registry.
pub struct Entry {
    /// Name on the command line.
    pub name: &'static str,
    /// One line for `--list`.
    pub about: &'static str,
    /// The lab.
    pub run: fn(&Lab) -> Result<()>,
    load: Load,
}

/// What a lab asks of the machine, and so what may run at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// It works: one after another.
    Works,
    /// It mostly waits, so it runs beside the others.
    Waits,
    /// As [`Load::Waits`], but it misses no packet of many a second: the guest, which is a whole
    /// machine in software, does not run beside it.
    Counts,
}

/// Every lab that `cargo xtask test` runs, cheapest first; those in the guest at the end.
pub const ALL: &[Entry] = &[
    entry(
        "baseline",
        "strongSwan to strongSwan over kernel-libipsec: the lab machinery itself",
        baseline::run,
    ),
    entry(
        "enrolment",
        "stock pki: CA chain, certificate, retries, spent and wrong tokens",
        enrolment::run,
    ),
    entry(
        "approval",
        "stock pki waits for an operator, through a crash; one is approved, one denied",
        approval::run,
    ),
    entry(
        "enrolment-next",
        "the pki of a newer strongSwan with --label and renewal; curl with all forms of URLs",
        enrolment_next::run,
    ),
    entry(
        "oidc",
        "CI tokens: stock pki and curl enrol and connect; replay, kill, release by token",
        oidc::run,
    ),
    entry(
        "backup",
        "a backup comes back: what was revoked and spent since stays so, everywhere it is asked",
        backup::run,
    ),
    entry(
        "ca-hsm",
        "the CA's keys in a PKCS#11 token: enrolment, revocation, restart, a token that goes away",
        ca_hsm::run,
    ),
    entry(
        "ca-offline",
        "an issuing CA below a root that is kept elsewhere: csr, import, list; a strict client",
        ca::offline,
    ),
    entry(
        "ca-rotation",
        "issuing CA and root rotate while a stock client is connected; nothing breaks",
        ca::rotation,
    ),
    entry(
        "bad-input",
        "starts that cannot succeed: one sentence, exit 1, nothing half-created",
        badinput::run,
    ),
    entry(
        "certificates",
        "ECDSA, RSA and Ed25519 client keys, RFC 7427 and classic signatures",
        suites::certificates,
    ),
    entry("ike-suites", "every IKE cipher, PRF and group, with traffic", suites::ike),
    entry("esp-suites", "every ESP cipher, with traffic", suites::esp),
    entry(
        "mlkem",
        "a newer strongSwan: X25519 with ML-KEM in connections and in rekeys by either side",
        mlkem::run,
    ),
    entry("init-retries", "IKE_SA_INIT with a cookie and with another group", suites::init_retries),
    entry("nat-runner", "the runner behind a NAT", paths::nat_runner),
    entry("nat-gateway", "the gateway behind a NAT", paths::nat_gateway),
    entry("double-nat", "runner and gateway each behind a NAT", paths::double_nat),
    entry("nat-two-runners", "two runners behind one NAT", paths::nat_two_runners),
    entry(
        "fragmentation",
        "IKE fragments both ways with RSA-4096, and a foreign RSA-4096 chain",
        paths::fragmentation,
    ),
    entry(
        "config-payload",
        "addresses of both families and DNS, the same at both ends",
        interop::config_payload,
    ),
    entry("force-encap", "ESP in UDP without a NAT, as the client wishes", interop::force_encap),
    entry("port-range", "selectors with a range of ports", interop::port_range),
    entry("pss", "RSA signatures with PSS padding", interop::pss),
    entry("mobike", "a client changes its address while it downloads", interop::mobike),
    counting(
        "rekey-storm",
        "both ends rekey every second or two for a minute; no ping of 6,000 is lost",
        interop::storm,
    ),
    entry("rekey-volume", "a child is rekeyed when it has carried its bytes", interop::volume),
    entry("ipv6", "virtual addresses of both families", paths::ipv6),
    entry("allow-list", "addresses, ports and protocols outside the role", paths::allow_list),
    entry(
        "allow-filter",
        "an allow list too long for selectors: the filter stays exact",
        paths::allow_filter,
    ),
    entry(
        "masquerade",
        "a network without a route back; forwarding on the tunnel's side",
        paths::masquerade,
    ),
    entry("mtu", "50 MB over an underlay of MTU 1400; too-big answered", paths::mtu),
    entry(
        "refusals",
        "wrong CA, identity, proposals, selectors: RFC notify and one operator line",
        refusals::run,
    ),
    entry(
        "wrong-gateway",
        "a client that expects another gateway leaves nothing behind",
        refusals::wrong_gateway,
    ),
    waiting(
        "site-runnel",
        "gateway to gateway: two Runnels, both directions, restart of one, reload",
        sites::runnel,
    ),
    entry("site-psk", "gateway to gateway: a shared key, first a wrong one", sites::shared_key),
    entry(
        "site-own-ca",
        "gateway to gateway: a gateway that enrolled with us, and its revocation",
        sites::own_authority,
    ),
    entry(
        "site-strongswan-initiator",
        "gateway to gateway: strongSwan connects to a site",
        sites::strongswan_initiator,
    ),
    waiting(
        "site-strongswan-responder",
        "gateway to gateway: connects to strongSwan through NAT, cookie, other group; rekeys by both",
        sites::strongswan_responder,
    ),
    entry(
        "site-responder",
        "gateway to gateway: strongSwan answers, with its suites, a chain, a shared key",
        site_responder::run,
    ),
    entry(
        "eap-tls",
        "EAP-TLS with and without EAP-only, in small fragments; refused certificates; not offered",
        eap::run,
    ),
    entry(
        "ppk",
        "post-quantum preshared keys: right, wrong, unknown, absent, optional and required",
        ppk::run,
    ),
    entry(
        "psk",
        "shared keys: right, wrong, unknown, changed and revoked, and a gateway with a certificate",
        psk::run,
    ),
    entry(
        "reauth-mbb",
        "reauthentication, make-before-break: same address, every ping answered",
        reauth::make_before_break,
    ),
    waiting(
        "reauth-early",
        "AUTH_LIFETIME makes the client authenticate again; a loop is stopped",
        reauth::early,
    ),
    waiting(
        "reauth-revoked",
        "revoked between two authentications: the second is refused, the first tunnel ends",
        reauth::revoked,
    ),
    waiting(
        "message-ids",
        "an engine that goes on from an old snapshot synchronises message ids with strongSwan",
        message_ids::run,
    ),
    entry(
        "redirect-site",
        "a site follows its drained gateway to another one, connected or new",
        redirect::site,
    ),
    entry(
        "redirect",
        "a drained gateway sends its client to another one, connected or new",
        redirect::run,
    ),
    entry(
        "release",
        "lease release ends the tunnel at once, also for a deaf peer",
        endings::release,
    ),
    entry(
        "webhook",
        "a CI platform's signed webhook ends its job's tunnel at once; unsigned ones end nothing",
        hooks::run,
    ),
    entry("revoke", "cert revoke ends the tunnel at once and updates the CRL", endings::revoke),
    entry(
        "ocsp",
        "OCSP and CRLs for openssl and a strict strongSwan; revoked shows at once",
        status::ocsp,
    ),
    entry(
        "ocsp-in-ike",
        "strongSwan 6 that can ask nobody gets OCSP answers inside IKE",
        staple::ocsp,
    ),
    entry(
        "ocsp-in-ike-both",
        "the gateway asks strongSwan 6 for OCSP in IKE, too: absent, good, revoked",
        staple::both,
    ),
    entry(
        "wildcards",
        "two roles by the subjects of one CA's certificates, with allow lists of their own",
        choices::wildcards,
    ),
    entry(
        "two-certs",
        "a client with certificates of two CAs shows the one the gateway asks for",
        choices::two_certs,
    ),
    entry(
        "external-ca",
        "certificates of other CAs: rules, sub-CAs, path length, lists; revoked ends the tunnel",
        external::ca,
    ),
    entry(
        "external-ocsp",
        "an external responder: good, revoked, unknown, silent; soft and strict",
        external::ocsp,
    ),
    waiting(
        "lifetime",
        "the SA ends with its certificate; an expired one is refused",
        refusals::lifetime,
    ),
    waiting(
        "dead-peer",
        "a vanished client is noticed, may come back for a while, and has no access after that",
        endings::dead_peer,
    ),
    entry(
        "critical-extension",
        "a certificate with an unknown critical extension: refused as client's and as gateway's",
        critical::run,
    ),
    entry("stop", "SIGTERM: DELETE to every peer, nothing left behind", daemon::stop),
    entry("restart", "kill -9 and start: same CA, leases and addresses", daemon::restart),
    entry(
        "restart-tunnels",
        "kill -9 and stop --keep: the next start goes on with the tunnels",
        keep::run,
    ),
    entry("crash", "kill at every failpoint; everything acknowledged survives", crash::run),
    entry(
        "hostile",
        "truncated, oversized, critical, replayed and spoofed messages",
        hostile::messages,
    ),
    entry(
        "many-runners",
        "200 runners behind one address connect while a stranger returns 500 cookies a second",
        many::runners,
    ),
    entry(
        "flood",
        "up to 20,000 IKE_SA_INIT per second from spoofed addresses for a minute",
        hostile::flood,
    ),
    entry(
        "kernel-plane",
        "the kernel plane's own tests and the conformance suite, on a kernel with ESP",
        kernel::plane::tests,
    ),
    entry(
        "kernel-connect",
        "plain ESP: both families, the filter, a lying client, nothing in clear or left behind",
        kernel::tunnel::plain,
    ),
    entry(
        "kernel-mobike",
        "a client moves, also behind a NAT and out of it: the same SAs at both ends",
        kernel::moves::mobike,
    ),
    entry(
        "kernel-rekey",
        "both ends rekey at once under a ping every 10 ms; none is lost",
        kernel::rekey::storm,
    ),
    entry(
        "kernel-suites",
        "every ESP suite of the kernel plane, with 64-bit sequence numbers, too",
        kernel::tunnel::suites,
    ),
    entry(
        "kernel-nat",
        "ESP in UDP: two clients behind a NAT that forgets; one dies and comes back",
        kernel::nat::clients,
    ),
    entry(
        "kernel-endings",
        "release and revocation stop packets at once, though the peer hears nothing",
        kernel::endings::stops,
    ),
    entry(
        "kernel-mtu",
        "a narrow hop on the way, announced and silent: downloads arrive",
        kernel::mtu::narrow,
    ),
    entry(
        "kernel-restart",
        "kill -9 and stop --keep: packets pass while no gateway runs",
        kernel::restart::goes_on,
    ),
    entry(
        "kernel-switch",
        "killed and started with the userspace plane: nothing of the kernel plane is left",
        kernel::restart::other_plane,
    ),
];

/// Labs whose name begins so run in a guest, whose kernel has ESP.
const IN_GUEST: &str = "kernel-";

const fn entry(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Entry {
    Entry { name, about, run, load: Load::Works }
}

const fn waiting(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Entry {
    Entry { name, about, run, load: Load::Waits }
}

const fn counting(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Entry {
    Entry { name, about, run, load: Load::Counts }
}

/// Runs labs and prints one line each; returns how many passed and failed. Labs that load the
/// machine run one after another; those that mostly wait run beside them, and so does the guest
/// with the labs that need its kernel.
///
/// # Errors
/// When a name is unknown or the process may not build networks.
pub fn run(names: &[String], verbose: bool, keep_below: &Path) -> Result<(usize, usize)> {
    let mut chosen = Vec::new();
    for name in names {
        let entry = ALL.iter().find(|entry| entry.name == name);
        chosen.push(entry.ok_or_else(|| anyhow!("there is no lab `{name}`; see --list"))?);
    }
    if names.is_empty() {
        chosen.extend(ALL);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!("labs build network namespaces: run them as root"));
    }
    cleanup::sweep_leftovers();
    cleanup::on_signals()?;
    let for_guest = |entry: &&Entry| entry.name.starts_with(IN_GUEST) && !guest::inside();
    let (there, chosen): (Vec<&Entry>, Vec<&Entry>) = chosen.into_iter().partition(for_guest);
    let (mut passed, mut failed) = (0, 0);
    let mut count = |outcome: (usize, usize)| {
        passed += outcome.0;
        failed += outcome.1;
    };
    let tally = |ok: bool| if ok { (1, 0) } else { (0, 1) };
    // Nothing is sent: the last lab that counts packets hangs up.
    let (counting, quiet) = channel::<()>();
    std::thread::scope(|scope| {
        let mut beside = Vec::new();
        for entry in chosen.iter().filter(|entry| entry.load != Load::Works) {
            let counting = (entry.load == Load::Counts).then(|| counting.clone());
            beside.push(scope.spawn(move || {
                let ok = report(entry, verbose, keep_below);
                drop(counting);
                tally(ok)
            }));
        }
        drop(counting);
        if !there.is_empty() {
            beside.push(scope.spawn(|| {
                let quiet = quiet;
                let _ = quiet.recv();
                in_guest(&there, verbose, keep_below)
            }));
        }
        for entry in chosen.iter().filter(|entry| entry.load == Load::Works) {
            count(tally(report(entry, verbose, keep_below)));
        }
        for outcome in beside {
            count(outcome.join().unwrap_or((0, 1)));
        }
    });
    Ok((passed, failed))
}

/// Runs labs in one boot of the guest; returns how many passed and failed.
#[allow(clippy::print_stdout)] // a developer's terminal is this crate's user interface
fn in_guest(entries: &[&Entry], verbose: bool, keep_below: &Path) -> (usize, usize) {
    let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
    guest::run(&names, verbose, keep_below).unwrap_or_else(|error| {
        println!("FAIL  {:<18} {error:#}", names.join(" "));
        (0, names.len())
    })
}

/// Runs one lab and prints its line; true when it passed.
#[allow(clippy::print_stdout)] // a developer's terminal is this crate's user interface
fn report(entry: &Entry, verbose: bool, keep_below: &Path) -> bool {
    let started = Instant::now();
    let outcome = one(entry, verbose, keep_below);
    let seconds = started.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => println!("ok    {:<18} {seconds:>6.1} s", entry.name),
        Err((error, kept)) => {
            println!("FAIL  {:<18} {seconds:>6.1} s  {error:#}", entry.name);
            println!("      logs and captures: {}", kept.display());
            return false;
        }
    }
    true
}

fn one(entry: &Entry, verbose: bool, keep_below: &Path) -> Result<(), (anyhow::Error, PathBuf)> {
    let kept = keep_below.join(entry.name);
    let _ = std::fs::remove_dir_all(&kept);
    let lab = Lab::new(entry.name, verbose).map_err(|error| (error, kept.clone()))?;
    let run = || (entry.run)(&lab).and_then(|()| lab.leaks().verdict());
    let outcome = catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(panic.as_ref()))));
    outcome.map_err(|error| match lab.keep(&kept) {
        Ok(()) => (error, kept),
        Err(why) => (error.context(format!("logs not kept: {why:#}")), kept),
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}
