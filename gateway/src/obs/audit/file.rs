//! The audit trail as a file: one JSON line per event, ECS field names, appended and synced.
//!
//! Each line carries its place in the hash chain, so a start continues where the last one was
//! killed: no line is lost or written twice, and a copy of the file can be verified by itself. A
//! file that is full ends with a signed checkpoint and is put aside; a bounded number is kept.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pki::audit::chain;
use pki::audit::checkpoint::CHECKPOINT;
use pki::{AuditRecord, Authority, UnixTime};

use crate::sys::{clock, failpoint};

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

/// How large the file may grow, and how many of its kind are kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Octets; it is put aside behind the record that reaches them.
    pub size: u64,
    /// Files put aside.
    pub files: u64,
}

/// The file.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    bounds: Bounds,
    file: File,
    /// It was moved away under us and begun anew: what is gone is to be signed.
    moved: bool,
    /// It is full, and ends with the next checkpoint.
    full: bool,
    position: u64,
    /// What the store knows of it.
    noted: u64,
    noted_at: Instant,
}

impl AuditFile {
    /// The last record that is in the file or in those put aside.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Opens or creates the file and finds the last event in it; a half-written last line, left
    /// by a crash, is cut off. One that was rotated away goes on where it ended. A file that is no
    /// copy of this trail (an earlier version's, whose lines prove nothing; one from after the
    /// backup that the trail was restored from) is put aside (`.old`) and written anew.
    ///
    /// # Errors
    /// A sentence about the file or the store.
    pub fn open(path: &Path, bounds: Bounds, authority: &Authority) -> Result<Self, String> {
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
        let noted_at = Instant::now();
        Ok(Self { path, bounds, file, moved: false, full: false, position, noted, noted_at })
    }

    /// Copies events that are not in the file yet, a bounded number of them; how many. A file that
    /// was moved away (by a log rotation) is created again and goes on behind its last line.
    ///
    /// # Errors
    /// A sentence about the file or the store.
    pub fn follow(&mut self, authority: &Authority) -> Result<usize, String> {
        let mut copied = 0;
        for _ in 0..STEPS {
            let mut records = authority.audit(self.position, BATCH).map_err(|e| e.to_string())?;
            let is_checkpoint = |record: &AuditRecord| record.event.action == CHECKPOINT;
            if self.full
                && let Some(at) = records.iter().position(is_checkpoint)
            {
                records.truncate(at + 1);
            }
            let Some(last) = records.last() else { break };
            let signed = is_checkpoint(last);
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
            self.position = last.seq;
            self.keep_bounded(authority, signed)?;
        }
        if self.noted_at.elapsed() >= NOTE_EVERY {
            self.note(authority)?;
        }
        Ok(copied)
    }

    /// Puts a full file aside, once its end is signed; signs also what somebody else has moved away.
    fn keep_bounded(&mut self, authority: &Authority, signed: bool) -> Result<(), String> {
        let name = self.path.display().to_string();
        let failed =
            |error: std::io::Error| format!("cannot put the audit file {name} aside: {error}");
        let full = self.file.metadata().map_err(failed)?.len() >= self.bounds.size;
        if full && signed {
            // First: a crash between the two must not have the new file begin with what the old has.
            self.note(authority)?;
            put_aside(&self.path, self.position, self.bounds.files).map_err(failed)?;
            self.file = create(&self.path).map_err(failed)?;
            self.full = false;
        } else if self.moved || (full && !self.full) {
            let now = UnixTime::from_micros(clock::wall().0);
            authority.checkpoint("rotation", now).map_err(|error| error.to_string())?;
            self.full = full;
        }
        self.moved = false;
        Ok(())
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
            self.moved = true;
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

/// The file and those put aside before it that are there, the newest first.
pub fn kept_files(path: &Path) -> Vec<PathBuf> {
    let mut older = put_aside_files(path).unwrap_or_default();
    older.reverse();
    std::iter::once(path.to_owned()).chain(older).collect()
}

/// Digits of a record's number in a name: names sort as their records do.
const DIGITS: usize = 12;

/// The name of a file that is put aside: that of its last record. Others who put the file aside, like
/// logrotate, number theirs, and those are not ours to rename or to remove.
fn aside_name(path: &Path, last: u64) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{last:0DIGITS$}.jsonl"))
}

/// Files put aside, the oldest first.
fn put_aside_files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path.parent().unwrap_or(path))? {
        let there = entry?.path();
        let name = there.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_suffix(".jsonl").and_then(|name| name.rsplit('-').next());
        let number = number.and_then(|number| number.parse::<u64>().ok());
        if let Some(number) = number.filter(|number| aside_name(path, *number) == there) {
            found.push((number, there));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, there)| there).collect())
}

