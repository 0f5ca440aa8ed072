//! The certificate status protocol (RFC 6960): our own responder.
//!
//! `request` reads what strangers ask, `delegate` is the key that signs answers, `respond` decides
//! and encodes them. A request becomes a response as a pure function of the store and the time:
//! who revokes has flipped the answer when the revocation's transaction is done.

mod delegate;
mod request;
mod respond;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use respond::{OcspReply, OcspStatus};

use delegate::Delegate;
use respond::Answered;

use crate::signer::Turn;

/// The largest request looked at, octets.
const MAX_REQUEST: usize = 8 * 1024;

/// What the responder keeps in memory: the opened signers, and answers that any client may get.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    delegates: BTreeMap<String, Arc<Delegate>>,
    /// Who makes the next signer of each CA.
    turns: BTreeMap<String, Arc<Turn>>,
    answers: BTreeMap<respond::Question, Answered>,
}
