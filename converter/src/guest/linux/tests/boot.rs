//! Settings, consoles, and the path that UEFI falls back to.
use crate::guest::linux::agents::{known, started_by, wanted_by};
use crate::guest::linux::bootloader::fallback::missing;
use crate::guest::linux::bootloader::{console, defaults};
use crate::guest::linux::storage::devices::Devices;

#[test]
fn the_console_goes_where_the_guest_keeps_its_command_line() {
    let devices = Devices::new(&[], &[]);
    let both = "console=ttyS0,115200n8 console=tty0";
    for (before, after) in [
        (
            "GRUB_CMDLINE_LINUX=\"\"\n",
            format!("GRUB_CMDLINE_LINUX=\"{both}\"\n"),
        ),
        (
            "GRUB_CMDLINE_LINUX=''\n",
            format!("GRUB_CMDLINE_LINUX='{both}'\n"),
        ),
        (
            "GRUB_CMDLINE_LINUX=quiet # x\n",
            format!("GRUB_CMDLINE_LINUX=\"quiet {both}\" # x\n"),
        ),
        (
            "GRUB_CMDLINE_LINUX=\"a\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"b console=tty1\"\n",
            "GRUB_CMDLINE_LINUX=\"a\"\n\
             GRUB_CMDLINE_LINUX_DEFAULT=\"b console=ttyS0,115200n8 console=tty1\"\n"
                .to_owned(),
        ),
        (
            "GRUB_TIMEOUT=5",
            format!("GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"{both}\"\n"),
        ),
        (
            "default_kernel_opts=quiet\n",
            format!("default_kernel_opts=\"quiet {both}\"\n"),
        ),
        (
            "# nothing of a loader\n",
            "# nothing of a loader\n".to_owned(),
        ),
    ] {
        let edit = defaults::stabilise(before.as_bytes(), &devices, true);
        assert_eq!(String::from_utf8_lossy(&edit.text), after);
        assert_eq!(defaults::has_serial_console(&edit.text), before != after);
    }
}

#[test]
fn logins_on_the_serial_line() {
    for (before, added) in [
        (
            "1:2345:respawn:/sbin/getty 38400 tty1\n",
            Some("S0:12345:respawn:/sbin/getty -L"),
        ),
        (
            "1:2345:respawn:/sbin/mingetty tty1\n",
            Some("S0:12345:respawn:/sbin/agetty -L"),
        ),
        (
            "tty1::respawn:/sbin/getty 38400 tty1\n",
            Some("ttyS0::respawn:/sbin/getty -L"),
        ),
        (
            "1:2345:respawn:/sbin/getty 38400 tty1\n\
             #T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n",
            Some("\nT0:23:respawn:/sbin/getty -L ttyS0 115200 vt100\n"),
        ),
        ("s:2:respawn:/sbin/getty ttyS0\n", None),
        ("id:5:initdefault:\n", None),
    ] {
        let edit = console::add_login(before.as_bytes());
        let text = String::from_utf8_lossy(&edit.text).into_owned();
        match added {
            Some(added) => assert!(text.contains(added), "{text}"),
            None => assert_eq!(text, before),
        }
    }
}

#[test]
fn an_empty_nvram_finds_a_loader() {
    for (files, arch, copies) in [
        (
            &["EFI/debian/shimx64.efi", "EFI/debian/grubx64.efi"][..],
            "x86_64",
            &["EFI/BOOT/grubx64.efi", "EFI/BOOT/BOOTX64.EFI"][..],
        ),
        (
            &["EFI/arch/grubx64.efi"],
            "x86_64",
            &["EFI/BOOT/BOOTX64.EFI"],
        ),
        (
            &["EFI/systemd/systemd-bootaa64.efi"],
            "aarch64",
            &["EFI/BOOT/BOOTAA64.EFI"],
        ),
        (
            &["efi/boot/bootx64.efi", "EFI/sles/shimx64.efi"],
            "x86_64",
            &[],
        ),
        (
            &["EFI/Microsoft/grubx64.efi", "EFI/a/b/grubx64.efi"],
            "x86_64",
            &[],
        ),
        (&["EFI/debian/grubx64.efi"], "s390x", &[]),
    ] {
        assert_eq!(copied(files, arch), copies, "{files:?}");
    }
}

#[test]
fn a_shim_gets_the_grub_that_it_starts() {
    for (files, arch, copies) in [
        (
            &[
                "EFI/opensuse/MokManager.efi",
                "EFI/opensuse/grub.cfg",
                "EFI/opensuse/grub.efi",
                "EFI/opensuse/grubx64.efi",
                "EFI/opensuse/shim.efi",
            ][..],
            "x86_64",
            &[
                "EFI/BOOT/grub.efi",
                "EFI/BOOT/MokManager.efi",
                "EFI/BOOT/grub.cfg",
                "EFI/BOOT/BOOTX64.EFI",
            ][..],
        ),
        (
            &["EFI/sles/shim.efi", "EFI/sles/grub.efi"],
            "aarch64",
            &["EFI/BOOT/grub.efi", "EFI/BOOT/BOOTAA64.EFI"],
        ),
        // RHEL 7's first.
        (
            &[
                "EFI/redhat/MokManager.efi",
                "EFI/redhat/grubx64.efi",
                "EFI/redhat/shim.efi",
            ],
            "x86_64",
            &[
                "EFI/BOOT/grubx64.efi",
                "EFI/BOOT/MokManager.efi",
                "EFI/BOOT/BOOTX64.EFI",
            ],
        ),
        // Both names of one shim, which starts the GRUB of its architecture.
        (
            &[
                "EFI/centos/grub.cfg",
                "EFI/centos/grubx64.efi",
                "EFI/centos/mmx64.efi",
                "EFI/centos/shim.efi",
                "EFI/centos/shimx64.efi",
            ],
            "x86_64",
            &[
                "EFI/BOOT/grubx64.efi",
                "EFI/BOOT/mmx64.efi",
                "EFI/BOOT/BOOTX64.EFI",
            ],
        ),
    ] {
        assert_eq!(copied(files, arch), copies, "{files:?}");
    }
}

fn copied(files: &[&str], arch: &str) -> Vec<String> {
    let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
    let copies = missing(&files, arch).into_iter();
    copies.map(|copy| copy.to).collect()
}

#[test]
fn agents_are_known_by_their_services() {
    for (service, name) in [
        ("open-vm-tools.service", Some("VMware Tools")),
        ("run-vmblock\\x2dfuse.mount", Some("VMware Tools")),
        ("vboxadd-service", Some("VirtualBox Guest Additions")),
        ("hypervkvpd.service", Some("Hyper-V daemons")),
        ("walinuxagent.service", Some("Azure agent")),
        ("xe-daemon.service", Some("Xen guest agent")),
        ("qemu-guest-agent.service", None),
        ("sshd.service", None),
        ("cloud-init.service", None),
    ] {
        assert_eq!(known(service).map(|agent| agent.name), name, "{service}");
    }
    for (link, service) in [
        ("S20vmware-tools", Some("vmware-tools")),
        ("K80vmware-tools", None),
        ("S2x", None),
        ("S", None),
    ] {
        assert_eq!(started_by(link), service, "{link}");
    }
    let unit =
        b"[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=a.target ../b.target b.target a.target\n";
    assert_eq!(wanted_by(unit), ["a.target.wants", "b.target.wants"]);
}
