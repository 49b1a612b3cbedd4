//! What is text: descriptors, OVF, digests, manifests, and the queue's own names and JSON.
use std::fs;
use std::path::Path;

use hyper2kvm_tests::images;
use proptest::prelude::*;
use queue::arrival::ovf;
use queue::arrival::pieces::Scope;
use queue::arrival::{candidate, whole, xml};
use queue::job::{JobId, Manifest, Record, Request, Status, VmName};
use queue::roots::{Roots, is_plain};
use queue::spool::Memory;
use tempfile::TempDir;

use super::edit::{Case, cases};
use super::form::place;
use super::judge;

/// What a hostile or broken writer puts where a name or a value should be.
const WORDS: [&str; 36] = [
    "",
    "\"",
    "'",
    "\0",
    "\r",
    "\n",
    "\u{feff}",
    "/",
    "//",
    "..",
    "../../../etc/shadow",
    "/etc/shadow",
    "/dev/sda",
    "/proc/self/mem",
    ".processing/x",
    "a\\b\\c",
    "%2e%2e%2f",
    "%",
    "%zz",
    "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]>",
    "&a;",
    "&#0;",
    "<![CDATA[",
    "<Item>",
    "</Item>",
    "xmlns:ovf=\"\"",
    "RW 1 FLAT \"a\" 0\n",
    "RW 4194304 ZERO\n",
    "RW 18446744073709551615 SPARSE \"vm.vmdk\"\n",
    "parentCID=00000001\n",
    "parentFileNameHint=\"vm.vmdk\"\n",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "1e999",
    "-1",
    "byte * 2^64",
];

fn damaged(texts: &[&[u8]], case: &Case) -> Vec<u8> {
    let mut text = texts[case.form % texts.len()].to_vec();
    for edit in &case.edits {
        edit.apply_to_text(&mut text, &WORDS);
    }
    // No file of the kind is larger than this before it is refused.
    text.truncate(1 << 20);
    text
}

/// A target that takes bytes: `parse` says whether they were sound.
fn fuzz_bytes(target: &str, texts: &[&[u8]], parse: impl Fn(&[u8]) -> bool) {
    for text in texts {
        assert!(parse(text), "{target}: {}", String::from_utf8_lossy(text));
    }
    judge::fuzz(target, cases(), |case| parse(&damaged(texts, &case)));
}

/// A target that reads a drop whose owner is damaged.
fn fuzz_owner(target: &str, top: &TempDir, owner: &str, texts: &[&[u8]]) {
    let roots = Roots::open(top.path(), &[]).unwrap();
    let path = top.path().join(owner);
    fuzz_bytes(target, texts, |text| {
        fs::write(&path, text).unwrap();
        judge::read(&roots, &path)
    });
}

/// Disks that the texts name.
fn with_disks() -> TempDir {
    let top = place();
    fs::write(top.path().join("a b-flat.vmdk"), [7; 12 * 512]).unwrap();
    let raw = super::vmdk::raw(top.path());
    images::vmdk(&raw, "monolithicSparse", top.path());
    fs::rename(top.path().join("vm.vmdk"), top.path().join("b.vmdk")).unwrap();
    top
}

const FLAT: &[u8] = b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\nRW 8 FLAT \"a b-flat.vmdk\" 4\n\
RW 4192256 ZERO\nRW 586 SPARSE \"b.vmdk\"\n\n# The Disk Data Base\n\
ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"20\"\n";

#[test]
fn vmdk_descriptor() {
    let top = with_disks();
    fuzz_owner("vmdk: descriptor", &top, "vm.vmdk", &[FLAT]);
}

const ESXI: &[u8] = include_bytes!("../../../queue/src/arrival/ovf/samples/esxi7-two-disks.ovf");
const VIRTUALBOX: &[u8] = include_bytes!("../../../queue/src/arrival/ovf/samples/virtualbox7.ovf");
const OPEN_VMDK: &[u8] = include_bytes!("../../../queue/src/arrival/ovf/samples/open-vmdk.ovf");

#[test]
fn ovf_xml() {
    fuzz_bytes("ovf: xml", &[ESXI, VIRTUALBOX, OPEN_VMDK], |text| {
        let ovf = ovf::parse(text);
        if let Ok(ovf) = &ovf {
            assert!((1..=256).contains(&ovf.disks.len()));
            assert!(ovf.notes.len() <= 512 && ovf.machine.nics.len() <= 64);
        }
        ovf.is_ok() && xml::decode(text).and_then(xml::parse).is_ok()
    });
}

