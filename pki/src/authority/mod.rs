//! The facade: one open authority over one store (`directory`: the files behind it; `access`: what a
//! peer may; `certificates` and `trail`: what is asked of it about both).

mod access;
mod certificates;
mod directory;
mod trail;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ipnet::IpNet;
use zeroize::Zeroizing;

pub use access::{Access, AccessError};
pub(crate) use directory::{DATABASE, StateDirectory};

use crate::audit::{self, Actor, AuditEvent};
use crate::ca::{Ca, CaRecord, Maker};
use crate::crl::Lists;
use crate::enrol::Limiter;
use crate::enrol::jwt::{Keyring, Reviews};
use crate::enrol::refused::RefusedTokens;
use crate::entropy::Entropy;
use crate::error::Error;
use crate::failpoint;
use crate::lease::pool::{AddressBook, gateway_address};
use crate::ocsp;
use crate::profile::{Options, Settings};
use crate::record::{self, key};
use crate::rollback::Standing;
use crate::seal::Sealer;
use crate::signer::SharedSigner;
use crate::store::{Outcome, Store, Txn};
use crate::time::UnixTime;

/// What happened when the authority was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// The CA was created just now: this is the first start.
    pub created_ca: bool,
    /// The sealing key lies beside the state it seals; `status` should say so.
    pub seal_key_beside_state: bool,
    /// The end of the audit trail was not as this program had left it: `audit verify` says more.
    pub broken_trail: bool,
    /// The store had gone back in time and got so many later changes again from its journal.
    pub replayed: Option<usize>,
    /// Places of the revocation journal that were damaged and written anew from the other one; what
    /// was there lies beside it as `.damaged`.
    pub mended_journals: Vec<PathBuf>,
    /// Leases that were active or lost when the last process ended, and are lost from now on.
    pub orphaned: usize,
}

/// The certificate authority with its leases, tokens and revocations.
///
/// Methods take `&self` and may be called from several threads; concurrent enrolments share
/// commits. None of them reads a clock. Lease operations are in `lease::book`, enrolment in
/// `enrol`, and so on: this file holds what they share.
#[derive(Debug)]
pub struct Authority {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sealer: Sealer,
    pub(crate) addresses: Mutex<AddressBook>,
    pub(crate) refused: Mutex<RefusedTokens>,
    /// Rates of enrolment so far.
    pub(crate) limiter: Mutex<Limiter>,
    pub(crate) ocsp: Mutex<ocsp::Memory>,
    /// When this process last signed the audit trail.
    /// When the trail was signed last, and up to which record.
    pub(crate) last_checkpoint: Mutex<Option<(UnixTime, u64)>>,
    pub(crate) lists: Lists,
    pub(crate) keyring: Mutex<Keyring>,
    /// What clusters said of tokens a moment ago.
    pub(crate) reviews: Mutex<Reviews>,
    ca: RwLock<Arc<Ca>>,
    /// Held while the CA changes, so that what is in use is what was stored last.
    pub(crate) ca_turn: Mutex<()>,
    /// Held by whoever writes down a lease that waits for an operator.
    pub(crate) pending_turn: Mutex<()>,
    settings: RwLock<Arc<Settings>>,
    /// The policy in force, by its number.
    pub(crate) policy: AtomicU64,
    /// Why nothing is issued.
    held: RwLock<Option<String>>,
    entropy: Mutex<Randomness>,
    /// Where pruning goes on among the tokens.
    pub(crate) pruned_to: Mutex<Option<String>>,
    /// The same among the identities of key holders.
    pub(crate) pruned_holders_to: Mutex<Option<String>>,
    /// The same among the addresses.
    pub(crate) pruned_addresses_to: Mutex<Option<String>>,
    /// RSA keys that are being made for clients.
    pub(crate) rsa_makers: AtomicUsize,
    /// How far the audit trail was looked at for what may be forgotten.
    pub(crate) audit_looked: Mutex<audit::prune::Looked>,
    /// One turnstile for every sixteenth token.
    turns: [Mutex<()>; 16],
    /// The same for jobs, and for roles that have a limit.
    job_turns: [Mutex<()>; 16],
    role_turns: [Mutex<()>; 16],
    startup: Startup,
    /// Held while the process lives: one process per state directory.
    lock: Option<std::fs::File>,
}

struct Randomness(Box<dyn Entropy>);

/// Draws from an authority's entropy, each time for itself: making an RSA key in between holds up
/// nobody else.
pub(crate) struct Draws<'a>(pub(crate) &'a Authority);

