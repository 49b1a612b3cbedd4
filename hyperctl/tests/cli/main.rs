//! hyperctl as it is run: the real program over directories that a daemon might have left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod convert;
mod daemon;
mod exports;
mod fixture;
mod follow;
mod read;
mod steer;
mod terminal;
