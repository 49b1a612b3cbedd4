//! What the whole-program tests share.
pub mod daemon;
pub mod deflate;
pub mod dice;
pub mod engine;
pub mod enumerate;
pub mod exports;
pub mod guest;
pub mod images;
pub mod invariants;
pub mod model;
pub mod mount;
pub mod programs;
pub mod scene;
pub mod stream;
pub mod vhd;
pub mod vhdx;
pub mod vmfs;
