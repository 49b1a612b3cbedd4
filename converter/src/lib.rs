//! The converter.
pub use queue::error;

pub mod source;
