//! Drops that lie: paths out of the job, links, devices, archives that do not add up.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::disk::Unobserved;
use crate::error::{Error, ErrorKind};

struct Place {
    top: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("job")).unwrap();
        fs::write(top.path().join("secret"), [1; 4096]).unwrap();
        Self { top }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.top.path().join("job").join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, name: &str) -> Result<Appliance> {
        let job = self.top.path().join("job");
        let roots = Roots::open(&job, &[]).unwrap();
        let unpacker = Unpacker {
            directory: self.top.path(),
            observer: &Unobserved,
            patience: std::time::Duration::ZERO,
        };
        open(&roots, &job.join(name), true, &unpacker)
    }

    fn refuses(&self, name: &str) -> Error {
        self.open(name)
            .err()
            .unwrap_or_else(|| panic!("{name} was opened"))
    }
}

fn descriptor(file: &str) -> String {
    let signature = vmdk::descriptor::SIGNATURE;
    format!("{signature}\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"{file}\" 0\n")
}

#[test]
fn references_never_leave_the_job() {
    let place = Place::new();
    let job = place.top.path().join("job");
    place.write("flat", [2; 4096]);
    symlink("../secret", job.join("link")).unwrap();
    symlink("/dev/zero", job.join("device")).unwrap();
    nix::unistd::mkfifo(&job.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in [
        "/etc/shadow",
        "../secret",
        "link",
        "device",
        "fifo",
        "/dev/zero",
        "/dev/sda",
        "absent",
        ".",
    ] {
        place.write("vm.vmdk", descriptor(name));
        assert_eq!(place.refuses("vm.vmdk").kind, ErrorKind::Invalid, "{name}");
        let manifest = serde_json::json!({"manifest_version": "1.0", "disks": [
            {"id": "a", "source_format": "raw", "bytes": 1, "local_path": name}]});
        place.write("manifest.json", manifest.to_string());
        assert_eq!(
            place.refuses("manifest.json").kind,
            ErrorKind::Invalid,
            "{name}"
        );
        assert!(place.open(name).is_err(), "{name}");
    }
    place.write("vm.vmdk", descriptor("flat"));
    let appliance = place.open("vm.vmdk").unwrap();
    assert_eq!(appliance.disks[0].capacity_bytes, 4096);
    assert_eq!(appliance.disks[0].format, "vmdk (monolithicFlat)");
}

#[test]
fn what_is_recognised_but_not_read_is_named() {
    let place = Place::new();
    let mut vdi = vec![0; 1024];
    vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
    place.write("a.vdi", vdi);
    let error = place.refuses("a.vdi");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.to_string().contains("VDI"), "{error}");
    for (name, head, wrapper) in [
        ("a.raw.gz", &b"\x1f\x8b\x08"[..], "gzip"),
        ("a.raw.zst", b"\x28\xb5\x2f\xfd", "zstd"),
    ] {
        let mut bytes = head.to_vec();
        bytes.resize(1024, 0xff);
        place.write(name, bytes);
        let error = place.refuses(name);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.to_string().contains(wrapper), "{error}");
    }
    place.write("empty.raw", "");
    assert_eq!(place.refuses("empty.raw").kind, ErrorKind::Corrupt);
    place.write("flat.vmdk", [0; 4096]);
    assert_eq!(place.refuses("flat.vmdk").kind, ErrorKind::Invalid);
}

#[test]
fn a_manifest_orders_its_disks_and_states_checksums() {
    let place = Place::new();
    place.write("one.bin", [1; 1000]);
    place.write("two.raw", [2; 1024]);
    let manifest = |checksum: &str| {
        serde_json::json!({"manifest_version": "1.0", "vm": {"cpu": 3}, "disks": [
            {"id": "a", "source_format": "raw", "bytes": 1, "local_path": "one.bin",
             "boot_order_hint": 2, "bus": "sata"},
            {"id": "b", "source_format": "raw", "bytes": 1, "local_path": "two.raw",
             "boot_order_hint": 1, "checksum": checksum}]})
        .to_string()
    };
    let hex = blake3::hash(&[2; 1024]).to_hex();
    place.write("manifest.json", manifest(&format!("blake3:{hex}")));
    let appliance = place.open("manifest.json").unwrap();
    let names: Vec<_> = appliance
        .disks
        .iter()
        .map(|disk| disk.name.as_str())
        .collect();
    assert_eq!(names, ["two.raw", "one.bin"]);
    assert_eq!(appliance.disks[1].capacity_bytes, 1024);
    assert_eq!(appliance.machine.cpus, Some(3));
    appliance.disks[0].checksums[0].verify(&|| true).unwrap();
    let other = blake3::hash(b"other").to_hex();
    place.write("manifest.json", manifest(&format!("blake3:{other}")));
    let appliance = place.open("manifest.json").unwrap();
    let error = appliance.disks[0].checksums[0]
        .verify(&|| true)
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    for bad in ["sha256:12", "md5:12", "12", "sha256:zz"] {
        place.write("manifest.json", manifest(bad));
        assert_eq!(
            place.refuses("manifest.json").kind,
            ErrorKind::Invalid,
            "{bad}"
        );
    }
}

