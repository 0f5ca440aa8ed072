//! A file as words that several threads count in, and that outlive the process.
//!
//! Duty: map and unmap; nothing else. On a tmpfs the words stay what they were when the process is
//! killed at any instant: a store is in the file the moment it is made.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapped file of 64-bit words.
#[derive(Debug)]
pub(super) struct SharedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to this value alone and is only reached through atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of a file, which is made that long when it is shorter, with
    /// memory behind every word. Nobody
    /// may cut it while it is mapped: keep it where only this user can.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub(super) fn map(file: &File, count: usize) -> io::Result<Self> {
        let octets = count
            .checked_mul(size_of::<u64>())
            .filter(|octets| *octets > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // All of it now: a store into a page for which there is no memory any more would be a
        // signal (SIGBUS) instead of an error.
        fallocate(file, FallocateFlags::empty(), 0, octets as u64)?;
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing, and the file is
        // at least as long as what is mapped.
        let start = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), octets, access, MapFlags::SHARED, file, 0)
        }?;
        // Mappings begin at a page: aligned for any word.
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, count })
    }

    /// The words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `map` made this many words there, any bits are a valid word, and they live as
        // long as this value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let octets = self.count.saturating_mul(size_of::<u64>());
        // SAFETY: exactly what `map` mapped; nobody borrows the words any more.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), octets) } {
            tracing::warn!(%error, "sequence numbers not unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn words_outlive_their_mapping() {
        let file = tempfile::tempfile().unwrap();
        let first = SharedWords::map(&file, 1000).unwrap();
        first.words()[999].store(7, Ordering::Relaxed);
        let second = SharedWords::map(&file, 1000).unwrap();
        assert_eq!(second.words()[999].load(Ordering::Relaxed), 7, "at once");
        drop(first);
        second.words()[0].store(8, Ordering::Relaxed);
        drop(second);
        let third = SharedWords::map(&file, 1000).unwrap();
        assert_eq!(third.words()[0].load(Ordering::Relaxed), 8);
        assert_eq!(third.words().len(), 1000);
        assert!(SharedWords::map(&file, 0).is_err());
        assert!(SharedWords::map(&file, usize::MAX).is_err());
    }
}
