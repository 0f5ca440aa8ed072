//! The contract of [`Store`](super::Store) as tests, run on every backend.
