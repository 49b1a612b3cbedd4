//! Disks for tests: guest contents as raw files, containers that qemu-img makes of them, and
//! qemu-img as the judge of what comes out. A missing tool fails the test and is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The VMDK subformats that qemu-img writes and the engine reads.
pub const SUBFORMATS: [&str; 5] = [
    "streamOptimized",
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
];

/// Runs a tool with a limit of two minutes; `package` is named if it is missing.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["120", program]).args(arguments);
    checked(package, command)
}

/// Runs a command that timeout(1) limits and that is to succeed.
pub fn checked(package: &str, mut command: Command) -> Output {
    let output = command.output().expect("timeout(1) of coreutils");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_ne!(
        output.status.code(),
        Some(127),
        "{command:?}: something is missing: apt-get install {package}"
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{errors}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

pub fn qemu_img(arguments: &[&str]) -> String {
    let output = run("qemu-utils", "qemu-img", arguments);
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that repeat late and compress little, the same in every run.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A sparse raw file with `pieces` written into it.
pub fn raw_disk(path: &Path, size_bytes: u64, pieces: &[(u64, &[u8])]) -> PathBuf {
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).unwrap();
    }
    path.to_path_buf()
}

/// A disk with one partition, on which only an appliance sees that there is no system. Its boot
/// sector says `tiny login:` on the serial line and halts: for a boot check, it is up.
pub fn tiny(path: &Path) -> PathBuf {
    // xor ax,ax; mov ds,ax; mov si,0x7c15; mov dx,0x3f8;
    // next: lodsb; test al,al; jz end; out dx,al; jmp next; end: hlt; jmp end
    let code = b"\x31\xc0\x8e\xd8\xbe\x15\x7c\xba\xf8\x03\
                 \xac\x84\xc0\x74\x03\xee\xeb\xf8\xf4\xeb\xfd\
                 \r\ntiny login: \0";
    let entry = [0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
    let pieces: [(u64, &[u8]); 4] = [
        (0, code),
        (446, &entry),
        (510, &[0x55, 0xaa]),
        (1 << 20, b"XFSB"),
    ];
    raw_disk(path, 4 << 20, &pieces)
}

/// Data in the first and last sector and across grains; the size is no multiple of 64 KiB.
pub fn edges(dir: &Path) -> PathBuf {
    let size = 37 * 1024 * 1024 + 3 * 512;
    let sector = noise(1, 512);
    let long = noise(2, 3_000_001);
    let text = b"grain by grain ".repeat(20_000);
    raw_disk(
        &dir.join("edges.raw"),
        size,
        &[
            (0, &sector),
            (65_536 - 512, &text),
            (5_000_000, &long),
            (20 * 1024 * 1024, &[0; 65_536 * 3]),
            (30 * 1024 * 1024 + 512, &sector),
            (size - 512, &sector),
        ],
    )
}

/// An ext4 file system that holds this project's sources and a few programs.
pub fn ext4(dir: &Path) -> PathBuf {
    let path = dir.join("ext4.raw");
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for room in ["queue", "converter"] {
        run(
            "coreutils",
            "cp",
            &["-r", text(&project.join(room)), text(&tree)],
        );
    }
    std::fs::copy("/bin/bash", tree.join("bash")).unwrap();
    std::fs::write(tree.join("zeros"), vec![0; 1 << 20]).unwrap();
    std::fs::write(tree.join("noise"), noise(3, 2 << 20)).unwrap();
    run(
        "e2fsprogs",
        "mke2fs",
        &["-q", "-t", "ext4", "-d", text(&tree), text(&path), "24M"],
    );
    // A disk is seldom as round as its file system.
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len((24 << 20) + 7 * 512).unwrap();
    path
}

pub fn all_zero(dir: &Path) -> PathBuf {
    raw_disk(&dir.join("zero.raw"), (10 << 20) + 512, &[])
}

pub fn one_sector(dir: &Path) -> PathBuf {
    raw_disk(&dir.join("sector.raw"), 512, &[(0, &noise(4, 512))])
}

/// 1 TiB and one sector, with a little data at both ends and in the middle.
pub fn huge(dir: &Path) -> PathBuf {
    let size = (1 << 40) + 512;
    let data = noise(5, 200_000);
    let sector = noise(6, 512);
    raw_disk(
        &dir.join("huge.raw"),
        size,
        &[(0, &sector), (size / 2, &data), (size - 512, &sector)],
    )
}

/// Makes a VMDK of a raw file; the descriptor (or only file) is returned.
pub fn vmdk(raw: &Path, subformat: &str, dir: &Path) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join("vm.vmdk");
    let option = format!("subformat={subformat}");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        &option,
        text(raw),
        text(&path),
    ]);
    path
}

/// Both judges: the image is sound, and the guest sees the same bytes and the same size.
pub fn judge(raw: &Path, image: &Path, format: &str) {
    if format == "qcow2" {
        qemu_img(&["check", "-q", "-f", "qcow2", text(image)]);
    }
    let info = qemu_img(&["info", "-f", format, "--output=json", text(image)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let size = std::fs::metadata(raw).unwrap().len();
    assert_eq!(
        info.get("virtual-size").and_then(serde_json::Value::as_u64),
        Some(size)
    );
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "raw",
        "-F",
        format,
        text(raw),
        text(image),
    ]);
}

/// An OVF 1.0 descriptor with one disk per (file, capacity in bytes).
pub fn ovf(disks: &[(&str, u64)]) -> String {
    let mut files = String::new();
    let mut section = String::new();
    let mut items = String::new();
    for (number, (file, capacity)) in disks.iter().enumerate() {
        files += &format!("<File ovf:href=\"{file}\" ovf:id=\"file{number}\"/>");
        section += &format!(
            "<Disk ovf:capacity=\"{capacity}\" ovf:diskId=\"disk{number}\" \
             ovf:fileRef=\"file{number}\"/>"
        );
        items += &format!(
            "<Item><rasd:AddressOnParent>{number}</rasd:AddressOnParent>\
             <rasd:ElementName>disk {number}</rasd:ElementName>\
             <rasd:HostResource>ovf:/disk/disk{number}</rasd:HostResource>\
             <rasd:InstanceID>{}</rasd:InstanceID><rasd:Parent>3</rasd:Parent>\
             <rasd:ResourceType>17</rasd:ResourceType></Item>",
            10 + number
        );
    }
    let resources = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";
    format!(
        "<?xml version=\"1.0\"?><Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"{resources}CIM_ResourceAllocationSettingData\">\
         <References>{files}</References><DiskSection><Info>disks</Info>{section}</DiskSection>\
         <VirtualSystem ovf:id=\"web-01\"><Info>vm</Info><VirtualHardwareSection><Info>hw</Info>\
         <Item><rasd:ElementName>cpu</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>\
         <rasd:ResourceType>3</rasd:ResourceType>\
         <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>\
         <Item><rasd:ElementName>scsi</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>\
         <rasd:ResourceType>6</rasd:ResourceType></Item>{items}\
         </VirtualHardwareSection></VirtualSystem></Envelope>"
    )
}

/// Packs files of `dir` into an OVA, in the given order.
pub fn ova(dir: &Path, members: &[&str]) -> PathBuf {
    let path = dir.join("vm.ova");
    let mut arguments = vec!["--format=ustar", "-C", text(dir), "-cf", text(&path)];
    arguments.extend(members);
    run("tar", "tar", &arguments);
    path
}