impl Entropy for Draws<'_> {
    fn fill(&mut self, to: &mut [u8]) -> Result<(), Error> {
        self.0.with_entropy(|entropy| entropy.fill(to))
    }
}

impl std::fmt::Debug for Randomness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Randomness")
    }
}

/// What is sealed to recognise the sealing key: it also says that the ends of logs are sealed.
const MARK: &[u8] = b"runnel 2";

/// The same of versions that did not seal the ends of logs.
const MARK_BEFORE_SEALS: &[u8] = b"runnel";

impl Authority {
    /// Opens the state directory, creating it, its keys and the CA at the first start.
    ///
    /// Leases that were active when the last process ended become lost (their tunnels died with
    /// it); a gateway that restores tunnels calls [`connected`](Self::connected) for them.
    ///
    /// # Errors
    /// One sentence saying what is wrong and what to do; nothing half-created is left behind.
    pub fn open(state_dir: &Path, mut options: Options, now: UnixTime) -> Result<Self, Error> {
        options.settings.validate()?;
        let state = StateDirectory::open(state_dir, &mut options, now)?;
        Self::over(state, options, now)
    }

    /// Opens over an opened state directory.
    pub(crate) fn over(
        state: StateDirectory,
        options: Options,
        now: UnixTime,
    ) -> Result<Self, Error> {
        let mut authority = Self::over_resting(state, options, now)?;
        authority.startup.orphaned = authority.orphan_active(now)?;
        // The configuration may have been changed while no gateway ran.
        authority.retime()?;
        Ok(authority)
    }

    /// The same without a gateway that starts: leases stay as its end left them.
    pub(crate) fn over_resting(
        state: StateDirectory,
        options: Options,
        now: UnixTime,
    ) -> Result<Self, Error> {
        let StateDirectory { path, store, key, key_beside, standing, mended, lock } = state;
        let mut authority = Self::resting(Arc::new(store), &key, options, now)?;
        directory::sync(&path)?;
        authority.startup.seal_key_beside_state = key_beside;
        authority.startup.mended_journals = mended;
        authority.lock = Some(lock);
        if let Standing::Replayed(changes) = standing {
            authority.startup.replayed = Some(changes);
        }
        authority.finish_replay(now)?;
        Ok(authority)
    }

    /// What is kept to recognise the sealing key.
    pub(crate) fn mark(sealer: &Sealer, entropy: &mut dyn Entropy) -> Result<Vec<u8>, Error> {
        sealer.seal(key::SEAL_CHECK, MARK, entropy)
    }

