//! One thread per PKCS#11 module: modules block, and not every one of them likes several threads.
//!
//! Whoever waits for a token waits a bounded time; a module that hangs holds up nothing but what
//! needs a signature of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::library::Library;
use super::{TokenKey, TokenUri, Wanted};
use crate::error::Error;
use crate::signer::SignatureScheme;

/// A token that signs slower than this is as good as away.
const SIGNING: Duration = Duration::from_secs(20);
/// Tokens make RSA keys slowly.
const MAKING: Duration = Duration::from_secs(180);
/// Requests that may wait for a module.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce(&mut Library) + Send>;

/// The threads, by module. A module is initialised once in a process (PKCS#11 5.4), so its thread
/// lives as long.
static WORKERS: Mutex<BTreeMap<PathBuf, SyncSender<Job>>> = Mutex::new(BTreeMap::new());

pub(super) fn take_or_make(uri: &TokenUri, wanted: Wanted) -> Result<TokenKey, Error> {
    let at = uri.clone();
    run(uri, MAKING, move |library| library.take_or_make(&at, &wanted))
}

pub(super) fn sign(
    uri: &TokenUri,
    key: &TokenKey,
    scheme: SignatureScheme,
    message: &[u8],
) -> Result<Vec<u8>, Error> {
    let (at, key, message) = (uri.clone(), key.clone(), message.to_vec());
    run(uri, SIGNING, move |library| library.sign(&at, &key, scheme, &message))
}

pub(super) fn probe(uri: &TokenUri, key: &TokenKey) -> Result<(), Error> {
    let (at, key) = (uri.clone(), key.clone());
    run(uri, SIGNING, move |library| library.probe(&at, &key))
}

fn run<T: Send + 'static>(
    uri: &TokenUri,
    patience: Duration,
    work: impl FnOnce(&mut Library) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let slow = || {
        Error::Token(format!(
            "{} did not answer within {} s: look at the device and its module {}",
            uri.token_name(),
            patience.as_secs(),
            uri.module.display()
        ))
    };
    let (reply, answer) = sync_channel(1);
    let job: Job = Box::new(move |library| {
        // Whoever asked may have given up.
        let _ = reply.send(work(library));
    });
    worker(&uri.module)?.try_send(job).map_err(|_| slow())?;
    match answer.recv_timeout(patience) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(slow()),
    }
}

fn worker(module: &Path) -> Result<SyncSender<Job>, Error> {
    let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(worker) = workers.get(module) {
        return Ok(worker.clone());
    }
    let (sender, jobs) = sync_channel::<Job>(QUEUE);
    let mut library = Library::new(module.to_owned());
    std::thread::Builder::new()
        .name("pkcs11".to_owned())
        .spawn(move || {
            while let Ok(job) = jobs.recv() {
                job(&mut library);
            }
        })
        .map_err(|_| Error::Token("cannot start a thread for the PKCS#11 module".to_owned()))?;
    workers.insert(module.to_owned(), sender.clone());
    Ok(sender)
}
