//! Sealing of secrets at rest.

#[derive(Debug)]
pub(crate) struct Sealer;
