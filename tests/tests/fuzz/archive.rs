//! Archives and whatever else lies there: tar (OVA), and files whose content is to be told.
use std::fs;
use std::ops::Range;

use hyper2kvm_tests::images::{self, text};
use queue::roots::Roots;

use super::edit::{Damaged, cases};
use super::form::{Form, Image, fuzz, place};
use super::judge;
use super::vmdk::raw;

/// Headers of members, by where the sound archive has them.
fn headers(bytes: &[u8]) -> Vec<Range<usize>> {
    let is_header = |at: &usize| bytes[at + 257..].starts_with(b"ustar");
    let blocks = (0..bytes.len()).step_by(512).filter(is_header);
    blocks.map(|at| at..at + 512).collect()
}

fn mend_tar(image: &mut Image) {
    for header in headers(image.golden()) {
        if header.end > image.bytes().len() || !image.was_written(&header) {
            continue;
        }
        let field = header.start + 148;
        image.write(field, &[b' '; 8]);
        let sum: u64 = image.bytes()[header]
            .iter()
            .map(|byte| u64::from(*byte))
            .sum();
        image.write(field, format!("{sum:06o}\0 ").as_bytes());
    }
}

/// The numbers of each header, weighted, and what is extended: names, pax records, the OVF.
fn tar(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut hot = Vec::new();
    for header in headers(bytes) {
        let at = header.start;
        hot.extend([
            at..at + 16,
            at + 120..at + 160,
            at + 120..at + 160,
            at + 256..at + 266,
        ]);
        if matches!(bytes[at + 156], b'x' | b'L' | b'g') {
            hot.push(at + 512..at + 560);
        }
    }
    hot
}

#[test]
fn tar_of_an_ova() {
    let forms = ["ustar", "pax", "gnu"].map(|format| {
        let top = place();
        let raw = raw(top.path());
        let name = format!("{}.raw", "long".repeat(30));
        fs::rename(&raw, top.path().join(&name)).unwrap();
        let mut members = vec!["vm.ovf", "vm.mf", "a.raw"];
        let mut disks = vec![("a.raw", 4096)];
        fs::write(top.path().join("a.raw"), [3; 4096]).unwrap();
        if format != "ustar" {
            members.push(&name);
            disks.push((&name, 300_032));
        }
        fs::write(top.path().join("vm.ovf"), images::ovf(&disks)).unwrap();
        let digest = format!("SHA256(a.raw)= {}\n", "0".repeat(64));
        fs::write(top.path().join("vm.mf"), digest).unwrap();
        let path = top.path().join("vm.ova");
        let option = format!("--format={format}");
        let start = [option.as_str(), "-C", text(top.path()), "-cf", text(&path)];
        images::run("tar", "tar", &[&start[..], &members].concat());
        Form::new(top, "vm.ova", "vm.ova", tar).mended_by(mend_tar)
    });
    fuzz("ova: tar", &forms);
}

/// Raw bytes under every name, with the marks of other formats where those look for them.
#[test]
fn raw_and_content() {
    const MARKS: [(usize, &[u8]); 14] = [
        (0, b"KDMV"),
        (0, b"# Disk DescriptorFile"),
        (0, b"COWD"),
        (0, b"\xbe\xba\xfe\xca\0\0\0\0"),
        (0, b"conectix"),
        (0, b"vhdxfile"),
        (0, b"QFI\xfb"),
        (0x40, b"\x7f\x10\xda\xbe"),
        (257, b"ustar"),
        (0, b"<?xml version=\"1.0\"?>"),
        (0, b"\x1f\x8b\x08"),
        (0, b"\xfd7zXZ\0"),
        (0, b"\x28\xb5\x2f\xfd"),
        (8192 - 512, b"conectix"),
    ];
    const NAMES: [&str; 9] = [
        "a.raw", "a.img", "a.ami", "a.vmdk", "a.vhd", "a.vhdx", "a.qcow2", "a.ova", "a.ovf",
    ];
    let top = place();
    let roots = Roots::open(top.path(), &[]).unwrap();
    let first = top.path().join(NAMES[0]);
    fs::write(&first, [0; 8192]).unwrap();
    for name in &NAMES[1..] {
        fs::hard_link(&first, top.path().join(name)).unwrap();
    }
    judge::fuzz(
        "content: raw and marks",
        (0usize..1000, cases()),
        |(choice, case)| {
            let mut bytes = images::noise(case.form as u64, 8192);
            for edit in &case.edits {
                edit.apply_to_text(&mut bytes, &["", "\0\0\0\0\0\0\0\0"]);
            }
            bytes.resize(bytes.len().min(8192), 0);
            if let Some((at, mark)) = MARKS.get(choice % 20)
                && at + mark.len() <= bytes.len()
            {
                bytes[*at..at + mark.len()].copy_from_slice(mark);
            }
            fs::write(&first, &bytes).unwrap();
            judge::read(&roots, &top.path().join(NAMES[choice / 20 % NAMES.len()]))
        },
    );
}
