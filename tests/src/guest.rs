//! Guests that boot: built by tests/setup/guest.sh as they come from VMware, packed as an OVA, and
//! watched in a QEMU that knows nothing of the product.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::images::{ova, qemu_img, run, text};

/// The address of the guests' only network card, `ens192` in them.
pub const MAC: &str = "00:50:56:ab:cd:01";
/// A guest under emulation on a busy host.
const BOOT_SECONDS: u64 = 400;

/// The raw disk of a guest that comes from VMware: `plain`, `lvm` or `btrfs`. Made at first use.
pub fn disk(variant: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/guest.sh");
    let output = Command::new("sh")
        .arg(&script)
        .arg(variant)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "tests/setup/guest.sh {variant}: {said}"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Packs the disk as an OVA, its disk a streamOptimized VMDK, with one network card of `MAC`.
pub fn appliance(raw: &Path, dir: &Path, name: &str, firmware: &str) -> PathBuf {
    let vmdk = dir.join("disk1.vmdk");
    let option = "subformat=streamOptimized";
    let (from, to) = (text(raw), text(&vmdk));
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", option, from, to]);
    let size = std::fs::metadata(raw).unwrap().len();
    let plain = crate::images::ovf(&[("disk1.vmdk", size)]);
    let card = format!(
        "<Item><rasd:Address>{MAC}</rasd:Address><rasd:Connection>VM Network</rasd:Connection>\
         <rasd:ElementName>net</rasd:ElementName><rasd:InstanceID>20</rasd:InstanceID>\
         <rasd:ResourceSubType>vmxnet3</rasd:ResourceSubType>\
         <rasd:ResourceType>10</rasd:ResourceType></Item>\
         <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>\
         <rasd:ElementName>memory</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID>\
         <rasd:ResourceType>4</rasd:ResourceType>\
         <rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>\
         <vmw:Config xmlns:vmw=\"http://www.vmware.com/schema/ovf\" ovf:required=\"false\" \
         vmw:key=\"firmware\" vmw:value=\"{firmware}\"/></VirtualHardwareSection>"
    );
    let ovf = plain
        .replace("</VirtualHardwareSection>", &card)
        .replace("ovf:id=\"web-01\"", &format!("ovf:id=\"{name}\""));
    std::fs::write(dir.join("vm.ovf"), ovf).unwrap();
    ova(dir, &["vm.ovf", "disk1.vmdk"])
}

/// Starts an image (on a throwaway overlay) with these devices for the drive `disk`, until its
/// serial line holds one of `signs`; returns what the line said.
pub fn boot(image: &Path, format: &str, devices: &[&str], dir: &Path, signs: &[&str]) -> String {
    let overlay = dir.join("boot.qcow2");
    let _ = std::fs::remove_file(&overlay);
    let backing = text(image);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        format,
        "-b",
        backing,
        text(&overlay),
    ]);
    let log = dir.join("serial.log");
    std::fs::write(&log, "").unwrap();
    let mut command = Command::new("timeout");
    command.args([
        &BOOT_SECONDS.to_string(),
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
    ]);
    command.args([
        "-machine",
        "q35",
        "-cpu",
        "max",
        "-m",
        "1024",
        "-nodefaults",
    ]);
    command.args([
        "-display",
        "none",
        "-vga",
        "std",
        "-nic",
        "none",
        "-no-reboot",
    ]);
    command.arg("-serial").arg(format!("file:{}", text(&log)));
    command.arg("-drive").arg(format!(
        "if=none,id=disk,format=qcow2,file={}",
        text(&overlay)
    ));
    for device in devices {
        command.args(["-device", device]);
    }
    let mut child = command.spawn().expect("timeout(1) of coreutils");
    let begun = Instant::now();
    let said = loop {
        std::thread::sleep(Duration::from_millis(500));
        let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        let is_over = child.try_wait().unwrap().is_some();
        if is_over || signs.iter().any(|sign| said.contains(sign)) {
            break said;
        }
    };
    // timeout(1) passes the signal on to QEMU.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
    println!("{devices:?}: {:.1} s", begun.elapsed().as_secs_f64());
    said
}

/// The processes whose parent or, of QEMU, whose group is `of`.
fn processes(of: i32, is_wanted: impl Fn(&str, [i32; 2]) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|id| {
        let read = |name: &str| std::fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
        let mut numbers = rest.split(' ').skip(2).map(|number| number.parse().ok());
        let (Some(Some(parent)), Some(Some(group))) = (numbers.next(), numbers.next()) else {
            return false;
        };
        let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
        [parent, group].contains(&of) && is_wanted(&command, [parent, group])
    })
    .collect()
}

/// The processes below a daemon that run the program again as an appliance.
pub fn appliances(daemon: u32) -> Vec<i32> {
    let daemon = i32::try_from(daemon).unwrap();
    processes(daemon, |command, [parent, _]| {
        parent == daemon && command.ends_with("appliance\0")
    })
}

/// The QEMU of an appliance's process.
pub fn emulators(appliance: i32) -> Vec<i32> {
    processes(appliance, |command, [_, group]| {
        group == appliance && command.contains("qemu-system")
    })
}

/// The size of a PNG that is one, by its header (RFC 2083, 11.2.1).
pub fn png_size(path: &Path) -> (u32, u32) {
    let bytes = std::fs::read(path).unwrap();
    assert!(
        bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
        "{}",
        path.display()
    );
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

/// Whether libvirt's schema takes the file.
pub fn validate(domain: &Path) {
    run(
        "libvirt-clients",
        "virt-xml-validate",
        &[text(domain), "domain"],
    );
}
