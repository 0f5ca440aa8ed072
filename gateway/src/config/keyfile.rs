//! Files that hold one shared key.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ike::crypto::SecretBytes;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::value;
use crate::sys;

/// Octets of a key at least: what is shorter can be guessed from one recorded handshake
/// (RFC 7296 2.15).
const SHORTEST: usize = 16;

/// Octets of a key file at most.
const LONGEST: usize = 4096;

/// Reads a key file: text as it is, without the line's end, or `0x` and hexadecimal digits.
///
/// # Errors
/// One sentence that names the file.
pub fn read_key(path: &Path) -> Result<SecretBytes, String> {
    let shown = path.display();
    let failed = |error: &std::io::Error| {
        let reason = sys::reason(error);
        format!("cannot read {shown}: {reason}; create it with `openssl rand -hex 32 > {shown}`")
    };
    // A pipe that nobody writes to must not hold up the start.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| failed(&error))?;
    let about = file.metadata().map_err(|error| failed(&error))?;
    let mode = about.permissions().mode() & 0o777;
    if !about.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} can be read or changed by others (mode {mode:04o}); run `chmod 600 {shown}`"
        ));
    }
    if about.size() > LONGEST as u64 {
        return Err(format!("{shown} has {} bytes; a key has at most {LONGEST}", about.size()));
    }
    // Room for the whole file at once: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    file.by_ref().take(LONGEST as u64).read_to_end(&mut text).map_err(|error| failed(&error))?;
    parse(&text).map_err(|why| format!("{shown} {why}"))
}

fn parse(text: &[u8]) -> Result<SecretBytes, String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let key = match text.strip_prefix(b"0x") {
        Some(digits) => value::hex(digits)
            .map(SecretBytes::new)
            .ok_or("begins with 0x, and what follows are not pairs of hexadecimal digits")?,
        None => SecretBytes::copy_from(text),
    };
    if key.len() < SHORTEST {
        return Err(format!(
            "holds a key of {} octets; use at least {SHORTEST} random ones (`openssl rand -hex 32`)",
            key.len()
        ));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_text_or_hexadecimal_digits() {
        assert_eq!(parse(b"correct horse battery\n").unwrap().expose(), b"correct horse battery");
        assert_eq!(parse(b" sixteen octets \r\n").unwrap().expose(), b" sixteen octets ");
        let hex = parse(format!("0x{}\n", "00ff".repeat(8)).as_bytes()).unwrap();
        assert_eq!(hex.expose(), [0, 0xff].repeat(8));
        for (text, part) in [
            (&b"short\n"[..], "key of 5 octets"),
            (b"", "key of 0 octets"),
            (b"0x00ff00ff00ff00ff00ff00ff00ff00f", "pairs"),
            (b"0xhh", "pairs"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
