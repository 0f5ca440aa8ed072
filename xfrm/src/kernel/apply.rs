//! Requests to the kernel: batches that are taken back when a part is refused, deletions, and
//! questions about SAs.

use std::net::IpAddr;

use super::KernelPlane;
use super::decode::{self, SaState};
use super::encode;
use crate::error::PlaneError;
use crate::model::Spi;
use crate::netlink::{Message, Refusal};

/// One request of a sequence, and how to take it back.
pub(super) struct Step {
    pub(super) what: String,
    pub(super) message: Message,
    pub(super) undo: Option<Message>,
}

impl KernelPlane {
    /// Runs requests in one batch; after a refusal takes back, newest first, what took effect.
    pub(super) fn run(&mut self, steps: Vec<Step>) -> Result<(), PlaneError> {
        let (mut whats, mut messages, mut undos) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            whats.push(step.what);
            messages.push(step.message);
            undos.push(step.undo);
        }
        let results = self.netlink.batch(messages)?;
        let mut first = None;
        let mut done = Vec::new();
        for ((result, what), undo) in results.into_iter().zip(whats).zip(undos) {
            match result {
                Ok(()) => done.extend(undo),
                Err(refusal) => {
                    first.get_or_insert_with(|| refusal.into_error(what));
                }
            }
        }
        match first {
            None => Ok(()),
            Some(error) => {
                done.reverse();
                for result in self.netlink.batch(done)? {
                    if let Err(refusal) = result {
                        tracing::warn!(%refusal, "could not take back a part of a failed change");
                    }
                }
                Err(error)
            }
        }
    }

    /// Runs deletions; what is gone already is as good.
    pub(super) fn run_deletions(
        &mut self,
        what: &str,
        messages: Vec<Message>,
    ) -> Result<(), PlaneError> {
        let gone = |refusal: &Refusal| matches!(refusal.errno, libc::ESRCH | libc::ENOENT);
        let results = self.netlink.batch(messages)?;
        match results.into_iter().filter_map(Result::err).find(|refusal| !gone(refusal)) {
            Some(refusal) => Err(refusal.into_error(what)),
            None => Ok(()),
        }
    }

    pub(super) fn dump_sas(&mut self) -> Result<Vec<SaState>, PlaneError> {
        let ours = self.context.if_id;
        self.netlink.dump("list SAs", &encode::dump_sas(), |_, payload| {
            decode::sa(payload).map(|sa| (sa.if_id == ours).then_some(sa))
        })
    }

    /// One SA's state; `None` when the kernel no longer has it.
    pub(super) fn state(
        &mut self,
        destination: IpAddr,
        spi: Spi,
    ) -> Result<Option<SaState>, PlaneError> {
        match self.netlink.try_query(encode::get_sa(destination, spi))? {
            Ok((_, payload)) => decode::sa(&payload).map(Some),
            Err(refusal) if refusal.errno == libc::ESRCH => Ok(None),
            Err(refusal) => Err(refusal.into_error(format!("show SA {spi}"))),
        }
    }
}
