//! The appliance process: this program started again, with libguestfs in it, doing what comes
//! through its standard input. Whatever a hostile disk makes of it, it can be killed.
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;

use super::library::{self, CALLS, Library, Outcome, Shape, text};
use super::wire::{Reply, Request, receive, send};
use crate::error::{Error, ErrorKind, Result};

/// Serves one session; returns when the converter hangs up.
pub fn serve() -> Result<()> {
    // Killed with the converter: the library's recovery process then ends its QEMU.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| failed("bind the appliance to its parent", error.into()))?;
    let (mut input, mut output) =
        take_pipes().map_err(|error| failed("take the appliance's pipes", error))?;
    let mut library = None;
    while let Some((request, bytes)) = receive(&mut input)? {
        let (reply, bytes) = match answer(&mut library, request, &bytes) {
            Ok(answer) => answer,
            Err(reason) => (Reply::Failed(reason), Vec::new()),
        };
        send(&mut output, &reply, &bytes)?;
    }
    Ok(())
}

fn failed(doing: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Guest, doing).with_source(error)
}

/// The pipes under other numbers, closed for programs that the library starts; in their place stand
/// /dev/null, and standard error.
fn take_pipes() -> std::io::Result<(File, File)> {
    let input: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output: OwnedFd = std::io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    nix::unistd::dup2_stdout(std::io::stderr())?;
    Ok((input.into(), output.into()))
}

fn answer(
    library: &mut Option<Library>,
    request: Request,
    bytes: &[u8],
) -> Outcome<(Reply, Vec<u8>)> {
    if let Request::Launch(order) = &request {
        let opened = match library {
            None => library.insert(Library::open()?),
            Some(_) => return Err("the appliance was launched before".to_owned()),
        };
        opened.launch(order)?;
        return Ok((Reply::Done, Vec::new()));
    }
    let library = library.as_ref().ok_or("the appliance was not launched")?;
    let reply = match request {
        Request::Read(path) => return Ok((Reply::Bytes, library.read(&text(&path)?)?)),
        Request::Launch(_) => Reply::Done,
        Request::Call(name, arguments) => call(library, &name, &texts(&arguments)?)?,
        Request::Write(path) => done(library.write(&text(&path)?, bytes)?),
        Request::Run(arguments) => Reply::Text(library.run(&texts(&arguments)?)?),
        Request::Chmod(mode, path) => done(library.chmod(mode, &text(&path)?)?),
        Request::Chown(owner, group, path) => done(library.chown(owner, group, &text(&path)?)?),
        Request::Stat(path) => {
            let [_, _, mode, _, owner, group, _, size, ..] = library.stat(&text(&path)?)?;
            Reply::Numbers(vec![mode, owner, group, size])
        }
        Request::Space(path) => {
            let [_, unit, blocks, _, free, _, free_inodes, ..] = library.statvfs(&text(&path)?)?;
            let bytes = |blocks: i64| blocks.saturating_mul(unit);
            Reply::Numbers(vec![bytes(free), free_inodes, bytes(blocks)])
        }
        Request::Trim(path, start, length, least) => {
            done(library.trim(&text(&path)?, start, length, least)?)
        }
        Request::OpenLuks(device, name) => {
            let key = library::key(bytes)?;
            Reply::Flag(library.open_luks(&text(&device)?, &key, &text(&name)?)?)
        }
        Request::ScanLvm => done(library.scan_lvm()?),
        Request::Shutdown => done(library.shutdown()?),
    };
    Ok((reply, Vec::new()))
}

fn done((): ()) -> Reply {
    Reply::Done
}

fn texts(arguments: &[String]) -> Outcome<Vec<std::ffi::CString>> {
    arguments.iter().map(|argument| text(argument)).collect()
}

fn call(library: &Library, name: &str, arguments: &[std::ffi::CString]) -> Outcome<Reply> {
    let known = CALLS.iter().find(|(known, ..)| *known == name);
    let Some((_, count, shape)) = known.filter(|(_, count, _)| *count == arguments.len()) else {
        return Err(format!(
            "{name} with {} arguments is no call",
            arguments.len()
        ));
    };
    debug_assert!(*count <= 3);
    Ok(match shape {
        Shape::Nothing => library.int_call(name, arguments).map(|_| Reply::Done)?,
        Shape::Flag => Reply::Flag(library.int_call(name, arguments)? == 1),
        Shape::Text => Reply::Text(library.text_call(name, arguments)?),
        Shape::List => Reply::List(library.list_call(name, arguments)?),
        Shape::Number => Reply::Numbers(vec![library.number_call(name, arguments)?]),
    })
}
