//! What is compressed as a whole: gzip, xz and zstd streams around a disk, alone and in a row.
use std::fs;
use std::io::Read;
use std::ops::Range;

use hyper2kvm_tests::images::{self, text};

use super::edit::Damaged;
use super::form::{Form, Image, fuzz, place};
use super::vmdk::le;

/// A small disk: text, a hole, a sector that does not compress.
fn disk() -> Vec<u8> {
    let mut bytes = b"grain ".repeat(700);
    bytes.resize(16 << 10, 0);
    bytes.extend(images::noise(1, 512));
    bytes
}

/// The disk as `tool` packs it with `options`; `around` may lay it out anew.
fn packed(tool: &str, options: &[&str], name: &str, around: fn(Vec<u8>) -> Vec<u8>) -> Form {
    let top = place();
    let raw = top.path().join("vm.raw");
    fs::write(&raw, disk()).unwrap();
    let package = if tool == "xz" { "xz-utils" } else { tool };
    images::run(package, tool, &[options, &["-q", text(&raw)]].concat());
    let path = top.path().join(name);
    let bytes = around(fs::read(&path).unwrap());
    fs::write(&path, bytes).unwrap();
    let _ = fs::remove_file(raw);
    Form::new(top, name, name, structures)
}

/// Both ends, where the numbers are, weighted; and all that is between them.
fn structures(bytes: &[u8]) -> Vec<Range<usize>> {
    let (end, half) = (bytes.len(), bytes.len() / 2);
    let edge = half.min(40);
    let (head, tail) = (0..edge, end - edge..end);
    let seam = half - edge / 2..half + edge / 2;
    vec![head.clone(), head, tail.clone(), tail, seam, 0..end]
}

fn as_it_is(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn twice(bytes: Vec<u8>) -> Vec<u8> {
    bytes.repeat(2)
}

/// Header without a name, as `gzip -n` writes it.
const GZIP_HEADER_BYTES: usize = 10;

/// The sum and the length of what the first stream inflates to, if it does.
fn mend_gzip(image: &mut Image) {
    let stream = image.bytes().get(GZIP_HEADER_BYTES..).unwrap_or_default();
    let mut decoder = flate2::bufread::DeflateDecoder::new(stream);
    let mut content = Vec::new();
    let is_whole = (&mut decoder).take(4 << 20).read_to_end(&mut content);
    let end = GZIP_HEADER_BYTES + decoder.total_in() as usize;
    if is_whole.is_ok() {
        let mut crc = flate2::Crc::new();
        crc.update(&content);
        image.write(end, &crc.sum().to_le_bytes());
        image.write(end + 4, &crc.amount().to_le_bytes());
    }
}

#[test]
fn gzip() {
    fn padded(bytes: Vec<u8>) -> Vec<u8> {
        [twice(bytes), vec![0; 512]].concat()
    }
    let forms = [
        packed("gzip", &["-n"], "vm.raw.gz", as_it_is),
        packed("gzip", &["-n9"], "vm.raw.gz", padded),
    ];
    fuzz(
        "wrapper: gzip",
        &forms.map(|form| form.mended_by(mend_gzip)),
    );
}

/// The CRC-32 of what is before the last four bytes of `range`, in these.
fn sum(image: &mut Image, range: Range<usize>) {
    if range.end > image.bytes().len() || range.len() < 8 || !image.was_written(&range) {
        return;
    }
    let at = range.end - 4;
    let mut crc = flate2::Crc::new();
    crc.update(&image.bytes()[range.start..at]);
    image.write(at, &crc.sum().to_le_bytes());
}

/// The sums of the stream's header, its first block's header, its index and its footer.
fn mend_xz(image: &mut Image) {
    let length = image.bytes().len();
    if length < 64 {
        return;
    }
    let head_was_written = image.was_written(&(0..12));
    let tail_was_written = image.was_written(&(length - 12..length));
    let block_bytes = 4 * (1 + usize::from(image.bytes()[12]));
    sum(image, 12..12 + block_bytes);
    let index_bytes = 4 * (1 + le(image.bytes(), length - 8, 4));
    if let Some(start) = (length - 12).checked_sub(index_bytes) {
        sum(image, start..length - 12);
    }
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    if head_was_written {
        let crc = crc(&image.bytes()[6..8]);
        image.write(8, &crc);
    }
    if tail_was_written {
        let crc = crc(&image.bytes()[length - 8..length - 2]);
        image.write(length - 12, &crc);
    }
}

#[test]
fn xz() {
    let blocks = ["-0", "--block-size=4KiB", "--check=crc32"];
    let forms = [
        packed("xz", &["-0", "--check=sha256"], "vm.raw.xz", as_it_is),
        packed("xz", &["-0", "--check=none"], "vm.raw.xz", as_it_is),
        packed("xz", &blocks, "vm.raw.xz", twice),
    ];
    fuzz("wrapper: xz", &forms.map(|form| form.mended_by(mend_xz)));
}

#[test]
fn zstd() {
    fn behind_a_skippable_one(bytes: Vec<u8>) -> Vec<u8> {
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 8, 0, 0, 0][..], &[7; 8]].concat();
        [skippable, twice(bytes)].concat()
    }
    let unsummed = ["--no-check", "-19"];
    let forms = [
        packed("zstd", &["-1"], "vm.raw.zst", as_it_is),
        packed("zstd", &unsummed, "vm.raw.zst", as_it_is),
        packed("zstd", &unsummed, "vm.raw.zst", behind_a_skippable_one),
    ];
    fuzz("wrapper: zstd", &forms);
}
