//! The libvirt domain of a converted VM: `domain.xml`, as text.
//!
//! Renders facts and stated defaults; touches no file and no libvirt.
mod domain;
mod hardware;
mod xml;

pub use domain::{Devices, Domain, DomainDisk, DomainSpec, domain_xml};
pub use hardware::{Hardware, resolve};
