//! Replays the fuzz targets' corpus.

use std::path::PathBuf;

use ike::wire::{Message, NotifyType, PayloadType, Payloads, nat_detection_input};

use crate::samples::samples;
use crate::targets::TARGETS;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus")
}

#[test]
fn samples_are_the_committed_octets() {
    let bless = std::env::var_os("BLESS").is_some();
    for (target, name, octets) in samples() {
        let path = folder().join(target).join(name);
        assert!(!octets.is_empty() && octets.len() <= 1024, "{name}: {} octets", octets.len());
        if bless {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &octets).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(committed == octets, "{target}/{name} is encoded differently than before");
    }
}

#[test]
fn every_file_runs_through_its_target() {
    for (target, run) in TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(folder().join(target))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(files.len() >= 6, "{target} has {} files", files.len());
        for file in files {
            println!("{}", file.display());
            run(&std::fs::read(&file).unwrap());
        }
    }
}

#[test]
fn every_sample_runs_through_every_target_cut_and_changed() {
    for (_, _, octets) in samples() {
        for (_, run) in TARGETS {
            for cut in (0..octets.len()).step_by(octets.len() / 8 + 1) {
                run(&octets[..cut]);
                let mut changed = octets.clone();
                changed[cut] ^= 0x80;
                run(&changed);
            }
        }
    }
}

/// Messages captured from strongSwan 5.9.8: what it sends is canonical, and so is what is made of
/// it here.
#[test]
fn messages_of_another_implementation_are_encoded_octet_for_octet() {
    // RFC 7296 3.
    let read = |name: &str| std::fs::read(folder().join(name)).unwrap();
    for name in ["init_request", "init_response", "auth_request"] {
        let bytes = read(&format!("message/strongswan_{name}"));
        let message = Message::parse(&bytes).unwrap();
        println!("{}", message.detailed());
        assert_eq!(message.payloads.check_critical(), Ok(()));
        assert_eq!(message.encode().unwrap(), bytes, "{name}");
    }
    for name in ["auth_request", "auth_response", "delete"] {
        // The type of the first payload stands before the chain.
        let file = read(&format!("encrypted/strongswan_{name}"));
        let first = PayloadType::from(file[0]);
        let payloads = Payloads::parse(first, &file[1..]).unwrap();
        assert_eq!(payloads.encode().unwrap(), (first, file[1..].to_vec()), "{name}");
    }
}

#[test]
fn what_another_implementation_means_is_understood() {
    let file = std::fs::read(folder().join("encrypted/strongswan_auth_request")).unwrap();

    let payloads = Payloads::parse(PayloadType::from(file[0]), &file[1..]).unwrap();

    let id = payloads.id_i().unwrap().id.to_string();
    assert_eq!(id, "runner-17.builder.ci.example.com");
    let ts_r: Vec<_> = payloads.ts_r().unwrap().selectors.iter().map(ToString::to_string).collect();
    assert_eq!(ts_r, ["10.20.0.0-10.20.255.255/6/443", "fd77::-fd77::ffff:ffff:ffff:ffff"]);
    let cfg: Vec<_> =
        payloads.cp().unwrap().attributes.iter().map(|a| a.kind().to_string()).collect();
    assert_eq!(
        cfg,
        ["INTERNAL_IP4_ADDRESS", "INTERNAL_IP6_ADDRESS", "INTERNAL_IP4_DNS", "INTERNAL_IP6_DNS"]
    );
}

#[test]
fn nat_detection_hashes_what_another_implementation_hashes() {
    // RFC 7296 2.23; captured between 127.0.0.1 and 127.0.0.2, both at port 500.
    let file = std::fs::read(folder().join("message/strongswan_init_request")).unwrap();
    let message = Message::parse(&file).unwrap();
    let (spi_i, spi_r) = (message.header.spi_i, message.header.spi_r);

    for (kind, address) in [
        (NotifyType::NatDetectionSourceIp, [127, 0, 0, 1]),
        (NotifyType::NatDetectionDestinationIp, [127, 0, 0, 2]),
    ] {
        let input = nat_detection_input(spi_i, spi_r, address.into(), 500);
        let sha1 = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &input);
        assert_eq!(message.payloads.notify(kind).unwrap().data, sha1.as_ref(), "{kind}");
    }
}
