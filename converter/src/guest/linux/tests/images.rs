//! Which drivers an initramfs holds, and by what command it gets them.
use crate::guest::linux::initramfs::listing::{Supply, WANTED, modules};
use crate::guest::linux::initramfs::tool::{Tool, commands, detect, is_plain};
use crate::guest::model::{Family, Kernel};

#[test]
fn modules_are_found_in_every_listing() {
    for (line, module) in [
        // lsinitramfs, lsinitcpio
        (
            "usr/lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko",
            "virtio_blk",
        ),
        (
            "usr/lib/modules/6.12.8-arch1-1/kernel/drivers/net/virtio_net.ko.zst",
            "virtio_net",
        ),
        // lsinitrd
        (
            "-rw-r--r--   1 root     root        12345 Jan  1  1970 \
             usr/lib/modules/5.14.0/kernel/drivers/scsi/virtio_scsi.ko.xz",
            "virtio_scsi",
        ),
        ("lib/modules/2.6.18/virtio-pci.ko.gz", "virtio_pci"),
        // modules.dep, modules.builtin
        (
            "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko",
            "virtio_blk",
        ),
        ("kernel/drivers/virtio/virtio_pci.ko:", "virtio_pci"),
        ("kernel/drivers/virtio/virtio_pci.ko", "virtio_pci"),
    ] {
        let found = modules(line.as_bytes());
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [module], "{line}");
    }
    for line in [
        "",
        "virtio_blk",
        "etc/virtio_blk.ko.conf",
        "a -> virtio_blk.ko",
        "\u{0}.ko\u{0}",
    ] {
        assert!(modules(line.as_bytes()).is_empty(), "{line}");
    }
}

#[test]
fn what_is_built_in_is_not_missed() {
    let builtin = b"kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\n";
    let loadable = b"kernel/drivers/net/virtio_net.ko:\n";
    let supply = Supply::new(Some(builtin), Some(loadable));
    assert_eq!(supply.loadable(), ["virtio_net"]);
    assert!(supply.has_virtio_disk());
    assert!(supply.missing(["virtio_net"]).is_empty());
    assert_eq!(supply.missing(["virtio_blk"]), ["virtio_net"]);
    // Nothing known: all of them are asked for.
    let supply = Supply::new(None, None);
    assert_eq!(supply.loadable(), WANTED);
    assert!(supply.has_virtio_disk());
    let supply = Supply::new(None, Some(b"kernel/drivers/ata/ahci.ko:\n"));
    assert!(!supply.has_virtio_disk());
}

#[test]
fn the_guests_own_tool_makes_it() {
    for (programs, family, tool) in [
        (
            &["/usr/sbin/mkinitramfs", "/usr/bin/dracut"][..],
            Family::Debian,
            Tool::InitramfsTools,
        ),
        (
            &["/usr/bin/dracut", "/sbin/mkinitrd"],
            Family::Redhat,
            Tool::Dracut,
        ),
        (&["/sbin/mkinitrd"], Family::Redhat, Tool::MkinitrdRedhat),
        (&["/sbin/mkinitrd"], Family::Suse, Tool::MkinitrdSuse),
        (
            &["/usr/bin/mkinitcpio", "/usr/bin/dracut"],
            Family::Arch,
            Tool::Mkinitcpio,
        ),
        (&["/sbin/mkinitfs"], Family::Alpine, Tool::Mkinitfs),
    ] {
        let found = detect::<()>(family, |path| Ok(programs.contains(&path)));
        assert_eq!(found, Ok(Some(tool)), "{programs:?}");
    }
    assert_eq!(detect::<()>(Family::Other, |_| Ok(false)), Ok(None));
    assert_eq!(detect(Family::Other, |_| Err("broken")), Err("broken"));
}

#[test]
fn an_initramfs_beside_its_entry_is_made_where_it_is() {
    for (image, build) in [
        (
            "/boot/initrd.img-6.1.0-28-amd64",
            "update-initramfs -u -k 6.1.0-28-amd64",
        ),
        (
            "/efi/debian/6.1.0-28-amd64/initrd.img-6.1.0-28-amd64",
            "mkinitramfs -o /efi/debian/6.1.0-28-amd64/initrd.img-6.1.0-28-amd64 6.1.0-28-amd64",
        ),
    ] {
        let kernel = Kernel {
            version: "6.1.0-28-amd64".to_owned(),
            image: "/boot/vmlinuz-6.1.0-28-amd64".to_owned(),
            initramfs: Some(image.to_owned()),
            modules: "/lib/modules/6.1.0-28-amd64".to_owned(),
            drivers: Vec::new(),
        };
        let commands = commands(Tool::InitramfsTools, &kernel, &WANTED).unwrap();
        assert_eq!(commands.build.join(" "), build);
    }
}

#[test]
fn no_name_of_a_hostile_guest_reaches_a_command() {
    let kernel = Kernel {
        version: "6.1.0-28-amd64".to_owned(),
        image: "/boot/vmlinuz-6.1.0-28-amd64".to_owned(),
        initramfs: Some("/boot/initrd.img-6.1.0-28-amd64".to_owned()),
        modules: "/lib/modules/6.1.0-28-amd64".to_owned(),
        drivers: Vec::new(),
    };
    let tools = [
        Tool::InitramfsTools,
        Tool::Dracut,
        Tool::Mkinitcpio,
        Tool::Mkinitfs,
        Tool::MkinitrdSuse,
        Tool::MkinitrdRedhat,
    ];
    for tool in tools {
        assert!(commands(tool, &kernel, &WANTED).is_some(), "{tool:?}");
        for name in [
            "",
            "-x",
            "a b",
            "$(reboot)",
            "a;b",
            "../../etc/passwd",
            "a\nb",
            "a'b",
        ] {
            assert!(!is_plain(name), "{name}");
            let version = Kernel {
                version: name.to_owned(),
                ..kernel.clone()
            };
            let image = Kernel {
                initramfs: Some(name.to_owned()),
                ..kernel.clone()
            };
            let vmlinuz = Kernel {
                image: name.to_owned(),
                ..kernel.clone()
            };
            for hostile in [version, image, vmlinuz] {
                assert_eq!(commands(tool, &hostile, &WANTED), None, "{tool:?} {name}");
            }
        }
        let without = Kernel {
            initramfs: None,
            ..kernel.clone()
        };
        assert_eq!(commands(tool, &without, &WANTED), None);
    }
}
