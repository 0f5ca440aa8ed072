//! Small files, read with a bound.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Reads a regular file of at most `most` octets, whatever others do to it meanwhile.
///
/// # Errors
/// One sentence that names the file.
pub fn read_small(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let named = |error: std::io::Error| format!("{}: {}", path.display(), super::reason(&error));
    // A pipe that nobody writes to must not hold up the reader.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(named)?;
    if !file.metadata().map_err(named)?.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    // Room for the whole at once: a vector that grows leaves copies behind. One octet more, so that
    // what is too large shows.
    let room = most.saturating_add(1);
    let mut octets = Zeroizing::new(Vec::with_capacity(room));
    let room = u64::try_from(room).unwrap_or(u64::MAX);
    file.take(room).read_to_end(&mut octets).map_err(named)?;
    if octets.len() > most {
        return Err(format!("{} is larger than {most} octets", path.display()));
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("small");
        std::fs::write(&path, [7; 16]).unwrap();
        assert_eq!(read_small(&path, 16).unwrap().as_slice(), [7; 16]);
        let large = read_small(&path, 15).unwrap_err();
        assert!(large.contains("larger than 15 octets"), "{large}");
        let other = read_small(directory.path(), 16).unwrap_err();
        assert!(other.ends_with("is not a file"), "{other}");
        let none = read_small(&directory.path().join("none"), 16).unwrap_err();
        assert!(none.contains("none: "), "{none}");
    }
}
