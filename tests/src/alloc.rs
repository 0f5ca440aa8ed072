//! An allocator that counts the bytes in use, for tests and benchmarks of memory.
//!
//! A program that wants it says `#[global_allocator] static ALLOCATOR: Counting = Counting;` and
//! calls [`start`]: until then it costs a load and a branch, so that times are not those of
//! counting. Each thread has a counter of its own, so that what other threads of a program do
//! (a test runner that reports, tests beside this one) is not in the numbers; what one thread
//! takes and another gives back is in neither's.
#![allow(unsafe_code)] // what an allocator is

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

static COUNTS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Wraps below zero when memory from before the start, or of another thread, is given back:
    /// only differences mean something. Constant and without a destructor, so that its first use
    /// allocates nothing.
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

/// Begins to count.
pub fn start() {
    COUNTS.store(true, Ordering::Relaxed);
}

/// Bytes this thread took and did not give back since `before`, a value of [`now`]; zero when more was given
/// back than taken, and when nothing is counted.
#[must_use]
pub fn since(before: usize) -> usize {
    let grown = now().wrapping_sub(before);
    if grown > usize::MAX / 2 { 0 } else { grown }
}

/// This thread's counter.
#[must_use]
pub fn now() -> usize {
    IN_USE.get()
}

/// Counts `taken` bytes and forgets `given` ones, when counting has begun.
fn count(taken: usize, given: usize) {
    if COUNTS.load(Ordering::Relaxed) {
        IN_USE.set(IN_USE.get().wrapping_add(taken).wrapping_sub(given));
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            count(layout.size(), 0);
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) };
        count(0, layout.size());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let moved = unsafe { System.realloc(pointer, layout, new_size) };
        if !moved.is_null() {
            count(new_size, layout.size());
        }
        moved
    }
}
