//! Arrival: which drops lie in the queue directory, and which of them are whole.
//!
//! Reads only; moving what is whole is the spool's. A drop that was renamed in is whole at once;
//! one that was written in place when nobody writes it, it has been still, and its structure is
//! complete. An owner (descriptor, OVF, manifest) speaks for its pieces.
pub mod candidate;
mod drops;
mod elsewhere;
mod examine;
mod gather;
pub mod ovf;
pub mod parents;
pub mod pieces;
mod requests;
mod settle;
#[cfg(test)]
mod tests;
mod texts;
mod tracker;
pub mod watch;
pub mod whole;
pub mod xml;

pub use drops::Arrival;
pub use gather::Gathered;
pub use tracker::{ADOPTION_GRACE, Arrivals, Intake, Terms};
