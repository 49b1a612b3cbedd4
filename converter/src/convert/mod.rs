//! One conversion from source to published result.
pub mod metadata;