    /// Opens over a given store and sealing key; used by tests and by other backends.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_store(
        store: Arc<dyn Store>,
        seal_key: &[u8; 32],
        options: Options,
        now: UnixTime,
    ) -> Result<Self, Error> {
        let mut authority = Self::resting(store, seal_key, options, now)?;
        authority.startup.orphaned = authority.orphan_active(now)?;
        Ok(authority)
    }

    fn resting(
        store: Arc<dyn Store>,
        seal_key: &[u8; 32],
        mut options: Options,
        now: UnixTime,
    ) -> Result<Self, Error> {
        options.settings.validate()?;
        let sealer = Sealer::new(seal_key)?.with_token(options.token.clone());
        // With another key than the right one nothing is sealed anew: that is refused first.
        let mark = match store.get(key::SEAL_CHECK)? {
            Some(check) => Some((check.revision, sealer.open(key::SEAL_CHECK, &check.value)?)),
            None => None,
        };
        let expected: &[&str] = if mark.is_some() { &[audit::LOG] } else { &[] };
        // What the file says of its own version, whoever can write it may change; not this.
        let before_seals =
            mark.filter(|(_, mark)| mark.as_slice() == MARK_BEFORE_SEALS).map(|(at, _)| at);
        let adopt = before_seals.is_some();
        let broken_trail = !store.seal_logs(sealer.log_seal(), expected, adopt)?.is_empty();
        if let Some(revision) = before_seals {
            // After the ends: a start that is interrupted here is repeated.
            let mark = sealer.seal(key::SEAL_CHECK, MARK, options.entropy.as_mut())?;
            let mut txn = Txn::new();
            txn.at(key::SEAL_CHECK, revision).put(key::SEAL_CHECK, mark);
            store.transact(txn)?;
        }
        let (ca, created_ca) = load_or_create_ca(store.as_ref(), &sealer, &mut options, now)?;
        let mut addresses = AddressBook::load(store.as_ref())?;
        addresses.configure(&options.settings.pools);
        let policy = audit::policy::current(store.as_ref())?;
        let authority = Self {
            store,
            sealer,
            addresses: Mutex::new(addresses),
            refused: Mutex::default(),
            limiter: Mutex::default(),
            ocsp: Mutex::default(),
            last_checkpoint: Mutex::default(),
            lists: Lists::default(),
            keyring: Mutex::default(),
            reviews: Mutex::default(),
            ca: RwLock::new(Arc::new(ca)),
            ca_turn: Mutex::default(),
            pending_turn: Mutex::default(),
            settings: RwLock::new(Arc::new(options.settings)),
            policy: AtomicU64::new(policy),
            held: RwLock::default(),
            entropy: Mutex::new(Randomness(options.entropy)),
            pruned_to: Mutex::default(),
            pruned_holders_to: Mutex::default(),
            pruned_addresses_to: Mutex::default(),
            audit_looked: Mutex::default(),
            turns: Default::default(),
            rsa_makers: AtomicUsize::new(0),
            job_turns: Default::default(),
            role_turns: Default::default(),
            startup: Startup { created_ca, broken_trail, ..Startup::default() },
            lock: None,
        };
        authority.record_cas()?;
        Ok(authority)
    }

    /// What happened when the authority was opened.
    pub fn startup(&self) -> &Startup {
        &self.startup
    }

    /// Whether this process holds the state directory's lock.
    pub fn is_exclusive(&self) -> bool {
        self.lock.is_some()
    }

    /// Replaces the settings. Leases keep their addresses; other periods hold at once for those
    /// that live already, counted from when they came into their state.
    ///
    /// # Errors
    /// When the settings cannot work; the old ones then stay. When the store fails: leases may then
    /// keep deadlines by the old periods.
    pub fn reconfigure(&self, settings: Settings) -> Result<(), Error> {
        settings.validate()?;
        lock(&self.addresses).configure(&settings.pools);
        lock(&self.keyring).configure(&settings.issuers);
        let timers = settings.timers;
        let before = {
            let mut current = self.settings.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::new(settings))
        };
        if before.timers != timers {
            self.retime()?;
        }
        Ok(())
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens and prolongs no lease while there is a reason not to: the audit trail cannot be written
    /// where it must be. `None` goes on.
    pub fn hold_issuance(&self, reason: Option<String>) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Whether leases may be opened and prolonged.
    ///
    /// # Errors
    /// [`Error::Held`] with the reason.
    pub(crate) fn may_issue(&self) -> Result<(), Error> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map_or(Ok(()), |reason| Err(Error::Held(reason.clone())))
    }

    /// Whether leases with certificates of ours may be opened and prolonged.
    ///
    /// # Errors
    /// As [`may_issue`](Self::may_issue), and [`Error::IssuingRevoked`].
    pub(crate) fn may_certify(&self) -> Result<(), Error> {
        if self.ca().current().listed {
            return Err(Error::IssuingRevoked);
        }
        self.may_issue()
    }

    /// A secret of 256 bits that outlives the process, by its name: made of the sealing key, so that
    /// it lies nowhere.
    pub fn secret(&self, name: &str) -> Zeroizing<[u8; 32]> {
        self.sealer.secret(name)
    }

    /// The gateway's own address in each network of a pool, with the network's prefix length.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such pool.
    pub fn gateway_addresses(&self, pool: &str) -> Result<Vec<IpNet>, Error> {
        let settings = self.settings();
        let config = settings.pools.get(pool).ok_or_else(|| Error::not_found("pool", pool))?;
        Ok(config.networks.iter().map(gateway_address).collect())
    }

    /// The key of a root by its short name, opened for one use.
    pub(crate) fn root_signer(&self, root_id: &str) -> Result<SharedSigner, Error> {
        if let Some(signer) = self.ca().root_of(root_id).and_then(|root| root.token.clone()) {
            return Ok(signer);
        }
        let stored = record::read::<CaRecord>(self.store.as_ref(), key::CA)?
            .ok_or_else(|| Error::not_found("record", key::CA))?;
        stored.value.open_root(root_id, &self.sealer)
    }

    /// Takes a changed CA into use.
    pub(crate) fn use_ca(&self, ca: Ca) {
        self.lists.retain(|id| {
            let issuing = ca.issuing.iter().map(|issuing| &issuing.id);
            issuing.chain(ca.roots.iter().map(|root| &root.id)).any(|known| known == id)
        });
        *self.ca.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ca);
    }

    pub(crate) fn ca(&self) -> Arc<Ca> {
        Arc::clone(&self.ca.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn with_entropy<T>(
        &self,
        draw: impl FnOnce(&mut dyn Entropy) -> Result<T, Error>,
    ) -> Result<T, Error> {
        draw(lock(&self.entropy).0.as_mut())
    }

    /// Waits until nobody else is spending this token.
    pub(crate) fn token_turn(&self, token: &str) -> Option<MutexGuard<'_, ()>> {
        turn(&self.turns, token)
    }

    /// Waits until nobody else opens a lease of this job. After the token's turn.
    pub(crate) fn job_turn(&self, job: &str) -> Option<MutexGuard<'_, ()>> {
        turn(&self.job_turns, job)
    }

    /// Waits until nobody else opens a lease of this role. After the job's turn.
    pub(crate) fn role_turn(&self, role: &str) -> Option<MutexGuard<'_, ()>> {
        turn(&self.role_turns, role)
    }
}

