//! The converter.
pub use queue::error;

pub mod convert;
pub mod libvirt;
pub mod source;
