//! VMDK: the hosted header and tables, markers and footer, VMFS and SE sparse extents.
use std::fs;
use std::ops::Range;
use std::path::Path;

use hyper2kvm_tests::images::{self, text};
use hyper2kvm_tests::vmfs;

use super::form::{Form, fuzz, place};

/// Five grains, of which the second and the last hold data.
const SIZE: u64 = 300_032;

pub fn raw(dir: &Path) -> std::path::PathBuf {
    let data = b"grain ".repeat(1500);
    let sector = images::noise(1, 512);
    images::raw_disk(
        &dir.join("a.raw"),
        SIZE,
        &[(70_000, &data), (SIZE - 512, &sector)],
    )
}

pub fn le(bytes: &[u8], at: usize, width: usize) -> usize {
    let field = bytes[at..at + width].iter().rev();
    field.fold(0, |value, byte| value << 8 | usize::from(*byte))
}

pub fn converted(subformat: &str) -> (tempfile::TempDir, Vec<u8>) {
    let top = place();
    let raw = raw(top.path());
    let option = format!("subformat={subformat}");
    let path = top.path().join("vm.vmdk");
    let (from, to) = (text(&raw), text(&path));
    images::qemu_img(&[
        "convert", "-f", "raw", "-O", "vmdk", "-o", &option, from, to,
    ]);
    let bytes = fs::read(&path).unwrap();
    (top, bytes)
}

/// Header, descriptor, both grain directories, their tables, and the head of each grain.
pub fn hosted(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut hot = vec![0..96, 0..96, 512..900];
    let header = bytes[..512].to_vec();
    // With a footer the header does not know where the directory is.
    let header = match le(&header, 56, 8) {
        usize::MAX => bytes[bytes.len() - 1024..].to_vec(),
        _ => header,
    };
    for at in [48, 56] {
        let directory = le(&header, at, 8) * 512;
        if directory == 0 || directory + 4 > bytes.len() {
            continue;
        }
        let table = le(bytes, directory, 4) * 512;
        hot.extend([directory..directory + 8, table..table + 24]);
        for entry in 0..5 {
            let grain = le(bytes, table + entry * 4, 4) * 512;
            if grain > 1 {
                hot.push(grain..grain + 48);
            }
        }
    }
    hot
}

#[test]
fn hosted_sparse() {
    let (top, _) = converted("monolithicSparse");
    let (zeroed, bytes) = converted("monolithicSparse");
    // A version 2 extent whose third grain says zeros of its own.
    let mut bytes = bytes;
    bytes[4] = 2;
    bytes[8] |= 4;
    let table = le(&bytes, le(&bytes, 56, 8) * 512, 4) * 512;
    bytes[table + 8] = 1;
    fs::write(zeroed.path().join("vm.vmdk"), bytes).unwrap();
    let forms = [top, zeroed].map(|top| Form::new(top, "vm.vmdk", "vm.vmdk", hosted));
    fuzz("vmdk: header, grain directory, grain tables", &forms);
}

/// As VMware's writers leave it: the directory is found by the footer alone.
pub fn with_footer(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    // A stream of qemu-img ends in a marker of its own.
    let header = bytes[..512].to_vec();
    let mut marker = [0; 512];
    (marker[0], marker[12]) = (1, 3);
    bytes.extend(marker);
    bytes.extend(header);
    bytes.extend([0; 512]);
    bytes[56..64].fill(0xff);
    bytes
}

#[test]
fn stream_optimized() {
    let (top, _) = converted("streamOptimized");
    let (footed, bytes) = converted("streamOptimized");
    fs::write(footed.path().join("vm.vmdk"), with_footer(bytes)).unwrap();
    let plain = Form::new(top, "vm.vmdk", "vm.vmdk", hosted);
    let footed = Form::new(footed, "vm.vmdk", "vm.vmdk", |bytes| {
        let mut hot = hosted(bytes);
        let tail = bytes.len() - 1536;
        hot.extend([
            tail..tail + 24,
            tail + 512..tail + 608,
            tail + 1024..tail + 1040,
        ]);
        hot
    });
    fuzz("vmdk: streamOptimized, markers, footer", &[plain, footed]);
}

fn extent(kind: &str, bytes: &[u8]) -> tempfile::TempDir {
    let top = place();
    let sectors = SIZE / 512;
    let line = format!("RW {sectors} {kind} \"extent\"\n");
    let head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n";
    let create = "createType=\"vmfsSparse\"\n";
    fs::write(top.path().join("vm.vmdk"), format!("{head}{create}{line}")).unwrap();
    fs::write(top.path().join("extent"), bytes).unwrap();
    top
}

fn disk() -> Vec<u8> {
    let top = place();
    fs::read(raw(top.path())).unwrap()
}

#[test]
fn cowd() {
    let forms = [1, 8, 128].map(|grain_sectors| {
        let top = extent("VMFSSPARSE", &vmfs::cowd(&disk(), grain_sectors));
        Form::new(top, "vm.vmdk", "extent", |bytes| {
            let directory = le(bytes, 20, 4) * 512;
            let table = le(bytes, directory, 4) * 512;
            vec![0..48, 0..48, directory..directory + 8, table..table + 64]
        })
    });
    fuzz("vmdk: VMFS sparse (COWD)", &forms);
}

#[test]
fn se_sparse() {
    let forms = [false, true].map(|own_zeros| {
        let top = extent("SESPARSE", &vmfs::se_sparse(&disk(), own_zeros));
        Form::new(top, "vm.vmdk", "extent", |bytes| {
            let directory = le(bytes, 16 * 8, 8) * 512;
            let tables = le(bytes, 18 * 8, 8) * 512;
            let header = 0..208;
            let hot = [
                directory..directory + 16,
                tables..tables + 160,
                tables..tables + 600,
            ];
            [vec![header, 512..544], hot.to_vec()].concat()
        })
    });
    fuzz("vmdk: SE sparse", &forms);
}

/// A delta disk over its parent: the chain's descriptors, and the tables of the upper one.
#[test]
fn delta_chain() {
    let (top, bytes) = converted("monolithicSparse");
    let at = |name: &str| top.path().join(name);
    fs::rename(at("vm.vmdk"), at("base.vmdk")).unwrap();
    let text = String::from_utf8_lossy(&bytes[512..1536]).into_owned();
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("CID="))
        .unwrap();
    let mut child = bytes.clone();
    let own = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID={id}\n\
         createType=\"monolithicSparse\"\nparentFileNameHint=\"base.vmdk\"\n\
         RW {} SPARSE \"vm.vmdk\"\n",
        SIZE / 512
    );
    child[512..1536].fill(0);
    child[512..512 + own.len()].copy_from_slice(own.as_bytes());
    fs::write(at("vm.vmdk"), child).unwrap();
    fuzz(
        "vmdk: delta over its parent",
        &[Form::new(top, "vm.vmdk", "vm.vmdk", hosted)],
    );
}
