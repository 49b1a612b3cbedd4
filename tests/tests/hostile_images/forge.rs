//! Makes hostile files: sound ones of qemu-img or by the specification, then changed.
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use hyper2kvm_tests::images::{self, qemu_img, text};
use hyper2kvm_tests::vhdx;

pub const GRAIN: usize = 65_536;
pub const SIZE: u64 = (3 << 20) + 512;

pub fn le(bytes: &[u8], at: usize, width: usize) -> usize {
    let field = bytes[at..at + width].iter().rev();
    field.fold(0, |value, byte| value << 8 | usize::from(*byte))
}

pub fn put32(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

/// Where the first grain table is.
pub fn table(bytes: &[u8]) -> usize {
    le(bytes, le(bytes, 56, 8) * 512, 4) * 512
}

pub fn raw(dir: &Path) -> PathBuf {
    let data = images::noise(1, 2 << 20);
    images::raw_disk(
        &dir.join(".raw"),
        SIZE,
        &[(0, &data), (SIZE - 512, &[9; 512])],
    )
}

/// An image that qemu-img makes, changed.
pub fn made(
    dir: &Path,
    format: &str,
    options: &str,
    name: &'static str,
    change: impl FnOnce(&mut Vec<u8>),
) -> &'static str {
    let (raw, path) = (raw(dir), dir.join(name));
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        format,
        "-o",
        options,
        text(&raw),
        text(&path),
    ]);
    fs::remove_file(raw).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    name
}

pub fn sparse(dir: &Path, subformat: &str, change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    made(
        dir,
        "vmdk",
        &format!("subformat={subformat}"),
        "vm.vmdk",
        change,
    )
}

/// Replaces the first grain by another at the end of the file.
pub fn grain(bytes: &mut Vec<u8>, content: &[u8], claims: Option<usize>) {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).unwrap();
    let stream = encoder.finish().unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let (table, at) = (table(bytes), bytes.len());
    put32(bytes, table, at / 512);
    bytes.extend([0; 8]);
    bytes.extend((claims.unwrap_or(stream.len()) as u32).to_le_bytes());
    bytes.extend(stream);
    bytes.resize(at + 4 * GRAIN, 0);
}

/// A delta disk that is known by the same number as its parent.
pub fn delta(dir: &Path, name: &'static str, below: &str) -> &'static str {
    let sectors = SIZE / 512;
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID=00000007\n\
         createType=\"monolithicSparse\"\nparentFileNameHint=\"{below}\"\n\
         RW {sectors} SPARSE \"{name}\"\n"
    );
    made(dir, "vmdk", "subformat=monolithicSparse", name, |bytes| {
        bytes[512..1536].fill(0);
        bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());
    })
}

pub fn descriptor(dir: &Path, extent: &str) -> &'static str {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n{extent}\n"
    );
    fs::write(dir.join("vm.vmdk"), text).unwrap();
    "vm.vmdk"
}

pub fn extent(dir: &Path, kind: &str, bytes: &[u8]) -> &'static str {
    fs::remove_file(dir.join(".raw")).unwrap();
    fs::write(dir.join("vm-delta.vmdk"), bytes).unwrap();
    descriptor(dir, &format!("RW {} {kind} \"vm-delta.vmdk\"", SIZE / 512))
}

pub const SMALL: &str = "block_size=1M,log_size=1M";
pub const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
pub const LOG: usize = 1 << 20;

pub fn headers(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    for at in HEADERS {
        vhdx::resum(bytes, at..at + 4096, &change);
    }
}

/// A VHDX with a log to replay, changed.
pub fn logged(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    let path = dir.join("vm.vhdx");
    qemu_img(&["create", "-q", "-f", "vhdx", "-o", SMALL, text(&path), "3M"]);
    let write = ["-f", "vhdx", "-c", "write -P 7 1M 100k", text(&path)];
    images::run("qemu-utils", "qemu-io", &write);
    vhdx::lose_the_bat(&path);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    "vm.vhdx"
}

pub fn rebase(dir: &Path, name: &'static str, below: &str) -> &'static str {
    let path = dir.join(name);
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        below,
        "-F",
        "qcow2",
        text(&path),
    ]);
    name
}

/// The OVF of a machine that is called as its directory is.
pub fn described(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_str().unwrap();
    images::ovf(&[("a.img", 4096)]).replace("web-01", name)
}

pub fn ova(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    let parts = dir.join("parts");
    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("vm.ovf"), described(dir)).unwrap();
    fs::write(parts.join("a.img"), [3; 4096]).unwrap();
    let mut bytes = fs::read(images::ova(&parts, &["vm.ovf", "a.img"])).unwrap();
    fs::remove_dir_all(parts).unwrap();
    change(&mut bytes);
    fs::write(dir.join("vm.ova"), bytes).unwrap();
    "vm.ova"
}

pub fn header_of(bytes: &[u8], name: &[u8]) -> usize {
    let mut blocks = (0..bytes.len()).step_by(512);
    blocks.find(|at| bytes[*at..].starts_with(name)).unwrap()
}

pub fn resum_tar(bytes: &mut [u8], at: usize) {
    bytes[at + 148..at + 156].fill(b' ');
    let sum: u64 = bytes[at..at + 512]
        .iter()
        .map(|byte| u64::from(*byte))
        .sum();
    bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn ovf(dir: &Path, opening: &str) -> &'static str {
    let text = described(dir).replacen("<Envelope ", opening, 1);
    fs::write(dir.join("vm.ovf"), text).unwrap();
    "vm.ovf"
}
