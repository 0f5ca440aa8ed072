//! One place of the journal. It fails as a whole or not at all: what a failed write left behind is
//! taken away before the next one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::file;
use crate::seal::sync_directory;

/// A file shorter than this is never rewritten while it is written to.
const LONG: u64 = 8 << 20;
/// It is rewritten when it is so many times as long as after the last time.
const GROWTH: u64 = 4;

/// Where a file ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// The code of the last line.
    pub(super) mac: Vec<u8>,
    /// Octets up to there.
    pub(super) length: u64,
}

/// A file that is open to be continued.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    file: File,
    end: End,
    /// There may be something behind the end.
    torn: bool,
    /// The file's name may not be durable.
    unsynced: bool,
    /// It is rewritten from this length on.
    long: u64,
}

impl Place {
    /// Continues a file behind its last whole line.
    pub(super) fn go_on(path: &Path, end: End) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(path)?;
        let mut place = Self::new(path, file, end);
        place.torn = true;
        place.mend()?;
        Ok(place)
    }

    /// Puts a new file, for its owner alone, in the place of the one that may be there: whole or not
    /// at all.
    pub(super) fn replace(path: &Path, (text, end): &(String, End)) -> io::Result<Self> {
        let file = put(path, text)?;
        let mut place = Self::new(path, file, end.clone());
        place.unsynced = true;
        place.mend()?;
        Ok(place)
    }

    fn new(path: &Path, file: File, end: End) -> Self {
        let long = LONG.max(end.length.saturating_mul(GROWTH));
        Self { path: path.to_owned(), file, end, torn: false, unsynced: false, long }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn end(&self) -> &End {
        &self.end
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The operating system's; part of it may then be there until [`go_back`](Self::go_back).
    pub(super) fn write(
        &mut self,
        key: &ring::hmac::Key,
        text: &str,
        durable: bool,
    ) -> io::Result<()> {
        self.mend()?;
        let (line, mac) = file::with_mac(key, &self.end.mac, text);
        self.torn = true;
        self.file.write_all(line.as_bytes())?;
        if durable {
            self.file.sync_data()?;
        }
        self.torn = false;
        let length = self.end.length + u64::try_from(line.len()).unwrap_or(0);
        self.end = End { mac, length };
        Ok(())
    }

    /// Ends where it ended before; if that fails now, before the next line.
    pub(super) fn go_back(&mut self, end: End) {
        self.torn |= self.end != end;
        self.end = end;
        // Nothing is written before this has worked.
        let _ = self.mend();
    }

    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.end.length)?;
            self.file.sync_data()?;
            self.torn = false;
        }
        if self.unsynced {
            self.path.parent().map_or(Ok(()), sync_directory)?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Rewrites the file without what is over, when it has become long.
    pub(super) fn keep_short(&mut self, key: &ring::hmac::Key) {
        if self.end.length < self.long {
            return;
        }
        // It goes on as it is when that fails, and is tried again later.
        self.long = self.end.length.saturating_mul(2);
        let Ok(Some(read)) = file::read(&self.path, key) else { return };
        if read.end != self.end || read.open_base().is_some() {
            return;
        }
        let (text, end) = file::compact(key, &read);
        if let Ok(file) = put(&self.path, &text) {
            *self = Self { unsynced: true, ..Self::new(&self.path, file, end) };
            // Nothing is written before this has worked.
            let _ = self.mend();
        }
    }

    /// See [`super::Journal::set_full`].
    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    pub(super) fn set_full(&mut self, full: bool) {
        let path = if full { Path::new("/dev/full") } else { &self.path };
        self.file = OpenOptions::new().append(true).open(path).unwrap();
    }
}

/// Writes a file durably and gives it its name, which is not durable yet.
fn put(path: &Path, text: &str) -> io::Result<File> {
    let temporary = path.with_extension("journal.new");
    // One that a crash left, or that somebody else put there.
    match std::fs::remove_file(&temporary) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.append(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(file)
}
