//! Two engines talk over a wire the tests hold in their hands: one scenario per file, after every
//! step the SAs are asserted by SPI, and every scenario ends by looking for leaks and by replaying
//! what was recorded.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::result_large_err)]

mod harness;
mod spy;

mod actions;
mod addresses;
mod bounds;
mod catalogue;
mod checklist;
mod childless;
mod children;
mod closing;
mod connecting;
mod cookies;

mod crash;
mod crossing;
mod eap;
mod eap_client;
mod early;
mod explain;
mod followup;
mod followup_crossing;
mod fragments;
mod handshake;
mod hostile;
mod lease;
mod liveness;
mod loss;
#[cfg(feature = "aws-lc")]
mod mlkem;
mod mobike;
mod multi_ke;
mod nonces;
mod ocsp;
mod ppk;
mod psk;
mod puzzles;
mod reauth;
mod redirect;
mod refusals;
mod rekey_child;
mod rekey_ike;
mod restart;
mod roles;
mod sites;
mod solutions;
mod suites;
mod synchronise;
mod transport;
mod unheard;
mod volume;