#[test]
fn mf_digests() {
    let hex = "0123456789abcdef".repeat(8);
    let lines = [
        ("SHA1", 40),
        ("SHA256", 64),
        ("SHA512", 128),
        ("sha-256", 64),
    ];
    let line =
        |(name, digits): (&str, usize)| format!("{name}(disk (1).vmdk)= {}\r\n", &hex[..digits]);
    let text = lines.map(line).concat();
    fuzz_bytes("mf: digests", &[text.as_bytes()], |text| {
        let digests = ovf::parse_digests(text);
        if let Ok(digests) = &digests {
            let is_sound = |digest: &ovf::MemberDigest| {
                !digest.name.is_empty() && matches!(digest.hex.len(), 40 | 64 | 128)
            };
            assert!(digests.iter().all(is_sound));
        }
        digests.is_ok()
    });
}

const MANIFEST: &[u8] = br#"{
  "manifest_version": "1.0",
  "source": {"provider": "vsphere", "vm_name": "web-01"},
  "vm": {"cpu": 4, "mem_gb": 8, "firmware": "uefi"},
  "disks": [
    {"id": "d0", "source_format": "raw", "bytes": 6144, "local_path": "a b-flat.img",
     "boot_order_hint": 0, "disk_type": "boot"},
    {"id": "d1", "source_format": "vmdk", "bytes": 1, "local_path": "b.vmdk"}
  ],
  "nics": [{"id": "n0", "mac": "00:50:56:ab:12:34", "network": "LAN"}],
  "pipeline": {"convert": {"enabled": true, "compress": true, "compress_level": 6}},
  "output": {"directory": "/out"}, "options": {"priority": "high"}, "x": [1, 2]
}
"#;

#[test]
fn manifest() {
    let top = with_disks();
    fs::rename(
        top.path().join("a b-flat.vmdk"),
        top.path().join("a b-flat.img"),
    )
    .unwrap();
    fuzz_owner("manifest", &top, "vm.json", &[MANIFEST]);
}

/// The queue's own reading of owners: what else belongs to the drop, and whether it is whole.
#[test]
fn arrival_of_owners() {
    let top = with_disks();
    images::vmdk(&top.path().join("a.raw"), "streamOptimized", top.path());
    let stream = fs::read(top.path().join("vm.vmdk")).unwrap();
    fs::write(top.path().join("vm.ovf"), images::ovf(&[("b.vmdk", 1)])).unwrap();
    let ova = fs::read(images::ova(top.path(), &["vm.ovf"])).unwrap();
    let texts = [FLAT, ESXI, MANIFEST, &ova[..4096], &stream[..1024]];
    let names = ["vm.vmdk", "vm.ovf", "vm.json", "vm.ova", "vm.vmdk"];
    judge::fuzz("queue: arrival of owners", cases(), |case| {
        let name = names[case.form % names.len()];
        let path = top.path().join(name);
        let text = damaged(&texts, &case);
        fs::write(&path, &text).unwrap();
        let (base, output) = (top.path(), Path::new("/out"));
        let scope = Scope {
            base,
            queue: base,
            output,
        };
        let pieces = scope.pieces(name);
        if let Ok(pieces) = &pieces {
            assert!(pieces.names.iter().all(|name| is_plain(name)), "{pieces:?}");
            assert!(pieces.names.len() <= 4096);
            let place = pieces.place.as_deref();
            assert!(place.is_none_or(|place| place.is_empty() || is_plain(place)));
        }
        candidate::is_extent("vm-flat.vmdk", &text);
        whole::is_complete(&path).unwrap();
        whole::looks_like_manifest(&path);
        whole::is_complete_json(&path);
        pieces.is_ok()
    });
}

