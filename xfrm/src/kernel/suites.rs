//! Which ESP suites this kernel really has: it is asked to install each once.

use ring::rand::{SecureRandom, SystemRandom};

use super::encode::{self, Context, Half, Sequence};
use crate::error::PlaneError;
use crate::model::{
    Capabilities, ChildId, ChildSpec, EspSuite, Hosts, Limits, Mode, SaKeys, Selector, Spi,
};
use crate::netlink::{Netlink, Protocol, Refusal};

/// Suites the kernel installs now, best first; none when it has no ESP.
pub(super) fn supported(
    netlink: &mut Netlink,
    context: Context,
) -> Result<Vec<EspSuite>, PlaneError> {
    let mut suites = Vec::new();
    for suite in EspSuite::ALL {
        match attempt(netlink, context, suite, false)? {
            Ok(()) => suites.push(suite),
            Err(refusal) if refusal.errno == libc::EPERM => {
                return Err(refusal.into_error("install an SA"));
            }
            Err(_) => {}
        }
    }
    Ok(suites)
}

/// Suites the kernel has not, each with what to load for it.
pub fn missing_suites(capabilities: &Capabilities) -> Vec<String> {
    let modules = |suite| match suite {
        EspSuite::Aes256Gcm16 | EspSuite::Aes128Gcm16 => "gcm",
        EspSuite::ChaCha20Poly1305 => "chacha20poly1305",
        EspSuite::Aes256CbcSha256 | EspSuite::Aes128CbcSha256 => "cbc authencesn sha256_generic",
        EspSuite::Aes256CbcSha384 | EspSuite::Aes256CbcSha512 => "cbc authencesn sha512_generic",
    };
    let missing = EspSuite::ALL.into_iter().filter(|suite| !capabilities.suites.contains(suite));
    missing.map(|suite| format!("{} (`modprobe -a {}`)", suite.name(), modules(suite))).collect()
}

/// Installs and removes an AES-GCM SA over each outer family in the calling thread's network
/// namespace, for the probe.
pub(crate) fn try_esp() -> Result<(), PlaneError> {
    let mut netlink = Netlink::open(Protocol::Xfrm)?;
    let context = Context { if_id: 1, sa_dir: false, device: None };
    for ipv6 in [false, true] {
        let what =
            if ipv6 { "install an AES-GCM ESP SA over IPv6" } else { "install an AES-GCM ESP SA" };
        attempt(&mut netlink, context, EspSuite::Aes256Gcm16, ipv6)?
            .map_err(|refusal| refusal.into_error(what))?;
    }
    Ok(())
}

/// Installs a scratch SA between documentation addresses with a random key, and deletes it.
fn attempt(
    netlink: &mut Netlink,
    context: Context,
    suite: EspSuite,
    ipv6: bool,
) -> Result<Result<(), Refusal>, PlaneError> {
    let spec = scratch(suite, ipv6)?;
    let message = encode::new_sa(context, &spec, &spec.hosts, Half::In, &Sequence::default());
    if let Err(refusal) = netlink.try_request(message)? {
        return Ok(Err(refusal));
    }
    netlink
        .request("remove a scratch SA", encode::delete_sa(spec.hosts.local.ip(), spec.spi_in))?;
    Ok(Ok(()))
}

fn scratch(suite: EspSuite, ipv6: bool) -> Result<ChildSpec, PlaneError> {
    let random = SystemRandom::new();
    let fill = |length: usize| {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes).map(|()| bytes).map_err(|_| PlaneError::System {
            what: "cannot make a key".to_owned(),
            reason: "no randomness".to_owned(),
            fix: "check that getrandom(2) is permitted".to_owned(),
        })
    };
    let (encr, integ) = suite.key_lengths();
    let keys = SaKeys { encr: fill(encr)?, integ: fill(integ)? };
    let spi = fill(4)?.into_iter().fold(0, |spi, byte| spi << 8 | u32::from(byte));
    let hosts = if ipv6 {
        let host = |last| ([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 4500).into();
        Hosts { local: host(1), remote: host(2), encap: false }
    } else {
        let host = |last| ([192, 0, 2, last], 4500).into();
        Hosts { local: host(1), remote: host(2), encap: false }
    };
    let everything = Selector {
        start: [0, 0, 0, 0].into(),
        end: [255, 255, 255, 255].into(),
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
    };
    Ok(ChildSpec {
        id: ChildId(0),
        reqid: u32::MAX,
        spi_in: Spi(spi | 0x8000_0000),
        spi_out: Spi(spi | 0x8000_0000),
        suite,
        keys_in: keys.clone(),
        keys_out: keys,
        mode: Mode::Tunnel,
        hosts,
        local_selectors: Vec::new(),
        remote_selectors: vec![everything],
        esn: false,
        replay_window: 32,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: false,
    })
}
