//! Bodies of the fuzz targets, as plain functions, so that the committed corpus is replayed by an
//! ordinary test of the `ike` and `pki` crates on a stable compiler. Those of `xfrm` are its own.

pub mod enrol;
pub mod jwt;
pub mod samples;
pub mod status;
pub mod targets;
pub mod toy;
pub mod webhook;
