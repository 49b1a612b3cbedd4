//! What a job is: its identity, its name, what it was asked for, and the records that pollers read.
//!
//! Plain data and its JSON; nothing here touches a directory.
pub mod definition;
pub mod end;
pub mod export;
mod finding;
pub mod id;
pub mod machine;
pub mod manifest;
pub mod name;
pub mod pipeline;
pub mod record;
pub mod request;

pub use definition::{DefineState, Definition};
pub use export::{Delivery, ExportFormat, ExportRequest};
pub use finding::{Finding, GuestCode};
pub use id::JobId;
pub use machine::{Firmware, Machine, Nic};
pub use manifest::Manifest;
pub use name::VmName;
pub use record::{DiskRecord, Failure, JobState, Phase, Priority, Progress, Record, Status};
pub use request::Request;
