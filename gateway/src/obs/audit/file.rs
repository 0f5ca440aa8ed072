//! The audit trail as a file: one JSON line per event, ECS field names, appended and synced.
//!
//! Each line carries its place in the hash chain, so a start continues where the last one was
//! killed: no line is lost or written twice, and a copy of the file can be verified by itself.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pki::Authority;
use pki::audit::chain;

use crate::sys::failpoint;

/// Events copied per step.
const BATCH: usize = 256;

/// Steps of one call: whoever calls has other things to do.
const STEPS: usize = 16;

/// How the file's position is named in the store; no sink can have this name.
const NAME: &str = "@file";

/// The position is noted in the store this often, for a file that is rotated away before a crash.
const NOTE_EVERY: Duration = Duration::from_secs(30);

/// What is read at once when the last line is looked for.
const WINDOW: u64 = 256 * 1024;

/// The file.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    file: File,
    position: u64,
    /// What the store knows of it.
    noted: u64,
    noted_at: Instant,
}

impl AuditFile {
    /// Opens or creates the file and finds the last event in it; a half-written last line, left
    /// by a crash, is cut off. One that was rotated away goes on where it ended. A file that is no
    /// copy of this trail (an earlier version's, whose lines prove nothing; one from after the
    /// backup that the trail was restored from) is put aside (`.old`) and written anew.
    ///
    /// # Errors
    /// A sentence about the file or the store.
    pub fn open(path: &Path, authority: &Authority) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("cannot use the audit file {}: {error}", path.display())
        };
        let mut file = create(path).map_err(failed)?;
        let (end, last) = last_complete(&mut file).map_err(failed)?;
        let noted = authority.audit_position(NAME).map_err(|error| error.to_string())?;
        let last_here = authority.audit_end().map_err(|error| error.to_string())?;
        let position = match last.as_deref() {
            // A position that the trail has not come to is another trail's.
            None if noted <= last_here => noted,
            None => 0,
            Some(line) => {
                let is_copy = match chain::parse(line) {
                    Some(entry) => is_in(authority, &entry)?,
                    None => false,
                };
                if is_copy {
                    chain::parse(line).map_or(0, |entry| entry.seq)
                } else {
                    let aside = aside(path);
                    tracing::warn!(
                        file = %path.display(), aside = %aside.display(),
                        "the audit file is no copy of this trail: put aside and written anew"
                    );
                    std::fs::rename(path, aside).map_err(failed)?;
                    file = create(path).map_err(failed)?;
                    0
                }
            }
        };
        if last.is_none() || position > 0 {
            file.set_len(end.min(file.metadata().map_err(failed)?.len())).map_err(failed)?;
        }
        let path = path.to_owned();
        Ok(Self { path, file, position, noted, noted_at: Instant::now() })
    }

    /// Copies events that are not in the file yet, a bounded number of them; how many. A file that
    /// was moved away (by a log rotation) is created again and goes on behind its last line.
    ///
    /// # Errors
    /// A sentence about the file or the store.
    pub fn follow(&mut self, authority: &Authority) -> Result<usize, String> {
        let mut copied = 0;
        for _ in 0..STEPS {
            let records = authority.audit(self.position, BATCH).map_err(|e| e.to_string())?;
            if records.is_empty() {
                break;
            }
            let mut text = Vec::new();
            for record in &records {
                if record.event.action == pki::audit::UNREADABLE {
                    tracing::error!(
                        record = record.seq,
                        "an audit record cannot be read: see `runnel audit verify`"
                    );
                }
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
        if self.noted_at.elapsed() >= NOTE_EVERY {
            self.note(authority)?;
        }
        Ok(copied)
    }

    /// Copies what is left until it is done or time is up, and notes where the file ends.
    ///
    /// # Errors
    /// As [`follow`](Self::follow).
    pub fn finish(&mut self, authority: &Authority, patience: Duration) -> Result<(), String> {
        let until = Instant::now() + patience;
        while self.follow(authority)? > 0 && Instant::now() < until {}
        self.note(authority)
    }

    /// Has the store know how far the file is: when it is rotated away, nothing else does.
    fn note(&mut self, authority: &Authority) -> Result<(), String> {
        self.noted_at = Instant::now();
        if self.noted != self.position {
            let noted = authority.set_audit_position(NAME, self.position);
            noted.map_err(|error| error.to_string())?;
            self.noted = self.position;
        }
        Ok(())
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

/// Whether a record is one of this trail.
fn is_in(authority: &Authority, entry: &pki::store::LogEntry) -> Result<bool, String> {
    let there = authority.audit(entry.seq.saturating_sub(1), 1).map_err(|e| e.to_string())?;
    let hash: String = entry.hash.iter().map(|octet| format!("{octet:02x}")).collect();
    Ok(there.first().is_some_and(|record| record.seq == entry.seq && record.hash == hash))
}

/// A name that nothing has yet.
fn aside(path: &Path) -> PathBuf {
    let name = |number: u32| match number {
        0 => path.with_extension("jsonl.old"),
        number => path.with_extension(format!("jsonl.old.{number}")),
    };
    (0..1_000).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0))
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
    use std::sync::Arc;

    use pki::store::{MemoryStore, Store, Txn};
    use pki::{Actor, AuditEvent, Options, Settings, UnixTime};

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_795_305_600);

    fn authority(store: &Arc<MemoryStore>) -> Authority {
        let options = Options::new(Settings::new("ci.example.com"));
        let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
        Authority::with_store(store, &[7; 32], options, NOW).unwrap()
    }

    fn record(authority: &Authority, name: &str) {
        let event = AuditEvent::new("test.event", &Actor::System, NOW).object(name);
        authority.record_audit(&event).unwrap();
    }

    /// The trail as lines.
    fn lines(authority: &Authority, after: u64) -> String {
        let records = authority.audit(after, 100_000).unwrap();
        records.iter().map(|record| format!("{}\n", record.line)).collect()
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_torn_line_is_cut_and_the_position_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let long = "x".repeat(600 * 1024);
        for names in [&["1", "2"][..], &["1", &long], &[&long]] {
            let authority = authority(&Arc::default());
            for name in names {
                record(&authority, name);
            }
            let whole = lines(&authority, 0);
            std::fs::write(&path, format!("{whole}{{\"event.seq")).unwrap();
            let opened = AuditFile::open(&path, &authority).unwrap();
            assert_eq!(opened.position, authority.audit_end().unwrap());
            drop(opened);
            assert_eq!(text(&path), whole);
        }
        let authority = authority(&Arc::default());
        let new = AuditFile::open(&dir.path().join("new.jsonl"), &authority).unwrap();
        assert_eq!(new.position, 0);
        std::fs::write(&path, "{\"event.seq").unwrap();
        assert_eq!(AuditFile::open(&path, &authority).unwrap().position, 0);
        assert_eq!(text(&path), "");
    }

    #[test]
    fn a_file_of_an_earlier_version_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let authority = authority(&Arc::default());
        for kept in ["audit.jsonl.old", "audit.jsonl.old.1"] {
            let old = format!("{{\"event.action\":\"{kept}\",\"event.sequence\":7}}\n");
            std::fs::write(&path, &old).unwrap();
            assert_eq!(AuditFile::open(&path, &authority).unwrap().position, 0);
            assert_eq!(text(&path), "");
            assert_eq!(text(&dir.path().join(kept)), old, "nothing is overwritten");
        }
    }

    /// A backup was restored: the file is ahead of the trail, which goes on otherwise.
    #[test]
    fn a_file_that_is_ahead_of_the_trail_is_put_aside_and_no_record_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let later = authority(&Arc::default());
        for number in 0..20 {
            record(&later, &number.to_string());
        }
        let mut file = AuditFile::open(&path, &later).unwrap();
        file.finish(&later, Duration::from_secs(60)).unwrap();
        let restored = authority(&Arc::default());
        record(&restored, "another");

        let mut file = AuditFile::open(&path, &restored).unwrap();
        file.follow(&restored).unwrap();

        assert_eq!(text(&path), lines(&restored, 0));
        assert_eq!(text(&dir.path().join("audit.jsonl.old")), lines(&later, 0));
    }

    #[test]
    fn a_file_that_was_rotated_away_goes_on_in_a_new_one_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let store = Arc::new(MemoryStore::new());
        let authority = authority(&store);
        let mut file = AuditFile::open(&path, &authority).unwrap();
        record(&authority, "one");
        file.follow(&authority).unwrap();
        let first = authority.audit_end().unwrap();
        std::fs::rename(&path, dir.path().join("audit.jsonl.1")).unwrap();
        record(&authority, "two");
        file.finish(&authority, Duration::from_secs(60)).unwrap();
        assert_eq!(text(&path), lines(&authority, first));

        let second = authority.audit_end().unwrap();
        drop(file);
        std::fs::rename(&path, dir.path().join("audit.jsonl.2")).unwrap();
        record(&authority, "three");
        let mut file = AuditFile::open(&path, &authority).unwrap();
        file.follow(&authority).unwrap();
        assert_eq!(text(&path), lines(&authority, second), "not the whole trail again");
    }

    #[test]
    fn a_long_trail_is_copied_in_bounded_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let authority = authority(&Arc::default());
        for number in 0..BATCH * STEPS + 10 {
            record(&authority, &number.to_string());
        }
        let mut file = AuditFile::open(&path, &authority).unwrap();
        assert_eq!(file.follow(&authority).unwrap(), BATCH * STEPS);
        file.finish(&authority, Duration::from_secs(60)).unwrap();
        assert_eq!(text(&path), lines(&authority, 0));
    }

    #[test]
    fn a_record_that_cannot_be_read_keeps_back_none_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let store = Arc::new(MemoryStore::new());
        let authority = authority(&store);
        for value in ["no JSON", "{\"event.action\":\n1}"] {
            let mut txn = Txn::new();
            txn.append("audit", value);
            store.transact(txn).unwrap();
        }
        record(&authority, "behind");

        let mut file = AuditFile::open(&path, &authority).unwrap();
        file.follow(&authority).unwrap();

        let written = text(&path);
        let actions: Vec<String> = written
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line["event.action"].as_str().unwrap().to_owned())
            .collect();
        let end = actions.len();
        assert_eq!(actions[end - 3..], ["audit.unreadable", "audit.unreadable", "test.event"]);
        let report = chain::verify_lines(written.as_bytes()).unwrap();
        assert_eq!(report.faults.len(), 2, "{report:?}");
    }
}
