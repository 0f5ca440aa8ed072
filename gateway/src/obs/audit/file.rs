//! The audit trail as a file: one JSON line per event, ECS field names, appended and synced.
//!
//! Each line carries its place in the hash chain, so a start continues where the last one was
//! killed: no line is lost or written twice, and a copy of the file can be verified by itself.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::Authority;
use pki::audit::chain;

use crate::sys::failpoint;

/// Events copied per step.
const BATCH: usize = 256;

/// What is read at once when the last line is looked for.
const WINDOW: u64 = 256 * 1024;

/// The file.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    file: File,
    position: u64,
}

impl AuditFile {
    /// Opens or creates the file and finds the last event in it; a half-written last line, left
    /// by a crash, is cut off. A file of an earlier version, whose lines prove nothing, is put
    /// aside (`.old`) and written anew from the trail.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = create(path)?;
        let (end, last) = last_complete(&mut file)?;
        let position = match last.as_deref().map(chain::parse) {
            None => 0,
            Some(Some(entry)) => entry.seq,
            Some(None) => {
                std::fs::rename(path, path.with_extension("jsonl.old"))?;
                file = create(path)?;
                0
            }
        };
        if position > 0 || end == 0 {
            file.set_len(end)?;
        }
        Ok(Self { path: path.to_owned(), file, position })
    }

    /// Copies every event that is not in the file yet; how many. A file that was moved away (by a
    /// log rotation) is created again and goes on behind its last line.
    ///
    /// # Errors
    /// A sentence about the file or the store.
    pub fn follow(&mut self, authority: &Arc<Authority>) -> Result<usize, String> {
        let mut copied = 0;
        loop {
            let records = authority.audit(self.position, BATCH).map_err(|e| e.to_string())?;
            if records.is_empty() {
                return Ok(copied);
            }
            let mut text = Vec::new();
            for record in &records {
                text.extend_from_slice(record.line.as_bytes());
                text.push(b'\n');
            }
            self.append(&text).map_err(|error| {
                format!("cannot append to the audit file {}: {error}", self.path.display())
            })?;
            failpoint::hit("audit.after_write");
            copied += records.len();
            self.position = records.last().map_or(self.position, |record| record.seq);
        }
    }

    fn append(&mut self, text: &[u8]) -> std::io::Result<()> {
        let ours = self.file.metadata()?;
        let there = std::fs::metadata(&self.path);
        if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            self.file = create(&self.path)?;
        }
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(text).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // What got there of it is written again, from its beginning.
            self.file.set_len(before)?;
        }
        written
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// The end of the last complete line, and the line.
fn last_complete(file: &mut File) -> std::io::Result<(u64, Option<String>)> {
    let length = file.metadata()?.len();
    let mut window = length.min(WINDOW);
    loop {
        file.seek(SeekFrom::Start(length - window))?;
        let mut tail = Vec::new();
        (&*file).take(window).read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
        let complete = tail.get(..whole.unwrap_or(0)).unwrap_or_default();
        let mut lines = complete.split(|byte| *byte == b'\n').rev().skip(1);
        let last = lines.next().map(|line| String::from_utf8_lossy(line).into_owned());
        // A line that fills the window may begin before it.
        if window == length || lines.next().is_some() {
            let rest = u64::try_from(tail.len() - complete.len()).unwrap_or(0);
            return Ok((length - rest, last));
        }
        window = length.min(window.saturating_mul(2));
    }
}

#[cfg(test)]
mod tests {
    use pki::store::{MemoryStore, Store, Txn};

    use super::*;

    /// Lines of a trail with these values.
    fn lines(values: &[&str]) -> Vec<String> {
        let store = MemoryStore::new();
        for value in values {
            let mut txn = Txn::new();
            txn.append("audit", format!("{{\"a\":\"{value}\"}}"));
            store.transact(txn).unwrap();
        }
        store.log("audit", 0, 100).unwrap().iter().map(chain::render).collect()
    }

    #[test]
    fn a_torn_line_is_cut_and_the_position_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let long = "x".repeat(600 * 1024);
        for values in [&["1", "2"][..], &["1", &long], &[&long]] {
            let whole = lines(values).join("\n") + "\n";
            std::fs::write(&path, format!("{whole}{{\"event.seq")).unwrap();
            let opened = AuditFile::open(&path).unwrap();
            assert_eq!(opened.position, values.len() as u64);
            drop(opened);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        }
        assert_eq!(AuditFile::open(&dir.path().join("new.jsonl")).unwrap().position, 0);
        std::fs::write(&path, "{\"event.seq").unwrap();
        assert_eq!(AuditFile::open(&path).unwrap().position, 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_file_of_an_earlier_version_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let old = "{\"event.action\":\"ca.create\",\"event.sequence\":7}\n";
        std::fs::write(&path, old).unwrap();
        assert_eq!(AuditFile::open(&path).unwrap().position, 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        let kept = dir.path().join("audit.jsonl.old");
        assert_eq!(std::fs::read_to_string(kept).unwrap(), old);
    }

    #[test]
    fn a_rotated_file_goes_on_in_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut file = AuditFile::open(&path).unwrap();
        file.append(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("audit.jsonl.1")).unwrap();
        file.append(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
    }
}
