//! The revocation journal: what must not be forgotten when the store goes back in time.
//!
//! A store that is restored from a backup, or whose disk went back to a snapshot, knows nothing of
//! what was revoked, barred and spent since. So each such change is appended, in the order of the
//! store's revisions, to a file beside the store and, if there is a second place, to one there; both
//! are durable before anybody is answered. A start that finds the store behind its journal writes the
//! changes into it again before it does anything else.
//!
//! Lines are chained with a key derived from the sealing key, so that only this gateway can have
//! written them. Revisions, and positions of the audit trail, are reserved in blocks: a store that
//! went back goes on above all that it may have used.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::failpoint;
use crate::issue::hex;
use crate::record::key;
use crate::seal::{SealKey, sync_directory};

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

/// Keys whose changes are journaled: the CA itself, what is revoked, barred or spent.
pub(crate) const JOURNALED: [&str; 10] = [
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
];

/// Of these a removal says that the time is over in which they mattered.
const ENDING: [&str; 4] = [key::REVOKED, key::TOKEN, key::JWT, key::JWT_DUE];

/// Whether a key's changes are journaled.
pub(crate) fn is_journaled(key: &str) -> bool {
    JOURNALED.iter().any(|prefix| key.starts_with(prefix))
}

/// A key's new value; `None`: it was removed.
pub(crate) type Fact = (String, Option<Vec<u8>>);

/// One line.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Line {
    /// The store's revision.
    r: u64,
    /// The revisions below this one may have been used.
    c: u64,
    /// The positions of the audit trail up to this one may have been used.
    s: u64,
    /// Keys with their values in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    p: Vec<(String, Option<String>)>,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    runnel_journal: u32,
    epoch: String,
}

/// What a file says.
#[derive(Debug)]
struct Read {
    epoch: String,
    last: u64,
    revisions: u64,
    records: u64,
    facts: BTreeMap<String, (u64, Option<Vec<u8>>)>,
    lines: usize,
    mac: Vec<u8>,
    /// Octets up to the end of the last whole line.
    length: u64,
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    key: ring::hmac::Key,
    places: Vec<(PathBuf, File)>,
    epoch: String,
    mac: Vec<u8>,
    /// The newest revision of a line.
    last: u64,
    revisions: u64,
    records: u64,
    /// A line could not be written: what is missing is taken from the store first.
    pub(crate) behind: bool,
}

/// What was found where the journal should be.
#[derive(Debug)]
pub(crate) struct Found {
    key: ring::hmac::Key,
    paths: Vec<PathBuf>,
    best: Option<Read>,
    /// All places say the same, and briefly.
    settled: bool,
}

impl Found {
    /// Reads the journal at its places, the first of which is in the state directory.
    ///
    /// # Errors
    /// [`Error::Rollback`] when one is not this gateway's, or damaged other than at its end.
    pub(crate) fn look(paths: Vec<PathBuf>, seal_key: &SealKey) -> Result<Self, Error> {
        let root = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, seal_key.as_ref());
        let derived = ring::hmac::sign(&root, b"runnel: revocation journal");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref());
        let mut best: Option<Read> = None;
        let mut ends = Vec::new();
        for path in &paths {
            let Some(read) = read(path, &key)? else {
                ends.push(None);
                continue;
            };
            ends.push(Some((read.mac.clone(), read.length)));
            let newer = best.as_ref().is_none_or(|best| {
                (read.last, read.revisions, read.records)
                    > (best.last, best.revisions, best.records)
            });
            if newer {
                best = Some(read);
            }
        }
        let same = ends.windows(2).all(|pair| pair.first() == pair.get(1));
        let brief = best
            .as_ref()
            .is_some_and(|read| read.lines < FEW_LINES.max(LINES_PER_FACT * read.facts.len()));
        Ok(Self { key, paths, best, settled: same && brief })
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
        let Self { key, paths, best, settled } = self;
        let failed = |path: &Path, cause: &std::io::Error| {
            Error::file(
                "write the revocation journal",
                path,
                cause,
                "make its place writable, or name another with journal in [pki]",
            )
        };
        let fresh = best.is_none();
        let read = best.unwrap_or_else(|| Read {
            epoch: epoch.to_owned(),
            last: 0,
            revisions: revision,
            records,
            facts: BTreeMap::new(),
            lines: 0,
            mac: Vec::new(),
            length: 0,
        });
        let mut mac = read.mac.clone();
        if fresh || !settled {
            let (text, end) = compact(&key, &read);
            for path in &paths {
                replace(path, text.as_bytes()).map_err(|cause| failed(path, &cause))?;
            }
            mac = end;
        }
        let mut places = Vec::new();
        for path in paths {
            let file = OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|file| {
                    if settled && !fresh {
                        // A line that a crash cut off.
                        file.set_len(read.length)?;
                    }
                    Ok(file)
                })
                .map_err(|cause| failed(&path, &cause))?;
            places.push((path, file));
        }
        Ok(Journal {
            key,
            places,
            epoch: read.epoch,
            mac,
            last: read.last,
            revisions: read.revisions,
            records: read.records,
            // A crash may have come between the store and the journal.
            behind: revision > read.last,
        })
    }
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

    /// Notes what the store has committed. Nothing is written while nothing is journaled and enough
    /// is reserved.
    ///
    /// # Errors
    /// The operating system's, with the place; the journal is then behind.
    pub(crate) fn note(
        &mut self,
        revision: u64,
        records: u64,
        facts: &[Fact],
    ) -> Result<(), String> {
        let enough = revision + LEFT < self.revisions && records + LEFT < self.records;
        if facts.is_empty() && enough {
            return Ok(());
        }
        if revision + LEFT >= self.revisions {
            self.revisions = revision + REVISIONS;
        }
        if records + LEFT >= self.records {
            self.records = records + RECORDS;
        }
        self.behind = true;
        let encode =
            |(key, value): &Fact| (key.clone(), value.as_ref().map(|v| STANDARD.encode(v)));
        let p = facts.iter().map(encode).collect();
        let line = Line { r: revision, c: self.revisions, s: self.records, p };
        let text = serde_json::to_string(&line).unwrap_or_default();
        let mac = chain(&self.key, &self.mac, &text);
        let text = format!("{text}\t{}\n", hex(&mac));
        failpoint::hit("journal.before_write");
        for (path, file) in &mut self.places {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_data())
                .map_err(|cause| format!("{}: {cause}", path.display()))?;
        }
        failpoint::hit("journal.after_write");
        (self.mac, self.last, self.behind) = (mac, revision, false);
        Ok(())
    }
}

