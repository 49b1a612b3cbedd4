//! `hyper2kvm inspect`: what it says agrees with `qemu-img info`, its JSON keeps its structure, and
//! nothing of a hostile file reaches the terminal as it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hyper2kvm_tests::images::{self, qemu_img, run, text};
use hyper2kvm_tests::programs::program;
use serde_json::Value;

fn inspect(source: &Path, options: &[&str]) -> String {
    let program = program("hyper2kvm");
    let arguments = [&["inspect", text(source)], options].concat();
    let output = run("hyper2kvm", text(&program), &arguments);
    String::from_utf8(output.stdout).unwrap()
}

fn json(source: &Path) -> Value {
    serde_json::from_str(&inspect(source, &["--json"])).unwrap()
}

fn info(format: &str, source: &Path) -> Value {
    let shown = qemu_img(&["info", "-f", format, "--output=json", text(source)]);
    serde_json::from_str(&shown).unwrap()
}

fn convert(raw: &Path, format: &str, options: &str, name: &str) -> PathBuf {
    let path = raw.with_file_name(name);
    let (from, to) = (text(raw), text(&path));
    qemu_img(&["convert", "-O", format, "-o", options, from, to]);
    path
}

/// A disk that qemu-img writes, and what it and we say of it.
struct Form {
    theirs: &'static str,
    ours: &'static str,
    options: &'static str,
    /// Our field for what they call cluster size.
    unit: &'static str,
    /// Their format-specific fields and ours.
    same: &'static [(&'static str, &'static str)],
}

const fn form(theirs: &'static str, options: &'static str, unit: &'static str) -> Form {
    let (ours, same): (_, &[(&str, &str)]) = match theirs.as_bytes() {
        b"vmdk" => ("vmdk", &[("create-type", "/create_type")]),
        b"vpc" => ("vhd", &[]),
        b"qcow2" => (
            "qcow2",
            &[
                ("compression-type", "/compression"),
                ("refcount-bits", "/refcount_bits"),
                ("lazy-refcounts", "/lazy_refcounts"),
            ],
        ),
        _ => (theirs, &[]),
    };
    Form {
        theirs,
        ours,
        options,
        unit,
        same,
    }
}

const GRAIN: &str = "/sparse_headers/0/grain_bytes";
const FORMS: [Form; 8] = [
    form("vmdk", "subformat=streamOptimized", GRAIN),
    form("vmdk", "subformat=monolithicSparse", GRAIN),
    form("vmdk", "subformat=twoGbMaxExtentFlat", ""),
    form("vpc", "subformat=dynamic,force_size=on", "/block_bytes"),
    form("vpc", "subformat=fixed,force_size=on", ""),
    form("vhdx", "subformat=dynamic,block_size=2M", "/block_bytes"),
    form(
        "qcow2",
        "lazy_refcounts=on,cluster_size=128k",
        "/cluster_bytes",
    ),
    form(
        "qcow2",
        "compression_type=zstd,refcount_bits=32",
        "/cluster_bytes",
    ),
];

#[test]
fn agrees_with_qemu_img() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    for (number, form) in FORMS.iter().enumerate() {
        let Form {
            theirs,
            ours,
            options,
            unit,
            same,
        } = form;
        let source = convert(&raw, theirs, options, &format!("{number}.{ours}"));
        let (info, shown) = (info(theirs, &source), json(&source));
        let disk = &shown["disks"][0];
        let layer = &disk["layers"][0];
        assert_eq!(layer["format"], *ours);
        assert_eq!(info["format"], *theirs);
        assert_eq!(disk["capacity_bytes"], info["virtual-size"], "{options}");
        assert_eq!(layer["capacity_bytes"], info["virtual-size"], "{options}");
        if !unit.is_empty() {
            assert_eq!(layer.pointer(unit), info.get("cluster-size"), "{options}");
        }
        let specific = &info["format-specific"]["data"];
        for (key, field) in *same {
            assert_eq!(layer.pointer(field), specific.get(key), "{options} {key}");
        }
        if *ours == "vmdk" {
            let id = specific["cid"].as_u64().unwrap();
            assert_eq!(layer["content_id"], format!("{id:08x}"));
        }
        let bytes = |key: &str| disk[key].as_u64().unwrap();
        let all = bytes("mapped_bytes") + bytes("zero_bytes") + bytes("hole_bytes");
        assert_eq!(all, bytes("capacity_bytes"), "{options}");
        let files = disk["files"].as_array().unwrap().iter();
        let files: u64 = files
            .map(|file| file["mapped_bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(files, bytes("mapped_bytes"), "{options}");
    }
}

#[test]
fn chains_are_shown_from_the_top() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::one_sector(dir.path());
    for (format, extension) in [("vmdk", "vmdk"), ("qcow2", "qcow2")] {
        let base = dir.path().join(format!("base.{extension}"));
        let top = dir.path().join(format!("top.{extension}"));
        qemu_img(&["convert", "-O", format, text(&raw), text(&base)]);
        let backing = base.file_name().unwrap().to_str().unwrap();
        qemu_img(&[
            "create",
            "-q",
            "-f",
            format,
            "-b",
            backing,
            "-F",
            format,
            text(&top),
        ]);
        let shown = json(&top);
        let layers = shown["disks"][0]["layers"].as_array().unwrap();
        let files: Vec<&str> = layers.iter().map(|l| l["path"].as_str().unwrap()).collect();
        assert_eq!(files, [text(&top), text(&base)]);
        if format == "vmdk" {
            assert_eq!(layers[0]["parent"]["content_id"], layers[1]["content_id"]);
            assert_eq!(layers[0]["parent"]["hint"], backing);
        } else {
            assert_eq!(layers[0]["backing"]["name"], backing);
        }
    }
}

