//! The guest in a converted disk: what it is, what keeps it from booting under KVM, and the repair.
pub mod linux;
pub mod model;
