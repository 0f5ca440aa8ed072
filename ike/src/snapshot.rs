//! An IKE SA at an exchange boundary as plain, versioned data.

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {}

/// Why octets are not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It was written by a newer version.
    #[error("version {0} is not known here")]
    Version(u8),
}

impl crate::sa::IkeSa {
    pub(crate) fn snapshot(&self, _ctx: &crate::sa::context::Ctx) -> Option<Snapshot> {
        self.is_established().then_some(Snapshot {})
    }
}