/// Every field's path and type; of lists, those of all their values.
fn shape(path: &str, value: &Value, out: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(values) => {
            for value in values {
                shape(&format!("{path}[]"), value, out);
            }
            return;
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                shape(&format!("{path}.{key}"), value, out);
            }
            return;
        }
    };
    out.insert(format!("{path}: {kind}"));
}

#[test]
fn the_json_keeps_its_structure() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let size = fs::metadata(&raw).unwrap().len();
    convert(&raw, "vmdk", "subformat=streamOptimized", "a.vmdk");
    fs::write(dir.path().join("vm.mf"), "").unwrap();
    fs::write(dir.path().join("vm.ovf"), images::ovf(&[("a.vmdk", size)])).unwrap();
    let sources = [
        (
            "ova",
            images::ova(dir.path(), &["vm.ovf", "vm.mf", "a.vmdk"]),
        ),
        ("vhd", convert(&raw, "vpc", "subformat=dynamic", "a.vhd")),
        ("vhdx", convert(&raw, "vhdx", "subformat=dynamic", "a.vhdx")),
        ("qcow2", convert(&raw, "qcow2", "compat=1.1", "a.qcow2")),
        ("raw", raw),
    ];
    let mut found = String::new();
    for (name, source) in sources {
        let mut lines = BTreeSet::new();
        shape("", &json(&source), &mut lines);
        for line in lines {
            found += &format!("{name} {line}\n");
        }
    }
    let expected = include_str!("inspect.structure");
    assert!(found == expected, "the structure is now\n{found}");
}

#[test]
fn a_hostile_text_does_not_steer_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}evil";
    let many = "RW 8 ZERO\n".repeat(2000);
    let long = "x".repeat(100_000);
    let source = dir.path().join("vm.vmdk");
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"{hostile}\"\n{many}ddb.comment = \"{hostile}\"\nddb.long = \"{long}\"\n\
         ddb.{hostile} = \"1\"\n"
    );
    fs::write(&source, descriptor).unwrap();
    let shown = inspect(&source, &[]);
    let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!shown.contains(steers), "{shown:?}");
    assert!(
        shown.contains("owned"),
        "what it says is shown all the same"
    );
    assert!(shown.len() < 20_000, "{} bytes", shown.len());
    let json = json(&source);
    let layer = &json["disks"][0]["layers"][0];
    assert_eq!(layer["extents"].as_array().unwrap().len(), 2000);
    assert!(layer["database"]["long"].as_str().unwrap().len() < 2000);
}

#[test]
fn a_package_tells_its_machine() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::one_sector(dir.path());
    convert(&raw, "vmdk", "subformat=streamOptimized", "a.vmdk");
    let ovf = images::ovf(&[("a.vmdk", 512)]).replace(
        "<VirtualHardwareSection><Info>hw</Info>",
        "<VirtualHardwareSection><Info>hw</Info><System>\
         <VirtualSystemType>vmx-19</VirtualSystemType></System>",
    );
    fs::write(dir.path().join("vm.ovf"), ovf).unwrap();
    let source = dir.path().join("vm.ovf");
    let shown = json(&source);
    assert_eq!(shown["package"]["system_type"], "vmx-19");
    assert!(shown["package"]["digests"].is_null());
    assert_eq!(shown["machine"]["cpus"], 2);
    fs::write(dir.path().join("vm.mf"), "").unwrap();
    assert_eq!(json(&source)["package"]["digests"], "vm.mf");
    let shown = inspect(&source, &[]);
    for word in ["vmx-19", "vm.mf", "cpus", "streamOptimized", "layer"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
}
