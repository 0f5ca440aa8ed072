//! An allocator that counts the bytes in use, for tests and benchmarks of memory.
//!
//! A program that wants it says `#[global_allocator] static ALLOCATOR: Counting = Counting;` and
//! calls [`start`]: until then it costs a load and a branch, so that times are not those of
//! counting.
#![allow(unsafe_code)] // what an allocator is

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static COUNTS: AtomicBool = AtomicBool::new(false);

/// Wraps below zero when memory from before the start is given back: only differences mean
/// something.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

/// Begins to count.
pub fn start() {
    COUNTS.store(true, Ordering::Relaxed);
}

/// Bytes taken and not given back since `before`, a value of [`now`]; zero when more was given
/// back than taken, and when nothing is counted.
#[must_use]
pub fn since(before: usize) -> usize {
    let grown = now().wrapping_sub(before);
    if grown > usize::MAX / 2 { 0 } else { grown }
}

/// The counter.
#[must_use]
pub fn now() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let pointer = unsafe { System.alloc(layout) };
        if COUNTS.load(Ordering::Relaxed) && !pointer.is_null() {
            IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) };
        if COUNTS.load(Ordering::Relaxed) {
            IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let moved = unsafe { System.realloc(pointer, layout, new_size) };
        if COUNTS.load(Ordering::Relaxed) && !moved.is_null() {
            IN_USE.fetch_add(new_size, Ordering::Relaxed);
            IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        moved
    }
}
