//! One export: a VM of a provider becomes a directory with its disks and, last, the manifest.
//!
//! The only room that knows the providers; where the directory goes is its caller's business.
mod manifest;
pub mod origin;
mod ova;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

pub use self::origin::Origin;
use queue::job::manifest::Manifest;
use queue::job::{JobId, VmName};

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Exported, Ledger, Order, Provider, Stream, Vm};
use crate::transfer::{Algorithm, MODE, Monitor};

/// A VM that is described and not yet exported.
pub struct Export {
    provider: Arc<dyn Provider>,
    ledger: Arc<dyn Ledger>,
    pub vm: Vm,
    /// Its name as a file name.
    pub name: VmName,
    /// Packs everything into one appliance, which then lies there alone.
    pub as_ova: bool,
}

/// What of an export is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub checksum: Algorithm,
    pub manifest: bool,
}

impl Export {
    /// Finds the VM; changes nothing. It is called `name`, if that is given, from here on. What
    /// its export leaves on the server meanwhile is written to `ledger`.
    pub fn describe(
        provider: Arc<dyn Provider>,
        vm: &str,
        name: Option<&str>,
        ledger: Arc<dyn Ledger>,
    ) -> Result<Self> {
        let mut vm = provider.describe(vm)?;
        if let Some(name) = name {
            name.clone_into(&mut vm.name);
        }
        let name = VmName::new(&vm.name)?;
        Ok(Self {
            provider,
            ledger,
            vm,
            name,
            as_ova: false,
        })
    }

    pub fn provider(&self) -> &'static str {
        self.provider.name()
    }

    /// Fills a directory: the disks first, the manifest that names them last.
    pub fn fill(
        &self,
        directory: &Path,
        job: JobId,
        form: Form,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Delivered>> {
        let exported = self.fetch(directory, form.checksum, None, monitor)?;
        if self.as_ova {
            let name = self.name.as_str();
            return Ok(vec![ova::pack(directory, name, &exported, monitor)?]);
        }
        if form.manifest {
            write(directory, &self.manifest(&exported, job, false))?;
        }
        Ok(exported.disks)
    }

    /// Brings the disks into the directory, or where `stream` has them, and no manifest.
    pub fn fetch(
        &self,
        directory: &Path,
        checksum: Algorithm,
        stream: Option<&dyn Stream>,
        monitor: &dyn Monitor,
    ) -> Result<Exported> {
        let order = Order { checksum, stream };
        let provider = &self.provider;
        let exported = provider.export(&self.vm, directory, order, &*self.ledger, monitor)?;
        for warning in &exported.warnings {
            monitor.warn(warning);
        }
        Ok(exported)
    }

    /// What tells the converter of the disks; `is_growing`: they only begin to arrive.
    pub fn manifest(&self, exported: &Exported, job: JobId, is_growing: bool) -> Manifest {
        manifest::build(&*self.provider, &self.vm, exported, job, is_growing)
    }
}

/// Writes the manifest into the directory of an export.
pub fn write(directory: &Path, manifest: &Manifest) -> Result<()> {
    let mut text = serde_json::to_string_pretty(manifest).map_err(|error| {
        Error::new(ErrorKind::Internal, "write the manifest").with_source(error)
    })?;
    text.push('\n');
    let path = directory.join(manifest::FILE_NAME);
    std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(MODE))
        .map_err(|error| Error::io("set the mode of", &path, error))
}