/// Puts the file aside, which ends with this record; of more than `keep` such files the oldest go.
fn put_aside(path: &Path, last: u64, keep: u64) -> std::io::Result<()> {
    std::fs::rename(path, aside_name(path, last))?;
    let files = put_aside_files(path)?;
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    for old in files.iter().take(files.len().saturating_sub(keep)) {
        std::fs::remove_file(old)?;
    }
    File::open(path.parent().unwrap_or(path))?.sync_all()
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
    use pki::{Actor, AuditEvent, Options, Settings};

    use super::*;

    const WIDE: Bounds = Bounds { size: u64::MAX, files: 3 };
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
            let opened = AuditFile::open(&path, WIDE, &authority).unwrap();
            assert_eq!(opened.position, authority.audit_end().unwrap());
            drop(opened);
            assert_eq!(text(&path), whole);
        }
        let authority = authority(&Arc::default());
        let new = AuditFile::open(&dir.path().join("new.jsonl"), WIDE, &authority).unwrap();
        assert_eq!(new.position, 0);
        std::fs::write(&path, "{\"event.seq").unwrap();
        assert_eq!(AuditFile::open(&path, WIDE, &authority).unwrap().position, 0);
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
            assert_eq!(AuditFile::open(&path, WIDE, &authority).unwrap().position, 0);
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
        let mut file = AuditFile::open(&path, WIDE, &later).unwrap();
        file.finish(&later, Duration::from_secs(60)).unwrap();
        let restored = authority(&Arc::default());
        record(&restored, "another");

        let mut file = AuditFile::open(&path, WIDE, &restored).unwrap();
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
        let mut file = AuditFile::open(&path, WIDE, &authority).unwrap();
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
        let mut file = AuditFile::open(&path, WIDE, &authority).unwrap();
        file.follow(&authority).unwrap();
        assert_eq!(text(&path), lines(&authority, second), "not the whole trail again");
    }

    #[test]
    fn a_file_that_somebody_moved_away_is_signed_in_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let authority = authority(&Arc::default());
        let mut file = AuditFile::open(&path, WIDE, &authority).unwrap();
        file.follow(&authority).unwrap();
        let end = authority.audit_end().unwrap();
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        record(&authority, "next");

        file.finish(&authority, Duration::from_secs(60)).unwrap();

        let records = authority.audit(end, 100).unwrap();
        let [next, checkpoint] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!(checkpoint.event.action, CHECKPOINT);
        assert_eq!(checkpoint.event.reason.as_deref(), Some("rotation"));
        assert_eq!(text(&path), format!("{}\n{}\n", next.line, checkpoint.line));
    }

    #[test]
    fn full_files_end_signed_and_a_bounded_number_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let authority = authority(&Arc::default());
        let bounds = Bounds { size: 20_000, files: 3 };
        for others in ["audit.jsonl.1", "audit-7.jsonl"] {
            std::fs::write(dir.path().join(others), "another's").unwrap();
        }
        let mut file = AuditFile::open(&path, bounds, &authority).unwrap();
        for number in 0..400 {
            record(&authority, &number.to_string());
            file.follow(&authority).unwrap();
        }
        file.finish(&authority, Duration::from_secs(60)).unwrap();

        let mut kept = kept_files(&path);
        assert_eq!(kept.len(), 4, "{kept:?}");
        assert_eq!(text(&dir.path().join("audit.jsonl.1")), "another's", "logrotate's stays");
        assert_eq!(text(&dir.path().join("audit-7.jsonl")), "another's", "no name of ours");
        let key = Some(authority.checkpoint_key());
        for aside in &kept[1..] {
            let text = text(aside);
            assert!((20_000..24_000).contains(&text.len()), "{} octets", text.len());
            let last = chain::parse(text.lines().last().unwrap()).unwrap();
            let report = authority.verify_audit_copy(text.as_bytes()).unwrap();
            assert!(report.is_sound() && report.signed.unwrap().checkpoint == last.seq);
        }
        // What is kept goes on from file to file, and is proven by the public key.
        kept.reverse();
        let texts: Vec<String> = kept.iter().map(|path| text(path)).collect();
        let wanted = chain::Wanted { key, fresh: None };
        let report = chain::verify_files(texts.iter().map(String::as_bytes), &wanted).unwrap();
        assert!(report.is_sound() && report.first > 1, "{report:?}");
        assert_eq!(report.last, authority.audit_end().unwrap());
        // A start goes on in the last one.
        drop(file);
        record(&authority, "after");
        let mut file = AuditFile::open(&path, bounds, &authority).unwrap();
        file.follow(&authority).unwrap();
        assert!(text(&path).ends_with(&lines(&authority, authority.audit_end().unwrap() - 1)));
    }

    #[test]
    fn a_long_trail_is_copied_in_bounded_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let authority = authority(&Arc::default());
        for number in 0..BATCH * STEPS + 10 {
            record(&authority, &number.to_string());
        }
        let mut file = AuditFile::open(&path, WIDE, &authority).unwrap();
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

        let mut file = AuditFile::open(&path, WIDE, &authority).unwrap();
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
