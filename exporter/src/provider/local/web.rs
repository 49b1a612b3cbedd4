//! A disk or an OVA on a web server: looked at by its first bytes, then downloaded.
use std::path::Path;
use std::time::Duration;

use queue::arrival::candidate::{self, Class};
use queue::arrival::{ovf, parents, pieces};

use super::appliance;
use super::chain::{self, Files, Part};
use super::reach::Reach;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Exported, Order, Vm};
use crate::transfer::download::{self, ContentRange, NewFile};
use crate::transfer::http::{Answer, Client, Request, StatusCode, Url, header};
use crate::transfer::{Algorithm, Monitor, Steady};

/// How long the server may send nothing.
const STALL: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 4096;
/// An OVA's descriptor that is longer is left to the converter.
const MAX_DESCRIPTOR_BYTES: usize = 1024 * 1024;
const MAX_REDIRECTS: usize = 5;

/// What the server tells of a file before it is downloaded.
struct Look {
    /// Where redirections led.
    url: Url,
    size_bytes: Option<u64>,
    /// Its first bytes.
    head: Vec<u8>,
}

pub fn describe(reach: &Reach, text: &str) -> Result<Vm> {
    let url = reach.url(text)?;
    let name = file_name(&url)?;
    let client = Client::of(&url, &reach.trust, STALL)?;
    let look = look(reach, &client, url.clone(), &name, &Steady)?;
    refuse_parts(&name, &look.head)?;
    let files = Files {
        format: format(&name, &look.head),
        first: Part {
            from: name.clone().into(),
            to: name.clone(),
            size_bytes: look.size_bytes.unwrap_or_default(),
        },
        others: Vec::new(),
    };
    let descriptor = pieces::ova_descriptor(&mut look.head.as_slice());
    let described = descriptor
        .filter(|_| appliance::is_ova(&name))
        .map(|text| appliance::parse(&text, Path::new(&name)))
        .transpose()?;
    Ok(Vm {
        id: url.to_string(),
        location: url.host_str().map(str::to_owned),
        ..appliance::describe(described, &name, &files)
    })
}

/// Both checksums are made while it arrives: one that we verify, one that servers publish.
pub fn export(
    reach: &Reach,
    vm: &Vm,
    into: &Path,
    order: Order,
    monitor: &dyn Monitor,
) -> Result<Exported> {
    let url = reach.url(&vm.id)?;
    let disk = vm
        .disks
        .first()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "an address without its file"))?;
    let client = Client::of(&url, &reach.trust, STALL)?;
    let look = look(reach, &client, url.clone(), &disk.file, monitor)?;
    monitor.begin(&disk.file, look.size_bytes.unwrap_or_default());
    let mut algorithms = vec![order.checksum];
    if order.checksum != Algorithm::Sha256 {
        algorithms.push(Algorithm::Sha256);
    }
    let source = download::Source {
        url: look.url,
        name: &disk.file,
        size_bytes: look.size_bytes,
        algorithms: &algorithms,
    };
    let to = into.join(&disk.file);
    let mut file = NewFile::create(&to)?;
    let fetched = download::fetch(&client, &source, &mut file, monitor)?;
    drop(file);
    refuse_child(&to, &disk.file)?;
    let mut warnings = Vec::new();
    if url.scheme() == "http" {
        warnings.push(format!(
            "{} came without encryption (http): compare its checksum",
            disk.file
        ));
    }
    let known = fetched.checksums.last().cloned().unwrap_or_default();
    Ok(Exported {
        method: "http",
        notes: vec![format!("downloaded from {url} ({known})")],
        disks: vec![Delivered {
            id: disk.id.clone(),
            file: disk.file.clone(),
            format: disk.format.clone(),
            size_bytes: fetched.size_bytes,
            checksum: fetched.checksums.first().cloned().unwrap_or_default(),
            pieces: Vec::new(),
        }],
        descriptor: None,
        warnings,
        is_streamed: false,
    })
}

