//! Files of the mounted guest through libguestfs: contents, owner, mode, room.
use std::ffi::{CString, c_char, c_int};

use nix::libc;

use super::library::{Handle, Library, Outcome, call};
use super::wire::MAX_FILE_BYTES;

/// `struct guestfs_statns` and `struct guestfs_statvfs` are so many 64-bit numbers.
const STATNS_FIELDS: usize = 22;
const STATVFS_FIELDS: usize = 11;

impl Library {
    pub fn read(&self, path: &CString) -> Outcome<Vec<u8>> {
        let [_, _, _, _, _, _, _, size, ..] = self.stat(path)?;
        if !(0..=i64::from(MAX_FILE_BYTES)).contains(&size) {
            return Err(format!(
                "{} of {size} bytes is too large",
                path.to_string_lossy()
            ));
        }
        let mut size = 0usize;
        type Size = *mut usize;
        let (path, size_at): (_, Size) = (path.as_ptr(), &raw mut size);
        let result = call!(
            self,
            "read_file",
            fn(*const c_char, Size) -> *mut c_char,
            path,
            size_at
        );
        if result.is_null() {
            return Err(self.last_error()?);
        }
        // SAFETY: `size` bytes that the library allocated for the caller to free.
        Ok(unsafe {
            let bytes = std::slice::from_raw_parts(result.cast::<u8>(), size).to_vec();
            libc::free(result.cast());
            bytes
        })
    }

    pub fn write(&self, path: &CString, bytes: &[u8]) -> Outcome<()> {
        let (path, content) = (path.as_ptr(), bytes.as_ptr().cast::<c_char>());
        type S = *const c_char;
        self.done(call!(
            self,
            "write",
            fn(S, S, usize) -> c_int,
            path,
            content,
            bytes.len()
        ))
    }

    pub fn chmod(&self, mode: c_int, path: &CString) -> Outcome<()> {
        let path = path.as_ptr();
        self.done(call!(
            self,
            "chmod",
            fn(c_int, *const c_char) -> c_int,
            mode,
            path
        ))
    }

    pub fn chown(&self, owner: c_int, group: c_int, path: &CString) -> Outcome<()> {
        type S = *const c_char;
        let path = path.as_ptr();
        self.done(call!(
            self,
            "chown",
            fn(c_int, c_int, S) -> c_int,
            owner,
            group,
            path
        ))
    }

    /// The fields of `struct guestfs_statns`, in its order; links are followed.
    pub fn stat(&self, path: &CString) -> Outcome<[i64; STATNS_FIELDS]> {
        let found = call!(self, "statns", fn(*const c_char) -> *mut i64, path.as_ptr());
        self.take_numbers(found)
    }

    /// The fields of `struct guestfs_statvfs`, in its order.
    pub fn statvfs(&self, path: &CString) -> Outcome<[i64; STATVFS_FIELDS]> {
        let found = call!(
            self,
            "statvfs",
            fn(*const c_char) -> *mut i64,
            path.as_ptr()
        );
        self.take_numbers(found)
    }

    fn take_numbers<const N: usize>(&self, found: *mut i64) -> Outcome<[i64; N]> {
        if found.is_null() {
            return Err(self.last_error()?);
        }
        // SAFETY: a struct of N 64-bit numbers that the library allocated; it has no pointers.
        Ok(unsafe {
            let numbers = *found.cast::<[i64; N]>();
            libc::free(found.cast());
            numbers
        })
    }
}