/// A manifest of one disk, with `more` said of it.
fn manifest_of(file: &str, format: &str, more: &serde_json::Value) -> String {
    let mut disk = serde_json::json!({"id": "disk-0", "source_format": format, "bytes": 1,
        "local_path": file});
    let said = disk.as_object_mut().unwrap();
    said.extend(more.as_object().unwrap().clone());
    let source = serde_json::json!({"vm_name": "web"});
    serde_json::json!({"manifest_version": "1.0", "source": source, "disks": [disk]}).to_string()
}

fn piece(path: &str, content: &[u8]) -> serde_json::Value {
    let sum = format!("blake3:{}", blake3::hash(content).to_hex());
    serde_json::json!({"pieces": [{"local_path": path, "bytes": 1, "checksum": sum}]})
}

#[test]
fn a_manifest_names_appliances_and_the_pieces_of_its_disks() {
    let place = Place::new();
    let members = [
        regular("vm.ovf", OVF.as_bytes()),
        regular("d.img", &[3; 4096]),
    ];
    let whole = archive(&members);
    place.write("vm.ova", &whole);
    place.write("vm.ovf", OVF);
    place.write("d.img", [3; 4096]);
    let sum = format!("blake3:{}", blake3::hash(&whole).to_hex());
    for (file, format, more) in [
        ("vm.ova", "ova", serde_json::json!({"checksum": sum})),
        ("vm.ovf", "OVF", piece("d.img", &[3; 4096])),
    ] {
        place.write("manifest.json", manifest_of(file, format, &more));
        let appliance = place.open("manifest.json").unwrap();
        assert_eq!(appliance.machine.name.as_deref(), Some("web"));
        assert!(appliance.package.is_some());
        let disk = &appliance.disks[0];
        assert_eq!((disk.name.as_str(), disk.capacity_bytes), ("d.img", 4096));
        assert_eq!((appliance.disks.len(), disk.checksums.len()), (1, 1));
        disk.checksums[0].verify(&|| true).unwrap();
    }
    for (file, format) in [("vm.ovf", "ovf"), ("d.img", "raw")] {
        let other = piece("d.img", b"other");
        place.write("manifest.json", manifest_of(file, format, &other));
        let appliance = place.open("manifest.json").unwrap();
        let verified = appliance.disks[0].checksums[0].verify(&|| true);
        assert_eq!(verified.unwrap_err().kind, ErrorKind::Corrupt);
    }
    let nothing = serde_json::json!({});
    place.write("manifest.json", manifest_of("d.img", "ova", &nothing));
    let error = place.refuses("manifest.json").to_line();
    assert!(error.contains("has no OVF in it"), "{error}");
    let away = piece("../secret", b"");
    place.write("manifest.json", manifest_of("d.img", "raw", &away));
    assert_eq!(place.refuses("manifest.json").kind, ErrorKind::Invalid);
}

/// A ustar member; `kind` is the type flag.
fn member(name: &str, kind: u8, size: &str, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..124 + size.len()].copy_from_slice(size.as_bytes());
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

fn regular(name: &str, content: &[u8]) -> Vec<u8> {
    member(name, b'0', &format!("{:011o}", content.len()), content)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend([0; 1024]);
    bytes
}

const OVF: &str = r#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
 <References><File ovf:href="d.img" ovf:id="f"/></References>
 <DiskSection><Disk ovf:capacity="4096" ovf:diskId="d" ovf:fileRef="f"/></DiskSection>
 <VirtualSystem ovf:id="vm"><VirtualHardwareSection/></VirtualSystem></Envelope>"#;

#[test]
fn an_ova_is_read_in_place() {
    let place = Place::new();
    let ovf = regular("vm.ovf", OVF.as_bytes());
    let disk = regular("d.img", &[3; 4096]);
    let digest = |hex: &str| regular("vm.mf", format!("SHA256(d.img)= {hex}\n").as_bytes());
    let pax = member("x", b'x', &format!("{:011o}", 14), b"14 path=d.img\n");
    let long = member("x", b'L', &format!("{:011o}", 6), b"d.img\0");
    let other = regular("mangled", &[3; 4096]);
    for members in [
        vec![ovf.clone(), disk.clone()],
        vec![ovf.clone(), pax, other.clone()],
        vec![ovf.clone(), long, other],
        vec![ovf.clone(), digest(&"0".repeat(64)), disk.clone()],
    ] {
        place.write("vm.ova", archive(&members));
        let appliance = place.open("vm.ova").unwrap();
        let disk = &appliance.disks[0];
        assert_eq!((disk.name.as_str(), disk.capacity_bytes), ("d.img", 4096));
        let mut bytes = [0; 4096];
        disk.image.files()[0].read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [3; 4096]);
        if let Some(checksum) = disk.checksums.first() {
            let error = checksum.verify(&|| true).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
        }
    }
}

