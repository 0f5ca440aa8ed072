//! The revocation journal: what must not be forgotten when the store goes back in time.
//!
//! A store that is restored from a backup, or whose disk went back to a snapshot, knows nothing of
//! what was revoked, barred and spent since. So each such change is appended, in the order of the
//! store's revisions, to a file beside the store and, if there is a second place, to one there; both
//! are durable before the store commits it, and so before anybody is answered: what cannot be noted
//! does not happen. A start that finds the store behind its journal writes the changes into it again
//! before it does anything else.
//!
//! A line tells a promise until the store has committed it; then a mark follows, or the next line. A
//! start that finds a last line without either, and the store as it was before it, leaves it out: a
//! crash came between the two.
//!
//! Lines are chained with a key derived from the sealing key, so that only this gateway can have
//! written them. Revisions, and positions of the audit trail, are reserved in blocks: a store that
//! went back goes on above all that it may have used.

mod file;
mod place;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use file::{Line, Read};
use place::{End, Place};

use crate::error::Error;
use crate::failpoint;
use crate::record::key;
use crate::seal::SealKey;

/// The journal's file in the state directory.
pub(crate) const FILE: &str = "revocations.journal";
/// Revisions reserved at once.
const REVISIONS: u64 = 100_000;
/// Positions of the audit trail reserved at once: as many may be missing behind a restored trail.
const RECORDS: u64 = 1_000;
/// A block is renewed when this little of it is left; more than one group of commits takes.
const LEFT: u64 = 512;
/// A start rewrites a journal with more lines than this for each change that still counts.
const LINES_PER_FACT: usize = 4;
/// Fewer lines than these are never rewritten.
const FEW_LINES: usize = 1_000;

/// Keys whose changes are journaled: the CA itself, what is revoked, barred, spent or denied.
pub(crate) const JOURNALED: [&str; 12] = [
    key::CA,
    key::REVOKED,
    key::BARRED_SPKI,
    key::BARRED_RUN,
    key::TOKEN,
    key::JWT,
    key::JWT_DUE,
    key::JWT_FLOOR,
    key::HOLDER,
    key::SITE,
    key::PENDING,
    key::POLICY,
];

/// Of these a removal says that the time is over in which they mattered.
const ENDING: [&str; 5] = [key::REVOKED, key::TOKEN, key::JWT, key::JWT_DUE, key::PENDING];

/// Whether a key's changes are journaled.
pub(crate) fn is_journaled(key: &str) -> bool {
    JOURNALED.iter().any(|prefix| key.starts_with(prefix))
}

/// A key's new value; `None`: it was removed.
pub(crate) type Fact = (String, Option<Vec<u8>>);

/// What the operator can do when a place cannot be written.
pub(crate) const WRITE_HINT: &str =
    "make its place writable, or name another with journal in [pki]";

/// What was noted last and may have to be taken back.
#[derive(Debug)]
struct Before {
    ends: Vec<End>,
    last: u64,
    revisions: u64,
    records: u64,
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    key: ring::hmac::Key,
    places: Vec<Place>,
    epoch: String,
    /// The newest revision of a line.
    last: u64,
    revisions: u64,
    records: u64,
    /// What was before the last line, while the store has not committed what it says.
    before: Option<Before>,
}

/// What was found where the journal should be.
#[derive(Debug)]
pub(crate) struct Found {
    key: ring::hmac::Key,
    paths: Vec<PathBuf>,
    best: Option<Read>,
    /// All places say the same, and briefly.
    settled: bool,
    /// Where there is none.
    missing: Vec<PathBuf>,
    /// Where one is damaged that another place has whole.
    damaged: Vec<PathBuf>,
}