/// Waits for one of the turnstiles, always the same for one name.
fn turn<'a>(turns: &'a [Mutex<()>], name: &str) -> Option<MutexGuard<'a, ()>> {
    let sum = name.bytes().take(6).fold(0usize, |sum, byte| sum * 31 + usize::from(byte));
    turns.get(sum % turns.len()).map(lock)
}

/// A poisoned lock still guards consistent data: no section here panics half-way.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load_or_create_ca(
    store: &dyn Store,
    sealer: &Sealer,
    options: &mut Options,
    now: UnixTime,
) -> Result<(Ca, bool), Error> {
    for _ in 0..2 {
        if let Some(stored) = record::read::<CaRecord>(store, key::CA)? {
            let check = store.get(key::SEAL_CHECK)?.map(|entry| entry.value).unwrap_or_default();
            sealer.open(key::SEAL_CHECK, &check)?;
            return Ok((stored.value.load(sealer)?, false));
        }
        let entropy = options.entropy.as_mut();
        let taken = Vec::new();
        let settings = &options.settings;
        let maker = Maker { settings, sealer, entropy: &mut *entropy, now, taken };
        let ca = CaRecord::create(maker, options.key)?;
        let check = Authority::mark(sealer, entropy)?;
        let mut txn = Txn::new();
        txn.absent(key::CA).put(key::CA, record::encode(&ca)).put(key::SEAL_CHECK, check);
        AuditEvent::new("ca.create", &Actor::System, now).record(&mut txn);
        failpoint::hit("ca.before_commit");
        if let Outcome::Committed(_) = store.transact(txn)? {
            failpoint::hit("ca.after_commit");
            return Ok((ca.load(sealer)?, true));
        }
        // Another process created it in between: load that one.
    }
    Err(Error::Contended("the CA"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal;
    use crate::store::SqliteStore;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn open(directory: &Path) -> Authority {
        Authority::open(directory, Options::new(Settings::new("example.com")), NOW).unwrap()
    }

    /// The state directory of a version before the seals.
    fn first_schema(directory: &Path) {
        drop(open(directory));
        let key = seal::read_key(&directory.join(seal::KEY_FILE)).unwrap();
        let store = SqliteStore::open(&directory.join(DATABASE)).unwrap();
        let mut options = Options::new(Settings::new("example.com"));
        let sealer = Sealer::new(&key).unwrap();
        let mark = sealer.seal(key::SEAL_CHECK, MARK_BEFORE_SEALS, options.entropy.as_mut());
        let mut txn = Txn::new();
        txn.put(key::SEAL_CHECK, mark.unwrap());
        store.transact(txn).unwrap();
        drop(store);
        let file = rusqlite::Connection::open(directory.join(DATABASE)).unwrap();
        file.execute_batch("DROP TABLE heads; PRAGMA user_version = 1").unwrap();
    }

    #[test]
    fn a_trail_of_the_first_schema_goes_on_and_is_sealed_once() {
        let directory = tempfile::tempdir().unwrap();
        first_schema(directory.path());
        // A start that ends between migration and seals is repeated.
        drop(SqliteStore::open(&directory.path().join(DATABASE)).unwrap());
        let authority = open(directory.path());
        assert!(!authority.startup().broken_trail);
        let report = authority.verify_audit().unwrap();
        assert!(report.is_sound() && report.sealed && report.last >= 1, "{report:?}");
        drop(authority);
        // From now on an end without its seal is somebody else's.
        let file = rusqlite::Connection::open(directory.path().join(DATABASE)).unwrap();
        file.execute_batch("UPDATE heads SET seal = x\'\'").unwrap();
        drop(file);
        assert!(open(directory.path()).startup().broken_trail);
    }
}