/// `d.img` as GNU tar stores a file with holes: of `size` bytes there are the pieces of `map`.
fn sparse(size: u64, map: &[(u64, u64)], stored: &[u8], goes_on: bool) -> Vec<u8> {
    let mut bytes = member("d.img", b'S', &format!("{:011o}", stored.len()), stored);
    bytes[257..265].copy_from_slice(b"ustar  \0");
    let fields = map.iter().flat_map(|(at, length)| [*at, *length]);
    for (number, field) in fields.enumerate() {
        let at = 386 + 12 * number;
        bytes[at..at + 12].copy_from_slice(format!("{field:011o}\0").as_bytes());
    }
    bytes[482] = u8::from(goes_on);
    bytes[483] = 0x80;
    bytes[487..495].copy_from_slice(&size.to_be_bytes());
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

#[test]
fn files_with_holes_are_laid_out_or_refused() {
    let place = Place::new();
    let ovf = || regular("vm.ovf", OVF.as_bytes());
    let stored = [[7; 512], [8; 512]].concat();
    let sound = sparse(1 << 20, &[(512, 512), (8192, 512)], &stored, false);
    place.write("vm.ova", archive(&[ovf(), sound]));
    let image = &place.open("vm.ova").unwrap().disks[0].image;
    assert_eq!(image.capacity_bytes(), 1 << 20);
    let bytes = image.files()[0].read_vec(0, 9000).unwrap();
    assert_eq!(
        (bytes[511], bytes[512], bytes[1023], bytes[1024]),
        (0, 7, 7, 0)
    );
    assert_eq!((bytes[8191], bytes[8192], bytes[8704]), (0, 8, 0));
    let corrupt = ErrorKind::Corrupt;
    let cases: [(&str, Vec<u8>, ErrorKind); 6] = [
        (
            "past its end",
            sparse(600, &[(512, 512)], &stored, false),
            corrupt,
        ),
        (
            "on each other",
            sparse(4096, &[(512, 512), (1000, 512)], &stored, false),
            corrupt,
        ),
        (
            "backwards",
            sparse(4096, &[(2048, 512), (0, 512)], &stored, false),
            corrupt,
        ),
        (
            "more than stored",
            sparse(1 << 20, &[(0, 4096)], &stored, false),
            corrupt,
        ),
        ("endless map", sparse(4096, &[(0, 512)], b"", true), corrupt),
        (
            "2^50 bytes",
            sparse(1 << 50, &[(0, 512)], &stored, false),
            ErrorKind::Unsupported,
        ),
    ];
    for (what, file, kind) in cases {
        place.write("vm.ova", archive(&[ovf(), file]));
        let error = place.refuses("vm.ova");
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert!(error.to_string().contains("vm.ova"), "{what}: {error}");
    }
}

#[test]
fn archives_that_do_not_add_up_are_refused() {
    let place = Place::new();
    let ovf = || regular("vm.ovf", OVF.as_bytes());
    let disk = || regular("d.img", &[3; 4096]);
    let huge = |size: &str| member("d.img", b'0', size, &[3; 4096]);
    let mut base256 = member("d.img", b'0', "\0", &[3; 4096]);
    base256[124..136].fill(0xff);
    let broken_pax = member("x", b'x', "00000000004", b"9 pa");
    let big_pax = member("x", b'x', "00004000000", &[b'1'; 1 << 20]);
    let many: Vec<Vec<u8>> = (0..1025).map(|n| regular(&n.to_string(), b"")).collect();
    let cases: [(&str, Vec<Vec<u8>>, ErrorKind); 13] = [
        ("no OVF", vec![disk()], ErrorKind::Invalid),
        (
            "two OVFs",
            vec![ovf(), regular("b.ovf", b"")],
            ErrorKind::Invalid,
        ),
        ("missing disk", vec![ovf()], ErrorKind::Invalid),
        ("duplicate", vec![ovf(), disk(), disk()], ErrorKind::Invalid),
        (
            "symlink",
            vec![ovf(), member("d.img", b'2', "0", b"")],
            ErrorKind::Invalid,
        ),
        (
            "hard link",
            vec![ovf(), member("d.img", b'1', "0", b"")],
            ErrorKind::Invalid,
        ),
        (
            "device",
            vec![ovf(), member("d.img", b'3', "0", b"")],
            ErrorKind::Invalid,
        ),
        (
            "8 GiB",
            vec![ovf(), huge("77777777777")],
            ErrorKind::Corrupt,
        ),
        ("base 256", vec![ovf(), base256], ErrorKind::Corrupt),
        ("no size", vec![ovf(), huge("zzz")], ErrorKind::Corrupt),
        (
            "broken pax",
            vec![ovf(), broken_pax, disk()],
            ErrorKind::Corrupt,
        ),
        ("long pax", vec![ovf(), big_pax, disk()], ErrorKind::Corrupt),
        ("too many", many, ErrorKind::Corrupt),
    ];
    for (what, members, kind) in cases {
        place.write("vm.ova", archive(&members));
        let error = place.refuses("vm.ova");
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert!(error.to_string().contains("vm.ova"), "{what}: {error}");
    }
    let whole = archive(&[ovf(), disk()]);
    for length in (512..whole.len() - 1024).step_by(97) {
        place.write("vm.ova", &whole[..length]);
        assert!(place.open("vm.ova").is_err(), "{length}");
    }
}
