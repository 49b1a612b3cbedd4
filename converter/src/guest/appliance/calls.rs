//! The calls of a session, each as its type: what a repair asks of the mounted guest.
use super::wire::{Reply, Request};
use super::{Appliance, guest};
use crate::error::{Error, Result};

impl Appliance<'_> {
    fn send_call(&mut self, name: &str, arguments: &[&str]) -> Result<Reply> {
        let arguments = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        Ok(self.ask(&Request::Call(name.to_owned(), arguments), &[])?.0)
    }

    pub fn call(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        match self.send_call(name, arguments)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(name, &other)),
        }
    }

    pub fn flag(&mut self, name: &str, arguments: &[&str]) -> Result<bool> {
        match self.send_call(name, arguments)? {
            Reply::Flag(flag) => Ok(flag),
            other => Err(unexpected(name, &other)),
        }
    }

    pub fn text(&mut self, name: &str, arguments: &[&str]) -> Result<String> {
        match self.send_call(name, arguments)? {
            Reply::Text(text) => Ok(text),
            other => Err(unexpected(name, &other)),
        }
    }

    pub fn list(&mut self, name: &str, arguments: &[&str]) -> Result<Vec<String>> {
        match self.send_call(name, arguments)? {
            Reply::List(items) => Ok(items),
            other => Err(unexpected(name, &other)),
        }
    }

    /// A list that alternates between keys and values.
    pub fn pairs(&mut self, name: &str, arguments: &[&str]) -> Result<Vec<(String, String)>> {
        let mut items = self.list(name, arguments)?.into_iter();
        let mut pairs = Vec::new();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            pairs.push((key, value));
        }
        Ok(pairs)
    }

    pub fn size_bytes(&mut self, device: &str) -> Result<u64> {
        match self.send_call("blockdev_getsize64", &[device])? {
            Reply::Numbers(numbers) => Ok(non_negative(&numbers, 0)),
            other => Err(unexpected("blockdev_getsize64", &other)),
        }
    }

    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        Ok(self.ask(&Request::Read(path.to_owned()), &[])?.1)
    }

    pub fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.ask(&Request::Write(path.to_owned()), bytes)
            .map(|_| ())
    }

    /// Runs a program of the guest; what it printed.
    pub fn run(&mut self, arguments: &[&str]) -> Result<String> {
        let arguments = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        match self.ask(&Request::Run(arguments), &[])?.0 {
            Reply::Text(text) => Ok(text),
            other => Err(unexpected("command", &other)),
        }
    }

    pub fn stat(&mut self, path: &str) -> Result<Stat> {
        match self.ask(&Request::Stat(path.to_owned()), &[])?.0 {
            Reply::Numbers(numbers) => Ok(Stat {
                mode: i32::try_from(non_negative(&numbers, 0) & 0o7777).unwrap_or(0o600),
                owner: i32::try_from(non_negative(&numbers, 1)).unwrap_or(0),
                group: i32::try_from(non_negative(&numbers, 2)).unwrap_or(0),
                size_bytes: non_negative(&numbers, 3),
            }),
            other => Err(unexpected("stat", &other)),
        }
    }

    pub fn set_owner(&mut self, path: &str, stat: Stat) -> Result<()> {
        let path = path.to_owned();
        self.ask(&Request::Chown(stat.owner, stat.group, path.clone()), &[])?;
        self.ask(&Request::Chmod(stat.mode, path), &[])?;
        Ok(())
    }

    pub fn free_bytes(&mut self, path: &str) -> Result<u64> {
        self.space(path).map(|(free_bytes, _)| free_bytes)
    }

    /// Free bytes and all bytes of the file system at a path.
    pub fn space(&mut self, path: &str) -> Result<(u64, u64)> {
        match self.ask(&Request::Space(path.to_owned()), &[])?.0 {
            Reply::Numbers(numbers) => Ok((non_negative(&numbers, 0), non_negative(&numbers, 2))),
            other => Err(unexpected("statvfs", &other)),
        }
    }

    /// Discards what is free in a part of a mounted file system.
    pub fn trim(&mut self, path: &str, start: u64, length: u64, least: u64) -> Result<()> {
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (start, length, least) = (number(start), number(length), number(least));
        let request = Request::Trim(path.to_owned(), start, length, least);
        self.ask(&request, &[]).map(|_| ())
    }

    /// Whether the key opens the volume.
    pub fn open_luks(&mut self, device: &str, name: &str, key: &[u8]) -> Result<bool> {
        let request = Request::OpenLuks(device.to_owned(), name.to_owned());
        match self.ask(&request, key)?.0 {
            Reply::Flag(is_open) => Ok(is_open),
            other => Err(unexpected("cryptsetup_open", &other)),
        }
    }

    /// Activates the volume groups in what was opened.
    pub fn scan_lvm(&mut self) -> Result<()> {
        self.ask(&Request::ScanLvm, &[]).map(|_| ())
    }
}

/// What is kept of a file whose contents change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub mode: i32,
    pub owner: i32,
    pub group: i32,
    pub size_bytes: u64,
}

fn non_negative(numbers: &[i64], index: usize) -> u64 {
    let number = numbers.get(index).copied().unwrap_or_default();
    u64::try_from(number).unwrap_or_default()
}

fn unexpected(name: &str, reply: &Reply) -> Error {
    guest(format!("{name} answered {reply:?}"))
}