impl Found {
    /// Reads the journal at its places, the first of which is in the state directory. A place that is
    /// damaged does not count when another is whole and says more than what can be read of it.
    ///
    /// # Errors
    /// [`Error::Rollback`] when one is not this gateway's, or damaged other than at its end.
    pub(crate) fn look(paths: Vec<PathBuf>, seal_key: &SealKey) -> Result<Self, Error> {
        if let [first, others @ ..] = &paths[..]
            && let Some(same) = others.iter().find(|other| is_same(first, other))
        {
            return Err(Error::Invalid(format!(
                "journal in [pki] is {}, the state directory's own journal: name a file on another \
                 disk, so that one of them survives",
                same.display()
            )));
        }
        let root = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, seal_key.as_ref());
        let derived = ring::hmac::sign(&root, b"runnel: revocation journal");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref());
        let mut best: Option<Read> = None;
        let (mut ends, mut missing, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        for path in &paths {
            let Some(read) = file::read(path, &key)? else {
                ends.push(None);
                missing.push(path.clone());
                continue;
            };
            if read.damaged.is_some() {
                ends.push(None);
                damaged.push((path, read));
                continue;
            }
            ends.push(Some(read.end.clone()));
            if best.as_ref().is_none_or(|best| read.age() > best.age()) {
                best = Some(read);
            }
        }
        for (path, read) in &damaged {
            // It had more than what can be read of it.
            if best.as_ref().is_none_or(|best| best.age() <= read.age()) {
                return Err(file::strange(path, read.damaged.unwrap_or_default()));
            }
        }
        let same = ends.windows(2).all(|pair| pair.first() == pair.get(1));
        let brief = best
            .as_ref()
            .is_some_and(|read| read.lines < FEW_LINES.max(LINES_PER_FACT * read.facts.len()));
        let damaged = damaged.into_iter().map(|(path, _)| path.clone()).collect();
        Ok(Self { key, paths, best, settled: same && brief, missing, damaged })
    }

    /// Decides about a last line that nothing follows. A store at the revision before it has not
    /// committed it, unless it `went_back`; any other has, or has lost it.
    pub(crate) fn decide(&mut self, revision: u64, went_back: bool) {
        let Some(best) = &mut self.best else { return };
        let Some(base) = best.open_base() else { return };
        self.settled = false;
        match base == revision && !went_back {
            true => best.leave_out(),
            false => best.settle(),
        }
    }

    /// Which journal it is; `None` when there is none.
    pub(crate) fn epoch(&self) -> Option<&str> {
        self.best.as_ref().map(|read| read.epoch.as_str())
    }

    /// The newest revision it knows.
    pub(crate) fn last(&self) -> u64 {
        self.best.as_ref().map_or(0, |read| read.last)
    }

    /// Above these nothing was used: revisions, and positions of the audit trail.
    pub(crate) fn reserved(&self) -> (u64, u64) {
        self.best.as_ref().map_or((0, 0), |read| (read.revisions, read.records))
    }

    /// The places, the first of which is in the state directory.
    pub(crate) fn places(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Damaged places, which another place mends.
    pub(crate) fn damaged(&self) -> &[PathBuf] {
        &self.damaged
    }

    /// The places where there is none.
    pub(crate) fn missing(&self) -> &[PathBuf] {
        &self.missing
    }

    /// The changes after a revision, the older first.
    pub(crate) fn facts_after(&self, revision: u64) -> Vec<Fact> {
        let Some(best) = &self.best else { return Vec::new() };
        let mut facts: Vec<(u64, Fact)> = best
            .facts
            .iter()
            .filter(|(_, (at, _))| *at > revision)
            .map(|(key, (at, value))| (*at, (key.clone(), value.clone())))
            .collect();
        facts.sort_by_key(|(at, _)| *at);
        facts.into_iter().map(|(_, fact)| fact).collect()
    }

    /// The same places, as if there had been none.
    pub(crate) fn afresh(self) -> Self {
        Self { best: None, settled: false, ..self }
    }

    /// Opens it to be continued by a store at this revision; `epoch` names one that is made.
    pub(crate) fn open(self, epoch: &str, revision: u64, records: u64) -> Result<Journal, Error> {
        let Self { key, paths, best, settled, damaged, .. } = self;
        let failed = |path: &Path, cause: &std::io::Error| {
            Error::file("write the revocation journal", path, cause, WRITE_HINT)
        };
        let settled = settled && best.is_some();
        let read = best.unwrap_or_else(|| Read::new(epoch, revision, records));
        for path in damaged {
            // What it says is kept for whoever wants to know.
            let aside = path.with_extension("journal.damaged");
            std::fs::rename(&path, aside).map_err(|cause| failed(&path, &cause))?;
        }
        let written = (!settled).then(|| file::compact(&key, &read));
        let mut places = Vec::new();
        for path in paths {
            let place = match &written {
                Some(compacted) => Place::replace(&path, compacted),
                None => Place::go_on(&path, read.end.clone()),
            };
            places.push(place.map_err(|cause| failed(&path, &cause))?);
        }
        Ok(Journal {
            key,
            places,
            epoch: read.epoch,
            last: read.last,
            revisions: read.revisions,
            records: read.records,
            before: None,
        })
    }
}

