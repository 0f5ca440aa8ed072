//! Bodies of the fuzz targets, as plain functions, so that the committed corpus is replayed by an
//! ordinary test of the `ike` crate on a stable compiler.

pub mod samples;
pub mod targets;
pub mod toy;
