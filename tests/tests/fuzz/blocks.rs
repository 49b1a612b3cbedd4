//! VHD, VHDX and qcow2: headers, allocation tables, the log, compressed clusters.
use std::fs;
use std::ops::Range;
use std::path::Path;

use hyper2kvm_tests::images::{self, text};
use hyper2kvm_tests::vhd::{self, be};
use hyper2kvm_tests::vhdx::{self, crc32c};

use super::edit::Damaged;
use super::form::{Form, Image, fuzz, place};
use super::vmdk::{le, raw};

fn convert(raw: &Path, format: &str, options: &[&str], to: &Path) {
    let arguments = [
        &["convert", "-f", "raw", "-O", format],
        options,
        &[text(raw), text(to)],
    ];
    images::qemu_img(&arguments.concat());
}

/// The one's complement of the sum of `range`, at `at` in it.
fn sum(image: &mut Image, range: Range<usize>, at: usize) {
    if range.end > image.bytes().len() || !image.was_written(&range) {
        return;
    }
    let own = range.start + at;
    image.write(own, &[0; 4]);
    let bytes = &image.bytes()[range];
    let sum = bytes
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    image.write(own, &(!sum).to_be_bytes());
}

fn mend_vhd(image: &mut Image) {
    let length = image.bytes().len();
    sum(image, length.saturating_sub(512)..length, 64);
    if image.golden().starts_with(b"conectix") {
        sum(image, 0..512, 64);
        sum(image, 512..1536, 36);
    }
}

fn vhd_structures(bytes: &[u8]) -> Vec<Range<usize>> {
    let tail = bytes.len() - 512;
    let mut hot = Vec::new();
    hot.push(tail..tail + 88);
    if bytes.starts_with(b"conectix") {
        let table = be(bytes, 512 + 16, 8);
        hot.extend([0..88, 512..600, 512 + 64..512 + 100, 512 + 576..512 + 632]);
        hot.extend([table..table + 12, table..table + 12]);
        let block = be(bytes, table, 4) * 512;
        hot.push(block..block + 8);
    }
    hot
}

#[test]
fn vhd_footer_header_bat() {
    let form = |options: &str, child: bool| {
        let top = place();
        let path = top.path().join("vm.vhd");
        convert(&raw(top.path()), "vpc", &["-o", options], &path);
        let mut name = "vm.vhd";
        if child {
            name = "child.avhd";
            let bytes = vhd::differencing(&fs::read(&path).unwrap(), 9, "vm.vhd");
            fs::write(top.path().join(name), bytes).unwrap();
        }
        Form::new(top, name, name, vhd_structures)
            .big_endian()
            .mended_by(mend_vhd)
    };
    let dynamic = "subformat=dynamic,force_size=on";
    let forms = [
        form(dynamic, false),
        form(dynamic, true),
        form("subformat=fixed,force_size=on", false),
    ];
    fuzz("vhd: footer, header, BAT, locators", &forms);
}

/// CRC-32C of `range`, at its byte 4, if anything in it was written.
fn crc(image: &mut Image, range: Range<usize>) {
    if range.end > image.bytes().len() || !image.was_written(&range) {
        return;
    }
    image.write(range.start + 4, &[0; 4]);
    let sum = crc32c(&image.bytes()[range.clone()]);
    image.write(range.start + 4, &sum.to_le_bytes());
}

const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const REGIONS: [usize; 2] = [192 << 10, 256 << 10];
const LOG: usize = 1 << 20;

fn mend_vhdx(image: &mut Image) {
    for at in HEADERS {
        crc(image, at..at + 4096);
    }
    for at in REGIONS {
        crc(image, at..at + (64 << 10));
    }
    if image.golden()[LOG..].starts_with(b"loge") && image.bytes().len() > LOG + 4096 {
        let length = le(image.bytes(), LOG + 8, 4);
        crc(image, LOG..LOG + length.clamp(4096, 64 << 10));
    }
}

/// Both headers, both region tables, the metadata table and its items, the BAT.
fn vhdx_structures(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut hot: Vec<Range<usize>> = HEADERS.iter().map(|at| *at..at + 80).collect();
    hot.extend(REGIONS.iter().map(|at| *at..at + 80));
    let region = REGIONS[0];
    for entry in 0..2 {
        let at = le(bytes, region + 16 + entry * 32 + 16, 8);
        if bytes[at..].starts_with(b"metadata") {
            let items = at + (64 << 10);
            hot.extend([
                at..at + 224,
                items..items + 64,
                at + 0x2_0000..at + 0x2_0050,
            ]);
        } else {
            hot.extend([at..at + 40, at..at + 40]);
        }
    }
    hot
}

const SMALL: &str = "block_size=1M,log_size=1M";

