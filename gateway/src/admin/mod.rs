//! The admin API: JSON lines over a Unix socket in the state directory (mode 0600).
//!
//! One request line, one answer line, several per connection. Every request carries the protocol
//! version; the caller's uid, taken from the socket, is the actor of what it changes.

mod client;
pub mod proto;
mod server;
pub mod view;

pub use client::{Client, ClientError};
pub use server::{Handler, bind, serve};
