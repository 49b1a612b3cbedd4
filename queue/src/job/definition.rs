//! What became of defining a result in libvirt, for the job's record.
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Whether libvirt knows a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefineState {
    /// Asked for, and not answered yet.
    Pending,
    Defined,
    /// Another domain has its name.
    NameTaken,
    Failed,
}

impl DefineState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Defined => "defined",
            Self::NameTaken => "name_taken",
            Self::Failed => "failed",
        }
    }
}

/// What became of defining a result in libvirt. The conversion is completed, whatever this says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub state: DefineState,
    pub uri: String,
    /// One line each: the cause, and what to do about it.
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default)]
    pub remedy: Option<String>,
}

impl Definition {
    /// That libvirt knows the VM `vm`; else the error that says why not.
    pub fn check(&self, vm: &str) -> Result<()> {
        if self.state == DefineState::Defined {
            return Ok(());
        }
        let message = self.message.as_deref().unwrap_or(self.state.as_str());
        let text = format!(
            "{vm} is converted, but not defined at {}: {message}",
            self.uri
        );
        let error = Error::new(ErrorKind::Io, text);
        Err(match &self.remedy {
            Some(remedy) => error.with_remedy(remedy.clone()),
            None => error,
        })
    }
}
