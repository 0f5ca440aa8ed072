//! What is acceptable: proposals, selectors, and how much strangers may make us hold. Pure
//! functions over values; nothing here knows an SA.

pub mod limits;
pub mod narrowing;
pub mod proposal;