fn chain(key: &ring::hmac::Key, before: &[u8], text: &str) -> Vec<u8> {
    let mut context = ring::hmac::Context::with_key(key);
    context.update(before);
    context.update(text.as_bytes());
    context.sign().as_ref().to_vec()
}

/// The shortest journal that says the same.
fn compact(key: &ring::hmac::Key, read: &Read) -> (String, Vec<u8>) {
    let head = Head { runnel_journal: 1, epoch: read.epoch.clone() };
    let mut mac = Vec::new();
    let mut text = String::new();
    let mut add = |line: String| {
        mac = chain(key, &mac, &line);
        text.push_str(&format!("{line}\t{}\n", hex(&mac)));
    };
    add(serde_json::to_string(&head).unwrap_or_default());
    let mut by_revision: BTreeMap<u64, Vec<(String, Option<String>)>> = BTreeMap::new();
    for (name, (at, value)) in &read.facts {
        if value.is_none() && ENDING.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let value = value.as_ref().map(|value| STANDARD.encode(value));
        by_revision.entry(*at).or_default().push((name.clone(), value));
    }
    let (c, s) = (read.revisions, read.records);
    by_revision.entry(read.last).or_default();
    for (r, p) in by_revision {
        add(serde_json::to_string(&Line { r, c, s, p }).unwrap_or_default());
    }
    (text, mac)
}

/// Writes a file whole or not at all, for its owner alone.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("journal.new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

