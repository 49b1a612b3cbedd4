//! QEMU's command line for a machine like the one in domain.xml.
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::accel::Accel;
use super::super::overlay::Image;
use super::emulator;
use crate::error::{Error, Result};

/// How the disks are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    VirtioBlk,
    VirtioScsi,
    Sata,
}

/// The virtual hardware that a guest is proven on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// In boot order.
    pub disks: Vec<Image>,
    pub bus: Bus,
    pub uefi: bool,
    pub memory_mib: u64,
    pub cpus: u32,
    /// Network cards, of the model that goes with the bus; they lead nowhere.
    pub macs: Vec<String>,
}

const PROGRAMS: [&str; 3] = [
    "/usr/bin/qemu-system-x86_64",
    "/usr/local/bin/qemu-system-x86_64",
    "/usr/libexec/qemu-kvm",
];
/// Code and template of the variables, as distributions install them.
const FIRMWARE: [(&str, &str); 5] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];
/// A proof takes no more of the host than this, whatever the guest had.
const MAX_MEMORY_MIB: u64 = 2048;
const MIN_MEMORY_MIB: u64 = 256;
const MAX_CPUS: u32 = 4;
/// The AHCI controller of q35 has six ports.
const SATA_PORTS: usize = 6;

pub(super) fn command(
    machine: &Machine,
    overlays: &[PathBuf],
    accel: Accel,
    log: &Path,
    variables: &Path,
) -> Result<Command> {
    let program = PROGRAMS
        .iter()
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| {
            emulator("the boot check needs qemu-system-x86_64, which is not installed")
                .with_remedy("install it (Debian: qemu-system-x86, Fedora and RHEL: qemu-kvm)")
        })?;
    let mut command = Command::new(program);
    let memory_mib = machine.memory_mib.clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB);
    let cpu = if accel == Accel::Kvm { "host" } else { "max" };
    command.args([
        "-machine",
        &format!("q35,accel={}", accel.as_str()),
        "-cpu",
        cpu,
    ]);
    command.args(["-m", &memory_mib.to_string(), "-smp"]);
    command.arg(machine.cpus.clamp(1, MAX_CPUS).to_string());
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    command.args(["-vga", "std", "-qmp", "stdio", "-serial"]);
    command.arg(format!("file:{}", plain(log)?));
    command.args(["-device", "qemu-xhci", "-device", "usb-tablet"]);
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"]);
    if machine.uefi {
        add_firmware(&mut command, variables)?;
    }
    if machine.bus == Bus::VirtioScsi {
        command.args(["-device", "virtio-scsi-pci,id=scsi"]);
    }
    for (index, overlay) in overlays.iter().enumerate() {
        let drive = format!("if=none,id=disk{index},format=qcow2,cache=unsafe,discard=unmap");
        command.args(["-drive", &format!("{drive},file={}", escaped(overlay)?)]);
        let boot = format!("drive=disk{index},bootindex={}", index.saturating_add(1));
        command.arg("-device").arg(match machine.bus {
            Bus::VirtioBlk => format!("virtio-blk-pci,{boot}"),
            Bus::VirtioScsi => format!("scsi-hd,bus=scsi.0,{boot}"),
            Bus::Sata if index < SATA_PORTS => format!("ide-hd,bus=ide.{index},{boot}"),
            Bus::Sata => return Err(emulator("more than six SATA disks are not proven")),
        });
    }
    let model = if machine.bus == Bus::Sata {
        "e1000e"
    } else {
        "virtio-net-pci"
    };
    for mac in &machine.macs {
        command.args(["-device", &format!("{model},mac={mac}")]);
    }
    Ok(command)
}

fn add_firmware(command: &mut Command, variables: &Path) -> Result<()> {
    let found = FIRMWARE.iter().find(|(code, _)| Path::new(code).exists());
    let (code, template) = found.ok_or_else(|| {
        emulator("the boot check of a UEFI guest needs OVMF, which is not installed")
            .with_remedy("install it (Debian: ovmf, Fedora and RHEL: edk2-ovmf)")
    })?;
    std::fs::copy(template, variables).map_err(|error| Error::io("write", variables, error))?;
    command.args([
        "-drive",
        &format!("if=pflash,format=raw,readonly=on,file={code}"),
    ]);
    let variables = escaped(variables)?;
    command.args(["-drive", &format!("if=pflash,format=raw,file={variables}")]);
    Ok(())
}

fn plain(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::invalid(format!("{path:?} is not UTF-8")).with_remedy("choose another directory")
    })
}

/// A path within a list of options: commas are doubled.
fn escaped(path: &Path) -> Result<String> {
    Ok(plain(path)?.replace(',', ",,"))
}
