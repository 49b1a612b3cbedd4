//! The filesystem queue: the contract on disk between every part of the product.
//!
//! Depends on no other member. Everything that renames, links or fsyncs is in `durable`.
pub mod arrival;
pub mod durable;
pub mod error;
pub mod instance;
pub mod job;
pub mod roots;
#[cfg(feature = "service")]
pub mod service;
pub mod spool;