/// The last part of the address.
fn file_name(url: &Url) -> Result<String> {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    let name = ovf::percent_decoded(last).unwrap_or_else(|| last.to_owned());
    let is_plain = !name.contains(['/', '\\']) && !name.chars().any(char::is_control);
    let is_disk = candidate::classify(&name) == Some(Class::Disk);
    if is_plain && is_disk && !candidate::is_ignored(&name) {
        return Ok(name);
    }
    Err(Error::invalid(format!(
        "{name:?} of the address is not named like a disk or an OVA"
    ))
    .with_remedy("give the address of an OVA or of one disk image, plain or packed"))
}

fn format(name: &str, head: &[u8]) -> &'static str {
    match appliance::is_ova(name) {
        true => "ova",
        false => chain::format(name, head),
    }
}

/// What is of no use without files that are not fetched.
fn refuse_parts(name: &str, head: &[u8]) -> Result<()> {
    if candidate::is_descriptor(head) || candidate::is_extent(name, head) {
        return Err(part_of_a_disk(name));
    }
    Ok(())
}

fn refuse_child(path: &Path, name: &str) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|error| Error::io("open", path, error))?;
    match parents::parent_path(&file) {
        Some(_) => Err(part_of_a_disk(name)),
        None => refuse_parts(name, &chain::head(&file, path)?),
    }
}

fn part_of_a_disk(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{name} is one of several files of a disk"),
    )
    .with_remedy("download all of them and export the directory, or give an OVA")
}

/// Asks for the first bytes; follows redirections as far as they stay within reach.
fn look(
    reach: &Reach,
    client: &Client,
    mut url: Url,
    name: &str,
    monitor: &dyn Monitor,
) -> Result<Look> {
    let limit = match appliance::is_ova(name) {
        true => MAX_DESCRIPTOR_BYTES,
        false => HEAD_BYTES,
    };
    for _ in 0..=MAX_REDIRECTS {
        let mut request = Request::get(url.clone());
        let range = format!("bytes=0-{}", limit.saturating_sub(1));
        let range = header::HeaderValue::from_str(&range).map_err(|error| {
            Error::new(ErrorKind::Internal, "ask for a range").with_source(error)
        })?;
        request.headers.insert(header::RANGE, range);
        let answer = client.send(request, monitor)?;
        let status = answer.status();
        if !status.is_redirection() {
            let size_bytes = size(&answer, name)?;
            let head = first_bytes(answer, limit, monitor)?;
            return Ok(Look {
                url,
                size_bytes,
                head,
            });
        }
        url = redirected(&url, &answer, name)?;
        reach.check_url(&url)?;
    }
    Err(
        Error::invalid(format!("{name}: more than {MAX_REDIRECTS} redirections"))
            .with_remedy("give the address that they lead to"),
    )
}

fn redirected(url: &Url, answer: &Answer<'_>, name: &str) -> Result<Url> {
    let target = answer
        .header(header::LOCATION)
        .and_then(|location| url.join(location).ok());
    let bad = |what: &str| {
        Error::invalid(format!("{name}: the server redirects {what}"))
            .with_remedy("give the address of the file itself")
    };
    let target = target.ok_or_else(|| bad("to no address"))?;
    let is_weaker = url.scheme() == "https" && target.scheme() != "https";
    if is_weaker || !matches!(target.scheme(), "http" | "https") {
        return Err(bad("away from https"));
    }
    if !target.username().is_empty() || target.password().is_some() {
        return Err(bad("with a password"));
    }
    Ok(target)
}

fn size(answer: &Answer<'_>, name: &str) -> Result<Option<u64>> {
    match answer.status() {
        StatusCode::OK => Ok(answer
            .header(header::CONTENT_LENGTH)
            .and_then(|text| text.parse().ok())),
        StatusCode::PARTIAL_CONTENT => Ok(answer
            .header(header::CONTENT_RANGE)
            .and_then(ContentRange::parse)
            .and_then(|range| range.total)),
        status => Err(download::refused(name, status)
            .with_remedy("check the address, and that the file may be read without a password")),
    }
}

fn first_bytes(mut answer: Answer<'_>, limit: usize, monitor: &dyn Monitor) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while head.len() < limit
        && pieces::ova_descriptor(&mut head.as_slice()).is_none()
        && let Some(chunk) = answer.chunk(monitor)?
    {
        head.extend_from_slice(chunk.as_ref());
    }
    head.truncate(limit);
    Ok(head)
}
