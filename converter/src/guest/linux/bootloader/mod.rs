//! What starts the kernel: where its command line stands, and what is wrong with it.
pub mod cmdline;
pub mod console;
pub mod defaults;
pub mod device_map;
pub mod entries;
pub mod fallback;
