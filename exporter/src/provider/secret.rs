//! A password: read from where it is kept, shown nowhere.
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

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

    /// Where it is not in a named file: the systemd credential, then the environment's variables.
    pub fn find(credential: &str, variables: &[&str]) -> Result<Option<Self>> {
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        if let Some(path) = directory.map(|directory| directory.join(credential))
            && path.exists()
        {
            return Self::from_file(&path).map(Some);
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
}
