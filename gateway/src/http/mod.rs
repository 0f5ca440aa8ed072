//! HTTP: enrolment over TLS, revocation status in the clear, and the page inside the tunnel.
//!
//! Own accept loop, HTTP/1.1 only: stock enrolment clients need header and body in one TLS write
//! with a length, and per-connection limits are ours to set.

mod api;
mod enrol;
mod est;
mod hooks;
mod page;
mod percent;
mod problem;
mod rate;
mod server;
mod status;
mod tls;
mod worded;

pub use api::{Api, ApiService, EndLeases, OPENAPI};
pub use enrol::EnrolService;
pub use est::EstService;
pub use hooks::{
    HookService, MAX_CONNECTIONS as MAX_HOOK_CONNECTIONS, MAX_RECEIVED, OPENAPI as HOOKS_OPENAPI,
};
pub use page::PageService;
pub use rate::{Limited, Rate};
pub use server::{Limits, Reply, Request, Service, serve};
pub use status::{STATUS_RATE, StatusService};
pub use tls::{CertificateSlot, acceptor, eap_config, public_acceptor};

use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

/// Requests of the public listeners that block a thread at once. The runtime has more threads for
/// blocking work than this, so whoever floods the listeners waits for his own: the operator's
/// requests over the admin socket find a free one.
pub const BLOCKING: usize = ENROLLING + STATUS;

/// Of those, what changes leases or reads them.
const ENROLLING: usize = 32;

/// Of those, questions about the status of certificates, which anybody may ask: they do not keep a
/// runner from enrolling.
const STATUS: usize = 8;

static PLACES: Semaphore = Semaphore::const_new(ENROLLING);
static STATUS_PLACES: Semaphore = Semaphore::const_new(STATUS);

/// Runs work for the public that blocks, when one of its places is free. What it writes into the
/// audit trail names the request.
async fn blocking<T: Send + 'static>(
    request: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let request = request.to_owned();
    blocking_in(&PLACES, move || pki::audit::for_request(&request, work)).await
}

/// The same for questions about status.
async fn blocking_status<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    blocking_in(&STATUS_PLACES, work).await
}

async fn blocking_in<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // It is never closed; without a place the work is done all the same.
    let place = places.acquire().await.ok();
    // The place goes with the work, not with this future: a client that hangs up ends the one but
    // not the other.
    spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::*;

    /// Longer than any machine needs for what is waited for.
    const PATIENCE: Duration = Duration::from_secs(60);

    type Work = Box<dyn FnOnce() + Send>;

    /// Whether one more thread serves while all of these places are taken and more want one.
    fn serves_while_taken(places: &'static Semaphore, all: usize, ask: impl Fn(Work)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(all + 1)
            .enable_all()
            .build()
            .unwrap();
        let (release, hold) = mpsc::channel::<()>();
        let hold = Arc::new(std::sync::Mutex::new(hold));
        runtime.block_on(async {
            for _ in 0..4 * all {
                let hold = Arc::clone(&hold);
                ask(Box::new(move || {
                    let _ = hold.lock().unwrap().recv();
                }));
            }
            let taken = async {
                while places.available_permits() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, taken).await.unwrap();
            let served = tokio::time::timeout(PATIENCE, spawn_blocking(|| 7)).await;
            assert_eq!(served.unwrap().unwrap(), 7);
        });
        drop(release);
    }

    #[test]
    fn questions_about_status_do_not_keep_anybody_from_enrolling() {
        serves_while_taken(&STATUS_PLACES, STATUS, |work| {
            tokio::spawn(blocking_status(work));
        });
    }

    #[test]
    fn the_operator_is_served_while_the_public_blocks_every_thread_it_may() {
        serves_while_taken(&PLACES, BLOCKING, |work| {
            tokio::spawn(async move { blocking("test", work).await });
        });
    }
}