fn small_vhdx(subformat: &str) -> tempfile::TempDir {
    let top = place();
    let option = format!("subformat={subformat},{SMALL}");
    let path = top.path().join("vm.vhdx");
    convert(&raw(top.path()), "vhdx", &["-o", &option], &path);
    top
}

/// `child.vhdx` over `vm.vhdx`, with a data write GUID of its own.
fn vhdx_child() -> tempfile::TempDir {
    let top = small_vhdx("dynamic");
    let path = top.path().join("vm.vhdx");
    let mut parent = fs::read(&path).unwrap();
    let linkage = vhdx::identify(&mut parent, 8);
    let mut child = vhdx::differencing(&parent, &linkage, "vm.vhdx");
    vhdx::identify(&mut child, 9);
    fs::write(path, parent).unwrap();
    fs::write(top.path().join("child.vhdx"), child).unwrap();
    top
}

#[test]
fn vhdx_header_region_metadata_bat() {
    let form = |top, name| Form::new(top, name, name, vhdx_structures).mended_by(mend_vhdx);
    let forms = [
        form(small_vhdx("dynamic"), "vm.vhdx"),
        form(small_vhdx("fixed"), "vm.vhdx"),
        form(vhdx_child(), "child.vhdx"),
    ];
    fuzz("vhdx: headers, regions, metadata, BAT, locators", &forms);
}

#[test]
fn vhdx_log() {
    let top = place();
    let path = top.path().join("vm.vhdx");
    images::qemu_img(&["create", "-q", "-f", "vhdx", "-o", SMALL, text(&path), "3M"]);
    let write = ["-f", "vhdx", "-c", "write -P 7 1M 100k", text(&path)];
    images::run("qemu-utils", "qemu-io", &write);
    vhdx::lose_the_bat(&path);
    let form = Form::new(top, "vm.vhdx", "vm.vhdx", |bytes| {
        let sectors = le(bytes, LOG + 8, 4) / 4096;
        let mut hot = vec![LOG..LOG + 64, LOG..LOG + 64, LOG + 64..LOG + 128];
        for sector in 1..sectors {
            let at = LOG + sector * 4096;
            hot.extend([at..at + 16, at + 4088..at + 4096]);
        }
        hot.extend(HEADERS.iter().map(|at| at + 40..at + 80));
        hot
    });
    fuzz("vhdx: log", &[form.mended_by(mend_vhdx)]);
}

/// Header and extensions, L1, and each L2 table with the clusters of its first entries.
fn qcow2(bytes: &[u8]) -> Vec<Range<usize>> {
    let cluster = 1 << be(bytes, 20, 4);
    let l1 = be(bytes, 40, 8);
    let mut hot = vec![0..112, 0..112, 104..300.min(cluster), l1..l1 + 16];
    let l2 = be(bytes, l1, 8) & 0x00ff_ffff_ffff_fe00;
    let used = (cluster / 8).min(80) * 8;
    hot.extend([l2..l2 + used, l2..l2 + used]);
    for entry in (l2..l2 + used).step_by(8) {
        let entry = be(bytes, entry, 8);
        if entry >> 62 & 1 == 1 {
            let at = entry & 0xff_ffff;
            hot.push(at..at + 24);
        }
    }
    hot
}

#[test]
fn qcow2_header_tables_clusters() {
    let forms: Vec<Form> = [
        &["-o", "cluster_size=4k"][..],
        &["-o", "cluster_size=512,compat=0.10"],
        &["-c", "-o", "cluster_size=4k"],
        &["-c", "-o", "cluster_size=4k,compression_type=zstd"],
        &["-o", "cluster_size=4k,data_file=data,data_file_raw=on"],
        &["-B", "base.raw", "-F", "raw"],
    ]
    .iter()
    .map(|options| {
        let top = place();
        let raw = raw(top.path());
        fs::copy(&raw, top.path().join("base.raw")).unwrap();
        let path = top.path().join("vm.qcow2");
        let data = format!("data_file={}", text(&top.path().join("data")));
        let options: Vec<String> = options
            .iter()
            .map(|option| option.replace("data_file=data", &data))
            .collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        match options.as_slice() {
            ["-B", base, "-F", format] => {
                let create = [
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    "-b",
                    base,
                    "-F",
                    format,
                    text(&path),
                ];
                images::qemu_img(&create);
                let write = ["-f", "qcow2", "-c", "write 64k 64k", text(&path)];
                images::run("qemu-utils", "qemu-io", &write);
            }
            options => convert(&raw, "qcow2", options, &path),
        }
        if path.with_file_name("data").exists() {
            images::qemu_img(&["amend", "-f", "qcow2", "-o", "data_file=data", text(&path)]);
        }
        Form::new(top, "vm.qcow2", "vm.qcow2", qcow2).big_endian()
    })
    .collect();
    fuzz("qcow2: header, L1, L2, compressed clusters", &forms);
}
