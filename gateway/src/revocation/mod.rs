//! Are the certificates of external CAs still good? Asks responders and fetches lists, beside the
//! handshakes and never in their way: each check is a task with a deadline, answers are shared and
//! kept, and everything is bounded.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pki::UnixTime;
use pki::validate::{RevocationList, Standing, StatusQuestion};
use tokio::sync::Semaphore;

use crate::config::Revocation;
use crate::fetch;
use crate::sys::{clock, reason};

/// Checks under way at most; more handshakes are told to try again.
const MAX_CHECKS: usize = 256;
/// The largest list fetched, octets.
const MAX_LIST: usize = 4 * 1024 * 1024;
/// The largest OCSP answer, octets.
const MAX_ANSWER: usize = 64 * 1024;
/// Answers kept at most.
const MAX_ANSWERS: usize = 4_096;
/// Octets of memory for lists at most.
const MAX_LISTS: usize = 64 * 1024 * 1024;
/// What a list that is kept takes beside its own memory and its place's name.
const KEPT: usize = 256;
/// A place that failed is left alone for this time, so that it delays one handshake and not each.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// Where to look and how much it matters, for the certificates of one external CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// What an unknown standing means.
    pub mode: Revocation,
    /// A responder instead of those that certificates name.
    pub ocsp: Option<String>,
    /// Lists beside those that certificates name.
    pub lists: Vec<ListPlace>,
    /// Patience with one place.
    pub timeout: Duration,
    /// An answer or list is asked for again after this time, even if it promises to be good for
    /// longer: so late a revocation may show.
    pub refresh: Duration,
}

/// Where a revocation list is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListPlace {
    /// Plain HTTP.
    Url(String),
    /// A file, PEM or DER, read again when it changes.
    File(PathBuf),
}

