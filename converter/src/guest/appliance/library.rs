//! libguestfs.so.0, opened at run time, so that the program starts without it: the calls of its C
//! interface (guestfs(3)) that a session makes, each checked for the library's own error.
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use nix::libc;

use super::told::{EVENT_APPLIANCE, Printer, one_line, print};
use super::wire::{Drive, Launch};

/// The reason of a failed call, as the library told it.
pub(super) type Outcome<T> = Result<T, String>;

const NAME: &CStr = c"libguestfs.so.0";
/// What the library says where a key does not fit: cryptsetup(8), RETURN CODES.
const WRONG_KEY: &str = "cryptsetup exited with status 2";

/// What a call returns, and how it says that it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `int`, -1.
    Nothing,
    /// `int` 0 or 1, -1.
    Flag,
    /// A string that the caller frees, NULL.
    Text,
    /// A list of strings that the caller frees, NULL.
    List,
    /// `int64_t`, -1.
    Number,
}

/// The calls that take nothing but texts: name, number of texts, what comes back.
pub(super) const CALLS: [(&str, usize, Shape); 41] = [
    ("blkid", 1, Shape::List),
    ("blockdev_getsize64", 1, Shape::Number),
    ("canonical_device_name", 1, Shape::Text),
    ("cp_a", 2, Shape::Nothing),
    ("exists", 1, Shape::Flag),
    ("find", 1, Shape::List),
    ("glob_expand", 1, Shape::List),
    ("inspect_get_arch", 1, Shape::Text),
    ("inspect_get_distro", 1, Shape::Text),
    ("inspect_get_hostname", 1, Shape::Text),
    ("inspect_get_mountpoints", 1, Shape::List),
    ("inspect_get_package_management", 1, Shape::Text),
    ("inspect_get_product_name", 1, Shape::Text),
    ("inspect_get_type", 1, Shape::Text),
    ("inspect_os", 0, Shape::List),
    ("is_dir", 1, Shape::Flag),
    ("is_file", 1, Shape::Flag),
    ("is_symlink", 1, Shape::Flag),
    ("list_devices", 0, Shape::List),
    ("list_filesystems", 0, Shape::List),
    ("list_md_devices", 0, Shape::List),
    ("list_partitions", 0, Shape::List),
    ("ln_sf", 2, Shape::Nothing),
    ("ls", 1, Shape::List),
    ("lvm_canonical_lv_name", 1, Shape::Text),
    ("lvs", 0, Shape::List),
    ("mkdir_p", 1, Shape::Nothing),
    ("mount", 2, Shape::Nothing),
    ("mount_options", 3, Shape::Nothing),
    ("mount_ro", 2, Shape::Nothing),
    ("mv", 2, Shape::Nothing),
    ("part_get_parttype", 1, Shape::Text),
    ("readlink", 1, Shape::Text),
    ("realpath", 1, Shape::Text),
    ("rm_f", 1, Shape::Nothing),
    ("sh", 1, Shape::Text),
    ("sync", 0, Shape::Nothing),
    ("umount_all", 0, Shape::Nothing),
    ("vfs_label", 1, Shape::Text),
    ("vfs_type", 1, Shape::Text),
    ("vfs_uuid", 1, Shape::Text),
];

/// `guestfs_h`.
pub(super) type Handle = *mut c_void;

/// The numbers of the optional arguments (guestfs.h); -1 ends their list.
const ADD_DRIVE_READONLY: c_int = 0;
const ADD_DRIVE_FORMAT: c_int = 1;
const ADD_DRIVE_CACHEMODE: c_int = 9;
const ADD_DRIVE_DISCARD: c_int = 10;
const TRIM_OFFSET: c_int = 0;
const TRIM_LENGTH: c_int = 1;
const TRIM_LEAST: c_int = 2;
const END: c_int = -1;

pub(super) struct Library {
    object: *mut c_void,
    pub(super) handle: Handle,
}

/// Calls the function `$name` of the library with the signature that follows it.
macro_rules! call {
    ($library:expr, $name:expr, fn($($kind:ty),*) -> $result:ty, $($argument:expr),*) => {{
        let symbol = $library.symbol($name)?;
        // SAFETY: guestfs.h declares a function of this name with exactly this signature; the
        // handle is open, and every pointer lives until the call returns.
        unsafe {
            let function: unsafe extern "C" fn(Handle $(, $kind)*) -> $result =
                std::mem::transmute(symbol);
            function($library.handle $(, $argument)*)
        }
    }};
}

pub(super) use call;