/// Whether two names are of one file, which may not be there yet.
fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        // A name without a folder is in the working directory.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some(folder.join(path.file_name()?))
    };
    #[cfg(unix)]
    if let (Ok(one), Ok(other)) = (one.metadata(), other.metadata()) {
        use std::os::unix::fs::MetadataExt;
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    place(one).is_some_and(|one| place(other) == Some(one))
}

impl Journal {
    /// Which journal it is.
    pub(crate) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The newest revision it knows.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Notes what a store at revision `base` is about to commit, durably; `None`: what it has
    /// committed. [`committed`](Self::committed) or [`take_back`](Self::take_back) follows. Nothing is
    /// written while nothing is journaled and enough is reserved.
    ///
    /// # Errors
    /// The operating system's, with the place; the journal is then as it was.
    pub(crate) fn note(
        &mut self,
        base: Option<u64>,
        revision: u64,
        records: u64,
        facts: &[Fact],
    ) -> Result<(), String> {
        let revisions_last = revision + LEFT < self.revisions;
        let records_last = records + LEFT < self.records;
        if facts.is_empty() && revisions_last && records_last {
            return Ok(());
        }
        let before = Before {
            ends: self.places.iter().map(|place| place.end().clone()).collect(),
            last: self.last,
            revisions: self.revisions,
            records: self.records,
        };
        if !revisions_last {
            self.revisions = revision + REVISIONS;
        }
        if !records_last {
            self.records = records + RECORDS;
        }
        self.last = revision;
        let line = Line::new(revision, (self.revisions, self.records), base, facts);
        failpoint::hit("journal.before_write");
        let written = self.write(&line, true);
        failpoint::hit("journal.after_write");
        if written.is_ok() {
            self.before = base.is_some().then_some(before);
            return Ok(());
        }
        // Places went back by themselves.
        (self.last, self.revisions, self.records) = (before.last, before.revisions, before.records);
        match facts.is_empty() && revision < self.revisions && records <= self.records {
            // What is reserved is enough for now: the next one tries again.
            true => Ok(()),
            false => written,
        }
    }

    /// The store has committed what was noted.
    pub(crate) fn committed(&mut self) {
        if self.before.take().is_none() {
            return;
        }
        let mark = Line::new(self.last, (self.revisions, self.records), None, &[]);
        // Not durable: after a power cut the store itself says that it has committed. And where it
        // cannot be written, the next line says the same.
        if self.write(&mark, false).is_ok() {
            for place in &mut self.places {
                place.keep_short(&self.key);
            }
        }
    }

    /// The store has not committed what was noted.
    pub(crate) fn take_back(&mut self) {
        let Some(before) = self.before.take() else { return };
        (self.last, self.revisions, self.records) = (before.last, before.revisions, before.records);
        for (place, end) in self.places.iter_mut().zip(before.ends) {
            place.go_back(end);
        }
    }

    /// Writes a line to all places or to none.
    fn write(&mut self, line: &Line, durable: bool) -> Result<(), String> {
        let text = line.text();
        let ends: Vec<End> = self.places.iter().map(|place| place.end().clone()).collect();
        let key = &self.key;
        let written = self.places.iter_mut().try_for_each(|place| {
            place
                .write(key, &text, durable)
                .map_err(|cause| format!("{}: {cause}", place.path().display()))
        });
        if written.is_err() {
            for (place, end) in self.places.iter_mut().zip(ends) {
                place.go_back(end);
            }
        }
        written
    }

    /// Has a place fail at every write, as a full disk does, or work again.
    #[cfg(test)]
    pub(crate) fn set_full(&mut self, place: usize, full: bool) {
        if let Some(place) = self.places.get_mut(place) {
            place.set_full(full);
        }
    }
}