impl std::fmt::Display for ListPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What a check found out about a whole path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every certificate is good; or a standing is unknown and that is tolerated (then it says
    /// which and why).
    Good(Option<String>),
    /// A certificate is revoked.
    Revoked(String),
    /// A standing is unknown and must not be.
    Unknown(String),
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RevocationChecks {
    memory: Arc<Mutex<Memory>>,
    slots: Arc<Semaphore>,
    /// Held by the round of [`RevocationChecks::recheck`] under way.
    round: Arc<tokio::sync::Mutex<()>>,
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
struct Memory {
    /// By request, which names issuer and serial number.
    answers: BTreeMap<Vec<u8>, (UnixTime, Standing)>,
    lists: BTreeMap<ListPlace, Kept>,
    /// Places that failed, until when they are left alone, and how they failed.
    failed: BTreeMap<String, (UnixTime, String)>,
    /// One fetch of a place at a time.
    turns: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// A list that is kept.
#[derive(Debug, Clone)]
struct Kept {
    since: UnixTime,
    /// The file as it was then.
    stamp: Option<Stamp>,
    list: Arc<RevocationList>,
}

/// What changes when a file does: device, inode, length, and the instants of both its changes.
type Stamp = (u64, u64, u64, [i64; 4]);

impl RevocationChecks {
    /// Works on this runtime.
    pub fn new(runtime: tokio::runtime::Handle) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_CHECKS));
        Self { memory: Arc::default(), slots, round: Arc::default(), runtime }
    }

    /// Checks the certificates of a path and tells `done` what it found; false when too many
    /// checks are under way, and `done` is then never called.
    ///
    /// `stapled` are OCSP answers the peer brought along (RFC 4806).
    pub fn check(
        &self,
        sources: Sources,
        path: &[Vec<u8>],
        stapled: Vec<Vec<u8>>,
        done: impl FnOnce(Verdict) + Send + 'static,
    ) -> bool {
        if sources.mode == Revocation::Off {
            done(Verdict::Good(None));
            return true;
        }
        let questions = pki::validate::questions(path);
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { return false };
        let checks = self.clone();
        self.runtime.spawn(async move {
            let verdict = checks.verdict(Arc::new(sources), questions, Arc::new(stapled)).await;
            drop(slot);
            done(verdict);
        });
        true
    }

    /// Checks paths one after the other, as many as there are, and tells `revoked` each that has a
    /// revoked certificate. Takes no place that a handshake could need; a round that is not over
    /// when the next begins is left to end.
    pub fn recheck<T: Send + 'static>(
        &self,
        peers: Vec<(T, Sources, Vec<Vec<u8>>)>,
        revoked: impl Fn(T, String) + Send + 'static,
    ) {
        let Ok(round) = Arc::clone(&self.round).try_lock_owned() else { return };
        let checks = self.clone();
        self.runtime.spawn(async move {
            let _round = round;
            for (who, sources, path) in peers {
                if sources.mode == Revocation::Off {
                    continue;
                }
                let questions = pki::validate::questions(&path);
                let verdict = checks.verdict(Arc::new(sources), questions, Arc::default()).await;
                if let Verdict::Revoked(what) = verdict {
                    revoked(who, what);
                }
            }
        });
    }

    async fn verdict(
        &self,
        sources: Arc<Sources>,
        questions: Vec<StatusQuestion>,
        stapled: Arc<Vec<Vec<u8>>>,
    ) -> Verdict {
        let mode = sources.mode;
        let mut asked = tokio::task::JoinSet::new();
        for question in questions {
            let (checks, sources) = (self.clone(), Arc::clone(&sources));
            let stapled = Arc::clone(&stapled);
            asked.spawn(async move {
                let result = checks.standing(&sources, &question, &stapled).await;
                (question.subject, result)
            });
        }
        let mut unknown = Vec::new();
        let mut revoked = None;
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((_, Ok((Standing::Good { .. }, _)))) => {}
                Ok((subject, Ok((Standing::Revoked { at, reason }, source)))) => {
                    let what = format!("certificate {subject} was revoked at {at} ({reason})");
                    revoked = Some(format!("{what}, says {source}"));
                }
                Ok((subject, Err(why))) => unknown.push(format!("{subject}: {why}")),
                Err(error) => unknown.push(format!("a check failed: {error}")),
            }
        }
        unknown.sort();
        match (revoked, unknown.is_empty(), mode) {
            (Some(what), _, _) => Verdict::Revoked(what),
            (None, true, _) => Verdict::Good(None),
            (None, false, Revocation::Strict) => Verdict::Unknown(unknown.join("; ")),
            (None, false, _) => Verdict::Good(Some(unknown.join("; "))),
        }
    }

    /// The standing of one certificate and who says so: what the peer brought, a responder, the
    /// lists, in this order. A revocation counts whoever tells it first.
    async fn standing(
        &self,
        sources: &Sources,
        question: &StatusQuestion,
        stapled: &[Vec<u8>],
    ) -> Result<(Standing, String), String> {
        for answer in stapled {
            if let Ok(standing) = question.answer(answer, now()) {
                return Ok((standing, "the answer the peer brought along".to_owned()));
            }
        }
        let mut tried = Vec::new();
        let responders = match &sources.ocsp {
            Some(url) => std::slice::from_ref(url),
            None => question.ocsp.as_slice(),
        };
        for url in responders {
            match self.ask(url, question, sources).await {
                Ok(standing) => return Ok((standing, format!("the OCSP responder {url}"))),
                Err(why) => tried.push(format!("OCSP {url}: {why}")),
            }
        }
        let named = question.crl.iter().cloned().map(ListPlace::Url);
        for place in sources.lists.iter().cloned().chain(named) {
            let list = match &place {
                ListPlace::Url(url) => self.fetched(url, sources).await,
                ListPlace::File(path) => self.read(path).await,
            };
            let judged = list
                .and_then(|list| question.listed(&list, now()).map_err(|error| error.to_string()));
            match judged {
                Ok(standing) => return Ok((standing, format!("the list {place}"))),
                Err(why) => tried.push(format!("list {place}: {why}")),
            }
        }
        if tried.is_empty() {
            return Err("it names neither a responder nor a list".to_owned());
        }
        Err(tried.join(", "))
    }

    async fn ask(
        &self,
        url: &str,
        question: &StatusQuestion,
        sources: &Sources,
    ) -> Result<Standing, String> {
        let request = question.request().map_err(|error| error.to_string())?;
        let kept = || {
            let memory = self.memory();
            memory.answers.get(&request).filter(|(until, _)| now() < *until).map(|(_, s)| s.clone())
        };
        if let Some(standing) = kept() {
            return Ok(standing);
        }
        let turn = self.turn(&format!("{url} {}", question.serial));
        let _turn = turn.lock().await;
        if let Some(standing) = kept() {
            return Ok(standing);
        }
        self.left_alone(url)?;
        let fetched = fetch::fetch(url, Some(request.clone()), MAX_ANSWER, sources.timeout).await;
        let answer = fetched.map_err(|why| self.failed(url, why))?;
        let standing = question.answer(&answer, now()).map_err(|error| error.to_string())?;
        let until = match &standing {
            Standing::Good { until } => (*until).min(now().plus(sources.refresh)),
            Standing::Revoked { .. } => now().plus(sources.refresh),
        };
        let mut memory = self.memory();
        if memory.answers.len() >= MAX_ANSWERS {
            memory.answers.retain(|_, (until, _)| now() < *until);
        }
        if memory.answers.len() < MAX_ANSWERS {
            memory.answers.insert(request, (until, standing.clone()));
        }
        Ok(standing)
    }

    async fn fetched(&self, url: &str, sources: &Sources) -> Result<Arc<RevocationList>, String> {
        let place = ListPlace::Url(url.to_owned());
        let kept = |at_most: Option<Duration>| {
            let Kept { since, list, .. } = self.memory().lists.get(&place)?.clone();
            let good = list.next_update().is_some_and(|until| now() < until);
            let fresh = at_most.is_none_or(|age| now() < since.plus(age));
            (good && fresh).then_some(list)
        };
        if let Some(list) = kept(Some(sources.refresh)) {
            return Ok(list);
        }
        let turn = self.turn(url);
        let _turn = turn.lock().await;
        if let Some(list) = kept(Some(sources.refresh)) {
            return Ok(list);
        }
        let fetched = match self.left_alone(url) {
            Ok(()) => fetch::fetch(url, None, MAX_LIST, sources.timeout).await,
            Err(why) => Err(why),
        };
        match fetched {
            Ok(octets) => {
                let list = Arc::new(parse(octets)?);
                self.keep(place, None, &list);
                Ok(list)
            }
            // The one that is there counts until its own end.
            Err(why) => kept(None).ok_or_else(|| self.failed(url, why)),
        }
    }

    /// The list of a file, as the file is now.
    async fn read(&self, path: &Path) -> Result<Arc<RevocationList>, String> {
        let place = ListPlace::File(path.to_owned());
        let turn = self.turn(&place.to_string());
        // One reader of a file at a time: the others find what it read.
        let _turn = turn.lock().await;
        let kept = self.memory().lists.get(&place).cloned();
        let path = path.to_owned();
        let read = tokio::task::spawn_blocking(move || read_file(&path, kept)).await;
        let (stamp, list) = read.map_err(|error| error.to_string())??;
        self.keep(place, Some(stamp), &list);
        Ok(list)
    }

    /// The oldest give way until there is room.
    fn keep(&self, place: ListPlace, stamp: Option<Stamp>, list: &Arc<RevocationList>) {
        let size =
            |place: &ListPlace, list: &RevocationList| KEPT + place.to_string().len() + list.size();
        let mut memory = self.memory();
        memory.lists.remove(&place);
        let mut held: usize =
            memory.lists.iter().map(|(place, kept)| size(place, &kept.list)).sum();
        let needed = size(&place, list);
        while held + needed > MAX_LISTS {
            let oldest = memory.lists.iter().min_by_key(|(_, kept)| kept.since);
            let Some((oldest, freed)) =
                oldest.map(|(place, kept)| (place.clone(), size(place, &kept.list)))
            else {
                // Larger than all room there is: it serves this once.
                return;
            };
            memory.lists.remove(&oldest);
            held -= freed;
        }
        memory.lists.insert(place, Kept { since: now(), stamp, list: Arc::clone(list) });
    }

    fn left_alone(&self, url: &str) -> Result<(), String> {
        match self.memory().failed.get(url) {
            Some((until, why)) if now() < *until => Err(format!("{why} (a moment ago)")),
            _ => Ok(()),
        }
    }

    /// Remembers that a place failed.
    fn failed(&self, url: &str, why: String) -> String {
        let mut memory = self.memory();
        memory.failed.retain(|_, (until, _)| now() < *until);
        if memory.failed.len() < MAX_ANSWERS && !why.ends_with("(a moment ago)") {
            memory.failed.insert(url.to_owned(), (now().plus(LEFT_ALONE), why.clone()));
        }
        why
    }

    fn turn(&self, place: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut memory = self.memory();
        // Turns nobody waits for are forgotten.
        memory.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(memory.turns.entry(place.to_owned()).or_default())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The list in a file, PEM or DER; the one that is kept if the file is as it was.
fn read_file(path: &Path, kept: Option<Kept>) -> Result<(Stamp, Arc<RevocationList>), String> {
    let file = std::fs::File::open(path).map_err(|error| reason(&error))?;
    let metadata = file.metadata().map_err(|error| reason(&error))?;
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    let stamp = (metadata.dev(), metadata.ino(), metadata.len(), times);
    if let Some(kept) = kept.filter(|kept| kept.stamp == Some(stamp)) {
        return Ok((stamp, kept.list));
    }
    let mut octets = Vec::new();
    let most = u64::try_from(MAX_LIST).unwrap_or(u64::MAX);
    file.take(most + 1).read_to_end(&mut octets).map_err(|error| reason(&error))?;
    if octets.len() > MAX_LIST {
        return Err(format!(
            "the file has more than {MAX_LIST} octets: have the CA divide its list (issuing \
             distribution points), or give a responder with `ocsp`"
        ));
    }
    Ok((stamp, Arc::new(parse(octets)?)))
}

fn parse(octets: Vec<u8>) -> Result<RevocationList, String> {
    let der = match octets.starts_with(b"-----BEGIN") {
        true => {
            let (_, pem) = x509_parser::pem::parse_x509_pem(&octets)
                .map_err(|_| "the PEM does not parse".to_owned())?;
            pem.contents
        }
        false => octets,
    };
    RevocationList::parse(der).map_err(|error| error.to_string())
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

#[cfg(test)]
mod tests;
