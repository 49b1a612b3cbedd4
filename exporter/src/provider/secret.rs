//! A password: read from where it is kept, shown nowhere.
use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::error::{Error, Result};

const MAX_BYTES: u64 = 4096;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the one who must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The file's text without its line end.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bad = |error| Error::io("read the password in", path, error);
        let mut text = String::new();
        std::fs::File::open(path)
            .map_err(bad)?
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(bad)?;
        let secret = text.trim_end_matches(['\n', '\r']);
        if secret.is_empty() {
            return Err(
                Error::invalid(format!("{} holds no password", path.display()))
                    .with_remedy("write the password into it, as its only line"),
            );
        }
        Ok(Self::new(secret))
    }

    /// As `from_file`, of a file that is its owner's alone.
    pub fn from_private_file(path: &Path) -> Result<Self> {
        let bad = |what: &str| Error::invalid(format!("password file {} {what}", path.display()));
        // Whatever it is, opening it does not wait.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .and_then(|file| file.metadata())
            .map_err(|error| Error::io("open the password file", path, error))?;
        if !file.is_file() {
            return Err(bad("is no regular file").with_remedy("write the password into a file"));
        }
        if file.mode() & 0o077 != 0 {
            let remedy = format!("run: chmod 600 {}", path.display());
            return Err(bad("is open to others than its owner").with_remedy(remedy));
        }
        Self::from_file(path)
    }

    /// Of the server that the service knows as `name`: its systemd credential, then `file`.
    pub fn of_server(name: &str, file: Option<&Path>) -> Result<Self> {
        let credential = format!("{name}.password");
        if let Some(secret) = Self::from_credential(&credential)? {
            return Ok(secret);
        }
        file.map_or_else(
            || {
                Err(Error::invalid(format!(
                    "there is no credential {credential}, and password_file is not set"
                ))
                .with_remedy(format!(
                    "add LoadCredential={credential}:FILE to hypervisord.service, or set \
                     password_file in hypervisord.toml"
                )))
            },
            Self::from_private_file,
        )
    }

    /// What systemd handed to this process under that name.
    fn from_credential(name: &str) -> Result<Option<Self>> {
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let path = directory.map(|directory| directory.join(name));
        let path = path.filter(|path| path.exists());
        path.map(|path| Self::from_file(&path)).transpose()
    }

    /// Where it is not in a named file: the systemd credential, then the environment's variables.
    pub fn find(credential: &str, variables: &[&str]) -> Result<Option<Self>> {
        if let Some(secret) = Self::from_credential(credential)? {
            return Ok(Some(secret));
        }
        let set = variables.iter().filter_map(|name| std::env::var(name).ok());
        Ok(set.filter(|value| !value.is_empty()).map(Self).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_without_its_line_end_and_never_shown() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("password");
        std::fs::write(&path, " pass word \r\n").unwrap();
        let secret = Secret::from_file(&path).unwrap();
        assert_eq!(secret.expose(), " pass word ");
        assert_eq!(format!("{secret:?}"), "Secret");
        std::fs::write(&path, "\n").unwrap();
        assert!(Secret::from_file(&path).is_err());
        assert!(
            Secret::find("no-such-credential", &["NO_SUCH_VARIABLE_OF_OURS"])
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_file_of_the_service_is_its_own_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("password");
        std::fs::write(&path, "p\n").unwrap();
        let set = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
            Secret::of_server("no-such-server", Some(&path))
        };
        assert_eq!(set(0o600).unwrap().expose(), "p");
        for mode in [0o640, 0o604, 0o602] {
            let error = set(mode).unwrap_err();
            assert!(error.to_line().contains("chmod 600"), "{error}");
        }
        let pipe = place.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for wrong in [place.path(), &pipe] {
            let error = Secret::from_private_file(wrong).unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
        let error = Secret::of_server("no-such-server", None).unwrap_err();
        assert!(
            error
                .to_line()
                .contains("LoadCredential=no-such-server.password")
        );
    }
}
