//! The wire codec from outside: properties, hostile octets, encrypted framing, fragments, and the
//! fuzz targets' corpus.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// The fuzz targets' sources are public in their own crate.
#![allow(unreachable_pub)]

mod corpus;
mod encrypted;
mod fragments;
mod messages;
mod properties;
mod strategies;

// The fuzz targets' own sources, so that they run on a stable compiler.
#[path = "../../../tests/fuzz/src/samples.rs"]
mod samples;
#[path = "../../../tests/fuzz/src/targets.rs"]
mod targets;
#[path = "../../../tests/fuzz/src/toy.rs"]
mod toy;
