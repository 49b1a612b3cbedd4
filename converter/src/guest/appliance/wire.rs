//! What the converter and its appliance process say to each other: frames of a JSON text and the
//! raw bytes of a file, each preceded by its length (u32, big endian).
use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

const MAX_TEXT_BYTES: u32 = 64 << 20;
/// The largest file of a guest that is read or written through a session.
pub(super) const MAX_FILE_BYTES: u32 = 256 << 20;

/// What the process is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Once, before anything else.
    Launch(Launch),
    /// One of `library::CALLS`, which take nothing but texts.
    Call(String, Vec<String>),
    Read(String),
    /// The bytes are the frame's.
    Write(String),
    /// A program of the guest and its arguments.
    Run(Vec<String>),
    Chmod(i32, String),
    Chown(i32, i32, String),
    /// Mode, owner and group, size.
    Stat(String),
    /// Free bytes, free inodes, and bytes of the file system at a path.
    Space(String),
    /// Mountpoint, first byte, number of bytes, least length of a piece.
    Trim(String, i64, i64, i64),
    /// Device, key (the frame's bytes), name of the mapping.
    OpenLuks(String, String),
    ScanLvm,
    /// Unmounts, flushes, powers off.
    Shutdown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Launch {
    pub drives: Vec<Drive>,
    pub memory_mib: i32,
    pub cpus: i32,
}

/// One disk of the guest, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    pub path: String,
    /// `qcow2` or `raw`; never probed.
    pub format: String,
    pub read_only: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Done,
    Flag(bool),
    Text(String),
    List(Vec<String>),
    Numbers(Vec<i64>),
    /// The frame's bytes.
    Bytes,
    Failed(String),
}

pub(super) fn send<T: Serialize>(to: &mut impl Write, message: &T, bytes: &[u8]) -> Result<()> {
    let text = serde_json::to_vec(message).map_err(|error| broken("write").with_source(error))?;
    let length = |length: usize, limit: u32| {
        let length = u32::try_from(length).ok().filter(|length| *length <= limit);
        length.ok_or_else(|| broken("a message that is too long for"))
    };
    let head = [
        length(text.len(), MAX_TEXT_BYTES)?.to_be_bytes(),
        length(bytes.len(), MAX_FILE_BYTES)?.to_be_bytes(),
    ];
    to.write_all(head.as_flattened())
        .and_then(|()| to.write_all(&text))
        .and_then(|()| to.write_all(bytes))
        .and_then(|()| to.flush())
        .map_err(|error| broken("write").with_source(error))
}

/// The next message; `None` at the end of the stream.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<(T, Vec<u8>)>> {
    let failed = |error: std::io::Error| broken("read").with_source(error);
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(failed)?,
    }
    let text_length = u32::from_be_bytes(length);
    from.read_exact(&mut length).map_err(failed)?;
    let bytes_length = u32::from_be_bytes(length);
    if text_length > MAX_TEXT_BYTES || bytes_length > MAX_FILE_BYTES {
        return Err(broken("a message that is too long for"));
    }
    let mut text = vec![0; text_length as usize];
    from.read_exact(&mut text).map_err(failed)?;
    let mut bytes = vec![0; bytes_length as usize];
    from.read_exact(&mut bytes).map_err(failed)?;
    let message = serde_json::from_slice(&text).map_err(|e| broken("read").with_source(e))?;
    Ok(Some((message, bytes)))
}

fn broken(doing: &str) -> Error {
    Error::new(ErrorKind::Guest, format!("{doing} the appliance's pipe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe_and_lies_do_not() {
        let mut pipe = Vec::new();
        let request = Request::Write("/etc/\u{fc}".to_owned());
        send(&mut pipe, &request, &[0, 255, 10]).unwrap();
        send(&mut pipe, &Request::Shutdown, &[]).unwrap();
        let mut read = pipe.as_slice();
        assert_eq!(
            receive(&mut read).unwrap(),
            Some((request, vec![0, 255, 10]))
        );
        assert_eq!(
            receive(&mut read).unwrap(),
            Some((Request::Shutdown, vec![]))
        );
        assert_eq!(receive::<Request>(&mut read).unwrap(), None);
        for lie in [
            &[255u8; 8][..],
            &[0, 0, 0, 9, 0, 0, 0, 0, b'"'][..],
            &[0, 0, 0, 1, 0, 0, 0, 0, b'{'][..],
        ] {
            assert!(receive::<Request>(&mut &lie[..]).is_err());
        }
    }
}
