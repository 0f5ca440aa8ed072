//! Vendor ID payload (RFC 7296 3.12).

use super::{Reader, Writer};

/// An opaque vendor identification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorId(pub Vec<u8>);

impl VendorId {
    pub(super) fn parse(mut r: Reader<'_>) -> Self {
        Self(r.rest().to_vec())
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.bytes(&self.0);
    }
}
