//! The OVF descriptor that the server writes of the VM, for the files that were downloaded.
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use roxmltree::Node;

use super::session::{Effect, Session};
use super::soap::{self, Moref, element};
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::{MODE, Monitor};

/// A downloaded file.
pub struct File<'a> {
    /// Of its device in the lease.
    pub key: &'a str,
    pub name: &'a str,
    pub size_bytes: u64,
}

/// Writes the descriptor to a new file at `to`.
pub fn write(
    session: &Session,
    vm: &Moref,
    name: &str,
    files: &[File<'_>],
    to: &Path,
    monitor: &dyn Monitor,
) -> Result<()> {
    let manager = session.content.ovf.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "the server writes no OVF descriptors",
        )
    })?;
    let file = |file: &File<'_>| {
        let parts = [
            element("deviceId", file.key),
            element("path", file.name),
            element("size", &file.size_bytes.to_string()),
        ];
        format!("<ovfFiles>{}</ovfFiles>", parts.concat())
    };
    let files: String = files.iter().map(file).collect();
    let arguments = format!(
        "{}<cdp>{files}{}</cdp>",
        vm.to_xml("obj"),
        element("name", name)
    );
    let method = "CreateDescriptor";
    let text = session.call(manager, method, &arguments, Effect::None, monitor, text)?;
    std::fs::write(to, text).map_err(|error| Error::io("write", to, error))?;
    std::fs::set_permissions(to, PermissionsExt::from_mode(MODE))
        .map_err(|error| Error::io("set the mode of", to, error))
}

fn text(node: Node<'_, '_>) -> Result<String> {
    if let Some(text) = soap::at(node, "returnval/ovfDescriptor").and_then(|node| node.text()) {
        return Ok(text.to_owned());
    }
    let fault = soap::at(node, "returnval/error").map(soap::Fault::localized);
    let doing = "write the OVF descriptor";
    let unknown = || Error::new(ErrorKind::Io, doing).with_source("the server returned none");
    Err(fault.map_or_else(unknown, |fault| fault.into_error(doing)))
}
