//! A stranger with a real address, who may therefore return cookies, and does nothing else: each
//! cookie costs the gateway a half-open IKE SA.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use ike::wire::{Message, Notify, NotifyType, Payload};

use super::message::{Dice, sa_init};

/// Time between two bursts.
const TICK: Duration = Duration::from_millis(2);

/// Requests remembered until their cookie comes.
const WINDOW: usize = 1024;

/// What the stranger did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Requests without a cookie sent.
    pub asked: u64,
    /// Cookies returned.
    pub returned: u64,
    /// Requests answered with a key exchange.
    pub half_open: u64,
    /// How long it lasted.
    pub lasted: Duration,
}

/// Asks for `rate` cookies per second and returns each, until `stop`, at most `limit`.
///
/// # Errors
/// When the socket refuses.
pub fn run(
    socket: &UdpSocket,
    target: SocketAddr,
    rate: u32,
    limit: Duration,
    stop: &AtomicBool,
) -> Result<Done> {
    socket.set_nonblocking(true)?;
    let mut dice = Dice::new(7);
    let mut asked: std::collections::VecDeque<Vec<u8>> = std::collections::VecDeque::new();
    let mut done = Done::default();
    let started = Instant::now();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) && started.elapsed() < limit {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while done.asked < due {
            let request = sa_init(&mut dice);
            // A full send buffer loses a request as a network does.
            let _ = socket.send_to(&request, target);
            asked.push_back(request);
            if asked.len() > WINDOW {
                asked.pop_front();
            }
            done.asked += 1;
        }
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let Ok(answer) = Message::parse(buffer.get(..length).unwrap_or_default()) else {
                continue;
            };
            let Some(cookie) = answer.payloads.notify(NotifyType::Cookie) else {
                done.half_open += u64::from(answer.payloads.ke().is_some());
                continue;
            };
            let spi = answer.header.spi_i.0.to_be_bytes();
            let request = asked.iter().find(|request| request.starts_with(&spi));
            let Some(Ok(mut request)) = request.map(|bytes| Message::parse(bytes)) else {
                continue;
            };
            request.payloads.push_front(Payload::Notify(Notify::cookie(cookie.data.clone())));
            if let Ok(bytes) = request.encode() {
                let _ = socket.send_to(&bytes, target);
                done.returned += 1;
            }
        }
        std::thread::sleep(TICK);
    }
    done.lasted = started.elapsed();
    Ok(done)
}
