//! The product's programs, as cargo built them beside the tests.
#![allow(clippy::panic)] // a panic is how a test fails
use std::path::PathBuf;

/// The path of a program; one that was not built fails the test and says how to build it.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let path = test.ancestors().nth(2).map(|dir| dir.join(name));
    match path {
        Some(path) if path.exists() => path,
        _ => panic!("no {name} beside the tests: `cargo build --workspace` makes it"),
    }
}