impl Library {
    /// Opens the library and a handle of it.
    pub fn open() -> Outcome<Self> {
        // SAFETY: dlopen(3) with a constant name; the library's initialisers are its own.
        let object = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW) };
        if object.is_null() {
            return Err(last_dl_error());
        }
        let mut library = Self {
            object,
            handle: ptr::null_mut(),
        };
        let create = library.symbol("create")?;
        // SAFETY: `guestfs_h *guestfs_create (void)`.
        library.handle = unsafe {
            let create: unsafe extern "C" fn() -> Handle = std::mem::transmute(create);
            create()
        };
        if library.handle.is_null() {
            return Err("guestfs_create returned nothing".to_owned());
        }
        // Errors are returned, not printed.
        let nobody: *const c_void = ptr::null();
        call!(
            library,
            "set_error_handler",
            fn(*const c_void, *const c_void) -> (),
            nobody,
            nobody
        );
        library.done(call!(
            library,
            "set_event_callback",
            fn(Printer, u64, c_int, *const c_void) -> c_int,
            print,
            EVENT_APPLIANCE,
            0,
            nobody
        ))?;
        Ok(library)
    }

    pub(super) fn symbol(&self, name: &str) -> Outcome<*mut c_void> {
        let name = text(&format!("guestfs_{name}"))?;
        // SAFETY: the object was opened and is never closed; the name ends with a zero.
        let symbol = unsafe { libc::dlsym(self.object, name.as_ptr()) };
        if symbol.is_null() {
            return Err(last_dl_error());
        }
        Ok(symbol)
    }

    pub(super) fn last_error(&self) -> Outcome<String> {
        let message = call!(self, "last_error", fn() -> *const c_char,);
        if message.is_null() {
            return Ok("it does not say why".to_owned());
        }
        // SAFETY: a string of the handle, valid until its next call.
        Ok(one_line(
            &unsafe { CStr::from_ptr(message) }.to_string_lossy(),
        ))
    }

    pub(super) fn done(&self, result: c_int) -> Outcome<()> {
        if result == -1 {
            return Err(self.last_error()?);
        }
        Ok(())
    }

    pub fn launch(&self, order: &Launch) -> Outcome<()> {
        self.done(call!(
            self,
            "set_memsize",
            fn(c_int) -> c_int,
            order.memory_mib
        ))?;
        self.done(call!(self, "set_smp", fn(c_int) -> c_int, order.cpus))?;
        for drive in &order.drives {
            self.add_drive(drive)?;
        }
        self.done(call!(self, "launch", fn() -> c_int,))
    }

    fn add_drive(&self, drive: &Drive) -> Outcome<()> {
        let (path, format) = (text(&drive.path)?, text(&drive.format)?);
        let add = self.symbol("add_drive_opts")?;
        // The overlay is thrown away unless everything succeeds: flushes would only cost time.
        let (cache, discard) = (c"unsafe", c"besteffort");
        let read_only = c_int::from(drive.read_only);
        // SAFETY: `int guestfs_add_drive_opts (guestfs_h *, const char *, ...)`: pairs of a number
        // and its value, of the types that guestfs(3) gives them, ended by -1.
        let result = unsafe {
            let add: unsafe extern "C" fn(Handle, *const c_char, ...) -> c_int =
                std::mem::transmute(add);
            if drive.read_only {
                add(
                    self.handle,
                    path.as_ptr(),
                    ADD_DRIVE_READONLY,
                    read_only,
                    ADD_DRIVE_FORMAT,
                    format.as_ptr(),
                    END,
                )
            } else {
                add(
                    self.handle,
                    path.as_ptr(),
                    ADD_DRIVE_FORMAT,
                    format.as_ptr(),
                    ADD_DRIVE_CACHEMODE,
                    cache.as_ptr(),
                    ADD_DRIVE_DISCARD,
                    discard.as_ptr(),
                    END,
                )
            }
        };
        self.done(result)
    }

    pub fn shutdown(&self) -> Outcome<()> {
        self.done(call!(self, "shutdown", fn() -> c_int,))
    }

    pub fn number_call(&self, name: &str, arguments: &[CString]) -> Outcome<i64> {
        let [a] = arguments else {
            return Err(format!("{name} is not called like this"));
        };
        let number = call!(self, name, fn(*const c_char) -> i64, a.as_ptr());
        if number == -1 {
            return Err(self.last_error()?);
        }
        Ok(number)
    }

    /// A call that returns `int`.
    pub fn int_call(&self, name: &str, arguments: &[CString]) -> Outcome<c_int> {
        type S = *const c_char;
        let result = match arguments {
            [] => call!(self, name, fn() -> c_int,),
            [a] => call!(self, name, fn(S) -> c_int, a.as_ptr()),
            [a, b] => call!(self, name, fn(S, S) -> c_int, a.as_ptr(), b.as_ptr()),
            [a, b, c] => {
                let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_ptr());
                call!(self, name, fn(S, S, S) -> c_int, a, b, c)
            }
            _ => return Err(format!("{name} is not called like this")),
        };
        self.done(result)?;
        Ok(result)
    }

    pub fn text_call(&self, name: &str, arguments: &[CString]) -> Outcome<String> {
        let [a] = arguments else {
            return Err(format!("{name} is not called like this"));
        };
        let result = call!(self, name, fn(*const c_char) -> *mut c_char, a.as_ptr());
        self.take_text(result)
    }

    fn take_text(&self, result: *mut c_char) -> Outcome<String> {
        if result.is_null() {
            return Err(self.last_error()?);
        }
        // SAFETY: a string that the library allocated for the caller to free.
        Ok(unsafe {
            let text = CStr::from_ptr(result).to_string_lossy().into_owned();
            libc::free(result.cast());
            text
        })
    }

    pub fn list_call(&self, name: &str, arguments: &[CString]) -> Outcome<Vec<String>> {
        type List = *mut *mut c_char;
        let result = match arguments {
            [] => call!(self, name, fn() -> List,),
            [a] => call!(self, name, fn(*const c_char) -> List, a.as_ptr()),
            _ => return Err(format!("{name} is not called like this")),
        };
        if result.is_null() {
            return Err(self.last_error()?);
        }
        let mut items = Vec::new();
        // SAFETY: an array of strings ended by NULL, all allocated for the caller to free.
        unsafe {
            let mut next = result;
            while !(*next).is_null() {
                items.push(CStr::from_ptr(*next).to_string_lossy().into_owned());
                libc::free((*next).cast());
                next = next.add(1);
            }
            libc::free(result.cast());
        }
        Ok(items)
    }

    pub fn run(&self, arguments: &[CString]) -> Outcome<String> {
        let mut list: Vec<*const c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
        list.push(ptr::null());
        type List = *const *const c_char;
        let result = call!(self, "command", fn(List) -> *mut c_char, list.as_ptr());
        self.take_text(result)
    }

    /// Discards what is free within so many bytes of a mounted file system, in pieces worth it.
    pub fn trim(&self, path: &CString, start: i64, length: i64, least: i64) -> Outcome<()> {
        let trim = self.symbol("fstrim")?;
        // SAFETY: `int guestfs_fstrim (guestfs_h *, const char *, ...)`: pairs of a number and its
        // `int64_t`, ended by -1.
        let result = unsafe {
            let trim: unsafe extern "C" fn(Handle, *const c_char, ...) -> c_int =
                std::mem::transmute(trim);
            trim(
                self.handle,
                path.as_ptr(),
                TRIM_OFFSET,
                start,
                TRIM_LENGTH,
                length,
                TRIM_LEAST,
                least,
                END,
            )
        };
        self.done(result)
    }

    /// Whether the key opens the volume, as `/dev/mapper/<name>`.
    pub fn open_luks(&self, device: &CString, key: &CString, name: &CString) -> Outcome<bool> {
        let open = self.symbol("cryptsetup_open")?;
        let (device, key, name) = (device.as_ptr(), key.as_ptr(), name.as_ptr());
        type S = *const c_char;
        // SAFETY: `int guestfs_cryptsetup_open (guestfs_h *, const char *, const char *, const char
        // *, ...)`, with an empty list of optional arguments.
        let result = unsafe {
            let open: unsafe extern "C" fn(Handle, S, S, S, ...) -> c_int =
                std::mem::transmute(open);
            open(self.handle, device, key, name, END)
        };
        match self.done(result) {
            Ok(()) => Ok(true),
            Err(reason) if reason.contains(WRONG_KEY) => Ok(false),
            Err(reason) => Err(reason),
        }
    }

    /// Activates the volume groups that came into sight.
    pub fn scan_lvm(&self) -> Outcome<()> {
        self.done(call!(self, "lvm_scan", fn(c_int) -> c_int, 1))
    }
}

pub(super) fn text(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| format!("{text:?} holds a zero byte"))
}

/// The library takes a key as a text.
pub(super) fn key(bytes: &[u8]) -> Outcome<CString> {
    CString::new(bytes).map_err(|_| "the key holds a zero byte".to_owned())
}

fn last_dl_error() -> String {
    // SAFETY: dlerror(3) returns NULL or a string that stays until the next call of its family.
    unsafe {
        let message = libc::dlerror();
        if message.is_null() {
            return format!("{NAME:?} cannot be opened");
        }
        CStr::from_ptr(message).to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_library_has_every_call() {
        let library = Library::open().unwrap();
        let others = [
            "command",
            "read_file",
            "write",
            "statns",
            "statvfs",
            "cryptsetup_open",
            "fstrim",
            "set_event_callback",
        ];
        for name in CALLS.iter().map(|(name, ..)| *name).chain(others) {
            library.symbol(name).unwrap();
        }
        let path = text("/etc/fstab").unwrap();
        let error = library.read(&path).unwrap_err();
        assert!(error.contains("launch"), "{error}");
    }
}
