//! One target per parser: structured damage over files that are sound, case after case.
//!
//! Each case ends within a bound of processor time, holds no more memory than a bound, panics
//! nowhere, and what maps it yields are maps. PROPTEST_CASES says how many; `make fuzz` a million.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
mod archive;
mod arriving;
mod blocks;
mod edit;
mod form;
mod journal;
mod judge;
mod memory;
mod text;
mod vmdk;
mod wrapper;