/// Any name in the queue directory, and any that a manifest or OVF gives its VM.
#[test]
fn queue_names() {
    let texts: [&[u8]; 4] = [
        b"web-01.vmdk",
        b"web 01-s001.vmdk.gz",
        "\u{1f600} vm.ova".as_bytes(),
        b"%2E%2Fx.ovf",
    ];
    fuzz_bytes("queue: names", &texts, |text| {
        let text = String::from_utf8_lossy(text);
        candidate::classify(&text);
        candidate::is_ignored(&text);
        assert!(candidate::stem(&text).len() <= text.len());
        candidate::family(&text);
        for name in [VmName::new(&text), Ok(VmName::of_file(&text))]
            .into_iter()
            .flatten()
        {
            let encoded = name.as_str();
            assert!(is_plain(encoded) && !encoded.contains('/'), "{encoded:?}");
            assert!(
                !encoded.starts_with('.') && encoded.len() <= 200,
                "{encoded:?}"
            );
            assert_eq!(VmName::try_from(encoded.to_owned()).unwrap(), name);
        }
        if let Ok(name) = VmName::try_from(text.into_owned()) {
            assert!(is_plain(name.as_str()));
        }
        true
    });
}

const JOB: &str = r#"{
  "job_id": "job-01HZXK3V9Q0000000000000000", "drop": "vm.ovf", "kind": "ovf",
  "owner": "vm.ovf", "takes": [{"from": "vm.ovf", "to": "vm.ovf"}, {"from": "d/a", "to": "d/a"}],
  "vm_name": "web-01", "place": "a/b", "priority": "high", "created_at": "2026-01-01T00:00:00Z",
  "attempts": 1, "crashes": 2, "retries": 3, "stage": "publishing", "link": "a", "file": "b"
}"#;

const RECORD: &str = r#"{
  "job_id": "job-01HZXK3V9Q0000000000000000", "vm_name": "web-01", "state": "failed",
  "phase": "convert", "queue_position": 3, "waits_for": ["a"], "progress": {"done_bytes": 5},
  "disks": [{"name": "a", "virtual_size_bytes": 7}], "timings": {"convert": 1.5}, "attempts": 2,
  "error": {"kind": "corrupt", "message": "a", "remedy": "b", "chain": ["c"]},
  "created_at": "2026-01-01T00:00:00Z", "pid": 7
}"#;

#[test]
fn job_memory() {
    fuzz_bytes("queue: job.json", &[JOB.as_bytes()], |text| {
        let Ok(memory) = Memory::parse(text) else {
            return false;
        };
        let paths = memory.takes.iter().flat_map(|take| [&take.from, &take.to]);
        assert!(
            paths
                .chain([&memory.drop, &memory.owner])
                .all(|path| is_plain(path))
        );
        assert!(is_plain(memory.vm_name.as_str()));
        assert_eq!(Memory::parse(&memory.to_bytes().unwrap()).unwrap(), memory);
        true
    });
}

#[test]
fn records_and_heartbeats() {
    let status = serde_json::to_vec(&Status::default()).unwrap();
    fuzz_bytes("queue: records", &[RECORD.as_bytes(), &status], |text| {
        let status = serde_json::from_slice::<Status>(text);
        if let Ok(status) = &status {
            status.is_fresh(std::time::SystemTime::now());
        }
        let record = serde_json::from_slice::<Record>(text);
        if let Ok(Some(failure)) = record.as_ref().map(|record| &record.error) {
            let lines = failure.to_text();
            assert!(lines.lines().count() <= 3, "{lines:?}");
        }
        status.is_ok() || record.is_ok()
    });
}

#[test]
fn requests() {
    let id = JobId::new();
    let texts = [
        serde_json::to_vec(&Request::Pause).unwrap(),
        serde_json::to_vec(&Request::Retry { job_id: id }).unwrap(),
        format!(r#"{{"request": "set_priority", "job_id": "{id}", "priority": "low"}}"#).into(),
    ];
    let texts = texts.each_ref().map(Vec::as_slice);
    fuzz_bytes("queue: requests", &texts, |text| {
        let Ok(request) = serde_json::from_slice::<Request>(text) else {
            return false;
        };
        let again = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&again).unwrap(), request);
        true
    });
}

/// A manifest's own parser, on its own: deeper than a drop lets it go.
#[test]
fn manifest_bytes() {
    fuzz_bytes("manifest: bytes", &[MANIFEST], |text| {
        let Ok(manifest) = Manifest::parse(text) else {
            return false;
        };
        assert!((1..=256).contains(&manifest.disks.len()));
        manifest.machine();
        manifest.unknown_fields();
        manifest.priority();
        true
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Only what an id writes itself is read as one.
    #[test]
    fn job_ids(text in "(job-)?[0-9A-Za-z]{0,30}") {
        if let Ok(id) = text.parse::<JobId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }
}
