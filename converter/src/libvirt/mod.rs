//! The libvirt domain of a converted VM: `domain.xml`, as text, and telling libvirt of it.
//!
//! The text renders facts and stated defaults and touches no file; only `define` calls libvirt,
//! through its own client, and never starts, changes or removes a domain of anybody else.
mod define;
mod domain;
mod hardware;
mod xml;

pub use define::define;
pub use domain::{Devices, Domain, DomainDisk, DomainSpec, domain_uuid, domain_xml};
pub use hardware::{Hardware, resolve};
