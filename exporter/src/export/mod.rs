//! One export: a VM of a provider becomes a directory with its disks and, last, the manifest.
//!
//! The only room that knows the providers; where the directory goes is its caller's business.
mod manifest;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use queue::job::{JobId, VmName};

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Provider, Vm};
use crate::provider::local::Local;
use crate::transfer::{Algorithm, MODE, Monitor};

/// A VM that is described and not yet exported.
pub struct Export {
    provider: Box<dyn Provider>,
    pub vm: Vm,
    /// Its name as a file name.
    pub name: VmName,
}

/// What of an export is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub checksum: Algorithm,
    pub manifest: bool,
}

impl Export {
    /// Disks of this host: a directory or one file.
    pub fn local(source: &Path, name: Option<&str>) -> Result<Self> {
        Self::describe(Box::new(Local::new(source, name)))
    }

    /// Finds the VM; changes nothing.
    pub fn describe(provider: Box<dyn Provider>) -> Result<Self> {
        let vm = provider.describe()?;
        let name = VmName::new(&vm.name)?;
        Ok(Self { provider, vm, name })
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
        let disks = self
            .provider
            .export(&self.vm, directory, form.checksum, monitor)?;
        if form.manifest {
            let manifest = manifest::build(&*self.provider, &self.vm, &disks, job);
            let mut text = serde_json::to_string_pretty(&manifest).map_err(|error| {
                Error::new(ErrorKind::Internal, "write the manifest").with_source(error)
            })?;
            text.push('\n');
            let path = directory.join(manifest::FILE_NAME);
            std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(MODE))
                .map_err(|error| Error::io("set the mode of", &path, error))?;
        }
        Ok(disks)
    }
}
