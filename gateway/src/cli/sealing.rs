//! `--seal-key`, of every command that opens the state.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where the key is that seals the CA's keys.
#[derive(Debug, clap::Args)]
pub(super) struct SealKeyArg {
    /// File with the key that seals the CA's keys, while no gateway runs [default: systemd's
    /// credential `seal.key`, or seal.key in the state directory]
    #[arg(id = "seal_key", long = "seal-key", value_name = "FILE")]
    given: Option<PathBuf>,
}

impl SealKeyArg {
    /// The file that was named, or the one that systemd hands over
    /// (`LoadCredential=seal.key:FILE`); `None` leaves it to the state directory.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.given.clone().or_else(|| credential(std::env::var_os("CREDENTIALS_DIRECTORY")))
    }
}

fn credential(directory: Option<OsString>) -> Option<PathBuf> {
    let file = PathBuf::from(directory?).join("seal.key");
    file.exists().then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sealing_key_is_taken_from_systemd_when_it_hands_one_over() {
        let directory = tempfile::tempdir().unwrap();
        let name = || Some(directory.path().as_os_str().to_owned());
        assert_eq!(credential(None), None);
        assert_eq!(credential(name()), None, "other credentials may be there");
        std::fs::write(directory.path().join("seal.key"), "x").unwrap();
        assert_eq!(credential(name()), Some(directory.path().join("seal.key")));
    }
}
