//! Two engines talk over a wire the tests hold in their hands: one scenario per file, after every
//! step the SAs are asserted by SPI, and every scenario ends by looking for leaks and by replaying
//! what was recorded.

mod harness;

mod handshake;
