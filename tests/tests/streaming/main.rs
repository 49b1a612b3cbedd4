//! A disk that is converted while it arrives: what comes out is what comes out of the whole file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
mod daemon;
mod growing;
mod samples;
mod verdicts;
