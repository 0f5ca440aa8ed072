//! A journal's file: its lines, how it is read, and the shortest one that says the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::place::End;
use super::{ENDING, Fact};
use crate::error::Error;
use crate::issue::hex;

/// One line.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Line {
    /// The store's revision.
    r: u64,
    /// The revisions below this one may have been used.
    c: u64,
    /// The positions of the audit trail up to this one may have been used.
    s: u64,
    /// The store's revision before, of a line that was written before the store committed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b: Option<u64>,
    /// Keys with their values in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    p: Vec<(String, Option<String>)>,
}

impl Line {
    /// What the store is about to commit, or without `base` has committed; `reserved` are revisions
    /// and positions of the audit trail.
    pub(super) fn new(
        revision: u64,
        reserved: (u64, u64),
        base: Option<u64>,
        facts: &[Fact],
    ) -> Self {
        let encode =
            |(key, value): &Fact| (key.clone(), value.as_ref().map(|v| STANDARD.encode(v)));
        let p = facts.iter().map(encode).collect();
        Self { r: revision, c: reserved.0, s: reserved.1, b: base, p }
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    runnel_journal: u32,
    epoch: String,
}

/// The last line, while nothing says that the store has committed it.
#[derive(Debug)]
struct Open {
    base: u64,
    revision: u64,
    facts: Vec<Fact>,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) epoch: String,
    pub(super) last: u64,
    pub(super) revisions: u64,
    pub(super) records: u64,
    pub(super) facts: BTreeMap<String, (u64, Option<Vec<u8>>)>,
    pub(super) lines: usize,
    /// The end of the last whole line.
    pub(super) end: End,
    /// The first line that does not fit to those before it.
    pub(super) damaged: Option<usize>,
    open: Option<Open>,
}

impl Read {
    /// Of a journal that begins with a store at this revision.
    pub(super) fn new(epoch: &str, revision: u64, records: u64) -> Self {
        Self { epoch: epoch.to_owned(), revisions: revision, records, ..Self::default() }
    }

    /// Files of the same journal compare by it: the greater one says more.
    pub(super) fn age(&self) -> (u64, bool, u64, u64) {
        let open = self.open.as_ref().map(|open| open.revision);
        let newest = open.unwrap_or_default().max(self.last);
        (newest, open.is_none(), self.revisions, self.records)
    }

    /// The revision that the store had before the last line, while nothing says that it was committed.
    pub(super) fn open_base(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.base)
    }

    /// The last line was not committed.
    pub(super) fn leave_out(&mut self) {
        self.open = None;
    }

    /// The last line was committed.
    pub(super) fn settle(&mut self) {
        if let Some(open) = self.open.take() {
            self.apply(open.revision, open.facts);
        }
    }

    fn apply(&mut self, revision: u64, facts: Vec<Fact>) {
        self.last = self.last.max(revision);
        for (name, value) in facts {
            self.facts.insert(name, (revision, value));
        }
    }

    /// Takes the next line in; `None` when it does not fit.
    fn take(&mut self, octets: &[u8], key: &ring::hmac::Key) -> Option<()> {
        let text = std::str::from_utf8(octets).ok()?;
        let (text, mac) = text.trim_end().rsplit_once('\t')?;
        let expected = chain(key, &self.end.mac, text);
        if hex(&expected) != mac {
            return None;
        }
        if self.lines == 0 {
            let head: Head = serde_json::from_str(text).ok()?;
            if head.runnel_journal != 1 {
                return None;
            }
            self.epoch = head.epoch;
        } else {
            let line: Line = serde_json::from_str(text).ok()?;
            let decode = |(name, value): (String, Option<String>)| {
                let value = value.map(|value| STANDARD.decode(value)).transpose();
                value.ok().map(|value| (name, value))
            };
            let facts = line.p.into_iter().map(decode).collect::<Option<Vec<Fact>>>()?;
            self.settle();
            self.revisions = self.revisions.max(line.c);
            self.records = self.records.max(line.s);
            match line.b {
                Some(base) => self.open = Some(Open { base, revision: line.r, facts }),
                None => self.apply(line.r, facts),
            }
        }
        self.end.mac = expected;
        self.end.length += u64::try_from(octets.len()).unwrap_or(0);
        self.lines += 1;
        Some(())
    }
}

/// A line is chained to the one before by its code.
pub(super) fn chain(key: &ring::hmac::Key, before: &[u8], text: &str) -> Vec<u8> {
    let mut context = ring::hmac::Context::with_key(key);
    context.update(before);
    context.update(text.as_bytes());
    context.sign().as_ref().to_vec()
}

/// A line as it is in the file, behind one of this code.
pub(super) fn with_mac(key: &ring::hmac::Key, before: &[u8], text: &str) -> (String, Vec<u8>) {
    let mac = chain(key, before, text);
    (format!("{text}\t{}\n", hex(&mac)), mac)
}

/// The shortest journal that says the same, and its end.
pub(super) fn compact(key: &ring::hmac::Key, read: &Read) -> (String, End) {
    let head = Head { runnel_journal: 1, epoch: read.epoch.clone() };
    let mut mac = Vec::new();
    let mut text = String::new();
    let mut add = |line: String| {
        let (line, next) = with_mac(key, &mac, &line);
        mac = next;
        text.push_str(&line);
    };
    add(serde_json::to_string(&head).unwrap_or_default());
    let mut by_revision: BTreeMap<u64, Vec<Fact>> = BTreeMap::new();
    for (name, (at, value)) in &read.facts {
        if value.is_none() && ENDING.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        by_revision.entry(*at).or_default().push((name.clone(), value.clone()));
    }
    by_revision.entry(read.last).or_default();
    for (revision, facts) in by_revision {
        add(Line::new(revision, (read.revisions, read.records), None, &facts).text());
    }
    let length = u64::try_from(text.len()).unwrap_or(0);
    (text, End { mac, length })
}

/// Reads a file as far as it fits; `None` when there is none, or nothing in it.
pub(super) fn read(path: &Path, key: &ring::hmac::Key) -> Result<Option<Read>, Error> {
    let unreadable = |cause: &std::io::Error| {
        Error::file("read the revocation journal", path, cause, "check its permissions")
    };
    let file = match File::open(path) {
        Ok(file) => file,
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
        Err(cause) => return Err(unreadable(&cause)),
    };
    let mut lines = BufReader::new(file);
    let mut read = Read::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        lines.read_until(b'\n', &mut line).map_err(|cause| unreadable(&cause))?;
        // What stands behind the last line end was cut off by a crash and acknowledged to nobody.
        if line.last() != Some(&b'\n') {
            break;
        }
        if read.take(&line, key).is_none() {
            if read.lines == 0 {
                return Err(strange(path, 1));
            }
            read.damaged = Some(read.lines + 1);
            break;
        }
    }
    Ok((read.lines > 0).then_some(read))
}

pub(super) fn strange(path: &Path, line: usize) -> Error {
    Error::Rollback(format!(
        "line {line} of the revocation journal {} was not written by this gateway with this sealing \
         key: put the right journal back; if there is none any more, move this file away and start again, \
         and the refusal names the time for `runnel restore --accept-loss-after`",
        path.display()
    ))
}