fn read(path: &Path, key: &ring::hmac::Key) -> Result<Option<Read>, Error> {
    let octets = match std::fs::read(path) {
        Ok(octets) => octets,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            if path.parent().is_some_and(|parent| !parent.exists()) {
                return Err(Error::file(
                    "find the place of the revocation journal",
                    path,
                    &cause,
                    "mount it, or correct journal in [pki]",
                ));
            }
            return Ok(None);
        }
        Err(cause) => {
            let hint = "check its permissions";
            return Err(Error::file("read the revocation journal", path, &cause, hint));
        }
    };
    let strange = |line: usize| {
        Error::Rollback(format!(
            "line {line} of the revocation journal {} was not written by this gateway with this \
             sealing key: put the right journal back, or see `runnel restore --help`",
            path.display()
        ))
    };
    let mut read = Read {
        epoch: String::new(),
        last: 0,
        revisions: 0,
        records: 0,
        facts: BTreeMap::new(),
        lines: 0,
        mac: Vec::new(),
        length: 0,
    };
    // What stands behind the last line end was cut off by a crash and acknowledged to nobody.
    let whole = octets.iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
    for line in octets.get(..whole).unwrap_or_default().split_inclusive(|octet| *octet == b'\n') {
        let number = read.lines + 1;
        let text = std::str::from_utf8(line).map_err(|_| strange(number))?;
        let (text, mac) = text.trim_end().rsplit_once('\t').ok_or_else(|| strange(number))?;
        let expected = chain(key, &read.mac, text);
        if hex(&expected) != mac {
            return Err(strange(number));
        }
        if number == 1 {
            let head: Head = serde_json::from_str(text).map_err(|_| strange(1))?;
            if head.runnel_journal != 1 {
                return Err(strange(1));
            }
            read.epoch = head.epoch;
        } else {
            let line: Line = serde_json::from_str(text).map_err(|_| strange(number))?;
            read.last = read.last.max(line.r);
            read.revisions = read.revisions.max(line.c);
            read.records = read.records.max(line.s);
            for (name, value) in line.p {
                let value = value.map(|value| STANDARD.decode(value)).transpose();
                read.facts.insert(name, (line.r, value.map_err(|_| strange(number))?));
            }
        }
        read.mac = expected;
        read.lines = number;
        read.length += u64::try_from(line.len()).unwrap_or(0);
    }
    Ok((read.lines > 0).then_some(read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn look(paths: &[PathBuf]) -> Result<Found, Error> {
        Found::look(paths.to_vec(), &Zeroizing::new([7; 32]))
    }

    fn one(path: &Path) -> Result<Found, Error> {
        look(&[path.to_owned()])
    }

    fn fact(name: &str, value: Option<&str>) -> Fact {
        (name.to_owned(), value.map(|value| value.as_bytes().to_vec()))
    }

    #[test]
    fn what_was_noted_is_found_and_only_what_is_newer_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
        journal.note(1, 1, &[fact("token/a", Some("new"))]).unwrap();
        journal
            .note(5, 3, &[fact("token/a", Some("spent")), fact("revoked/x", Some("r"))])
            .unwrap();
        let found = one(&path).unwrap();
        assert_eq!((found.last(), found.epoch()), (5, Some("e")));
        assert!(found.reserved().0 > 5 && found.reserved().1 > 3);
        assert_eq!(found.facts_after(5), []);
        let newer = found.facts_after(1);
        assert_eq!(newer.len(), 2, "the last value of each key: {newer:?}");
        assert!(newer.contains(&fact("token/a", Some("spent"))));
        // A line that a crash cut off was acknowledged to nobody.
        let mut octets = std::fs::read(&path).unwrap();
        octets.extend_from_slice(b"{\"r\":6");
        std::fs::write(&path, &octets).unwrap();
        let mut journal = one(&path).unwrap().open("e", 5, 3).unwrap();
        journal.note(7, 4, &[fact("revoked/y", Some("r"))]).unwrap();
        assert_eq!(one(&path).unwrap().last(), 7);
    }

    #[test]
    fn no_line_can_be_changed_or_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
        for revision in 1..4 {
            journal.note(revision, 1, &[fact("revoked/x", Some("r"))]).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let without: String =
            lines.iter().enumerate().filter(|(at, _)| *at != 2).map(|(_, line)| *line).collect();
        for wrong in [without, text.replacen("\"r\":2", "\"r\":1", 1)] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(one(&path), Err(Error::Rollback(_))));
        }
        std::fs::write(&path, &text).unwrap();
        assert!(Found::look(vec![path], &Zeroizing::new([8; 32])).is_err());
    }

    #[test]
    fn the_newer_of_two_places_counts_and_mends_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let places = [directory.path().join("one"), directory.path().join("two")];
        let mut journal = look(&places).unwrap().open("e", 0, 0).unwrap();
        journal.note(1, 1, &[fact("revoked/x", Some("r"))]).unwrap();
        let old = std::fs::read(&places[0]).unwrap();
        journal.note(2, 1, &[fact("revoked/y", Some("r"))]).unwrap();
        for lost in [Some(old), None] {
            match lost {
                Some(old) => std::fs::write(&places[0], old).unwrap(),
                None => std::fs::remove_file(&places[0]).unwrap(),
            }
            let found = look(&places).unwrap();
            assert_eq!((found.last(), found.facts_after(0).len()), (2, 2));
            found.open("e", 2, 1).unwrap();
            assert_eq!(std::fs::read(&places[0]).unwrap(), std::fs::read(&places[1]).unwrap());
        }
    }

    #[test]
    fn a_long_journal_is_rewritten_without_what_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut journal = one(&path).unwrap().open("e", 0, 0).unwrap();
        for revision in 1..1_500 {
            journal.note(revision, 1, &[fact("token/a", Some("x"))]).unwrap();
        }
        journal.note(1_500, 1, &[fact("token/a", None), fact("barred-run/b", None)]).unwrap();
        one(&path).unwrap().open("e", 1_500, 1).unwrap();
        let found = one(&path).unwrap();
        assert_eq!(found.last(), 1_500);
        assert_eq!(found.facts_after(0), [fact("barred-run/b", None)]);
        assert!(std::fs::read_to_string(&path).unwrap().lines().count() < 5);
    }
}
