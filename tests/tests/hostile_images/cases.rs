//! The cases: what is made, the kind of its error, and words of the cause.
use std::fs;
use std::path::Path;

use converter::error::ErrorKind;
use hyper2kvm_tests::images::{self, qemu_img, text};
use hyper2kvm_tests::{vhd, vhdx, vmfs};

use super::forge::*;

/// Makes the files of a case in a directory; the owner's name is returned.
pub type Make = fn(&Path) -> &'static str;

pub struct Case {
    pub name: &'static str,
    pub kind: ErrorKind,
    /// Words of the cause.
    pub says: &'static str,
    pub make: Make,
}

macro_rules! cases {
    ($($name:ident: $kind:ident, $says:literal, $make:expr;)*) => {
        pub const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            kind: ErrorKind::$kind,
            says: $says,
            make: $make,
        }),*];

        mod parser {
            $(#[test]
            fn $name() {
                let case = super::CASES.iter().find(|case| case.name == stringify!($name));
                crate::refuses(case.unwrap());
            })*
        }
    };
}

cases! {
    grain_directory_in_itself: Corrupt, "lies in the header or the grain directory", |dir| {
        sparse(dir, "monolithicSparse", |bytes| {
            let directory = le(bytes, 56, 8);
            put32(bytes, directory * 512, directory);
        })
    };
    overlapping_grains: Corrupt, "on top of each other", |dir| {
        sparse(dir, "monolithicSparse", |bytes| {
            let table = table(bytes);
            let first = le(bytes, table, 4);
            (0..49).for_each(|grain| put32(bytes, table + grain * 4, first));
        })
    };
    overlapping_grain_tables: Corrupt, "on top of each other", |dir| {
        // 62 TiB of a file of 8 MiB: each entry of the directory leads to the same empty table.
        sparse(dir, "monolithicSparse", |bytes| {
            let sectors: u64 = 62 << 31;
            let entries = sectors.div_ceil(128 * 512) as usize;
            let table = table(bytes);
            bytes[table..table + 2048].fill(0);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            let directory = (bytes.len() / 512) as u64;
            bytes.extend((table as u32 / 512).to_le_bytes().repeat(entries));
            bytes[12..20].copy_from_slice(&sectors.to_le_bytes());
            bytes[56..64].copy_from_slice(&directory.to_le_bytes());
        })
    };
    deflate_bomb: Corrupt, "inflates beyond its size", |dir| {
        sparse(dir, "streamOptimized", |bytes| grain(bytes, &vec![0; 64 << 20], None))
    };
    grain_longer_than_its_size: Corrupt, "compressed bytes", |dir| {
        sparse(dir, "streamOptimized", |bytes| grain(bytes, &[7; GRAIN], Some(3 * GRAIN)))
    };
    grain_with_a_wrong_sum: Corrupt, "does not inflate", |dir| {
        sparse(dir, "streamOptimized", |bytes| {
            let at = le(bytes, table(bytes), 4) * 512;
            let end = at + 12 + le(bytes, at + 8, 4);
            bytes[end - 1] ^= 1;
        })
    };
    capacity_of_2_63: Corrupt, "more than 64 TiB", |dir| {
        let capacity = (1u64 << 63).to_le_bytes();
        sparse(dir, "monolithicSparse", |bytes| bytes[12..20].copy_from_slice(&capacity))
    };
    extent_names_shadow: Invalid, "/etc/shadow", |dir| {
        descriptor(dir, "RW 8 FLAT \"/etc/shadow\" 0")
    };
    extent_above: Invalid, "../x", |dir| descriptor(dir, "RW 8 FLAT \"../x\" 0");
    extent_is_a_device: Invalid, "/dev/sda", |dir| descriptor(dir, "RW 8 FLAT \"/dev/sda\" 0");
    extent_with_a_nul: Corrupt, "cannot be read", |dir| descriptor(dir, "RW 8 FLAT \"a\0b\" 0");
    descriptor_of_1_gib: Corrupt, "larger than 1", |dir| {
        images::raw_disk(&dir.join("vm.vmdk"), 1 << 30, &[(0, b"# Disk DescriptorFile\n")]);
        "vm.vmdk"
    };
    vmdk_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        delta(dir, "b.vmdk", "vm.vmdk");
        delta(dir, "vm.vmdk", "b.vmdk")
    };
    vhd_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        made(dir, "vpc", "subformat=dynamic,force_size=on", "vm.vhd", |bytes| {
            *bytes = vhd::differencing(bytes, 9, "vm.vhd");
            bytes[552..568].fill(9);
            vhd::sum(&mut bytes[512..1536], 36);
        });
        "vm.vhd"
    };
    vhdx_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        made(dir, "vhdx", SMALL, "vm.vhdx", |bytes| {
            let own = vhdx::identify(bytes, 5);
            *bytes = vhdx::differencing(bytes, &own, "vm.vhdx");
        })
    };
    qcow2_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        made(dir, "qcow2", "cluster_size=64k", "vm.qcow2", |_| ());
        made(dir, "qcow2", "cluster_size=64k", "b.qcow2", |_| ());
        rebase(dir, "b.qcow2", "vm.qcow2");
        rebase(dir, "vm.qcow2", "b.qcow2")
    };
    vhdx_log_past_the_end: Corrupt, "log", |dir| {
        made(dir, "vhdx", SMALL, "vm.vhdx", |bytes| {
            headers(bytes, |header| {
                header[48..64].fill(5);
                header[72..80].copy_from_slice(&(1u64 << 40).to_le_bytes());
            });
        })
    };
    vhdx_log_that_writes_outside: Corrupt, "log", |dir| {
        logged(dir, |bytes| {
            let length = le(bytes, LOG + 8, 4);
            let outside = (1u64 << 62).to_le_bytes();
            vhdx::resum(bytes, LOG..LOG + length, |entry| entry[80..88].copy_from_slice(&outside));
        })
    };
    vhd_bat_past_the_end: Corrupt, "reaches past the end", |dir| {
        made(dir, "vpc", "subformat=dynamic,force_size=on", "vm.vhd", |bytes| {
            let table = vhd::be(bytes, 512 + 16, 8);
            bytes[table..table + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0xfe]);
        })
    };
    vhdx_bat_past_the_end: Corrupt, "reaches past the end", |dir| {
        made(dir, "vhdx", SMALL, "vm.vhdx", |bytes| {
            let places = [32, 64].map(|at| le(bytes, (192 << 10) + at, 8));
            let is_bat = |at: &usize| !bytes[*at..].starts_with(b"metadata");
            let bat = places.into_iter().find(is_bat).unwrap();
            bytes[bat..bat + 8].copy_from_slice(&((1u64 << 50) | 6).to_le_bytes());
        })
    };
    cowd_table_past_the_end: Corrupt, "truncated", |dir| {
        let mut bytes = vmfs::cowd(&fs::read(raw(dir)).unwrap(), 8);
        put32(&mut bytes, 2048, 1 << 30);
        extent(dir, "VMFSSPARSE", &bytes)
    };
    se_sparse_entry_of_no_kind: Corrupt, "0xf000000000000000", |dir| {
        let mut bytes = vmfs::se_sparse(&fs::read(raw(dir)).unwrap(), false);
        let tables = le(&bytes, 18 * 8, 8) * 512;
        bytes[tables..tables + 8].copy_from_slice(&(0xf_u64 << 60).to_le_bytes());
        extent(dir, "SESPARSE", &bytes)
    };
    ova_member_of_2_63: Corrupt, "claims 9223372036854775808 bytes", |dir| {
        ova(dir, |bytes| {
            // Base 256: the highest bit marks it.
            let field = header_of(bytes, b"a.img") + 124;
            bytes[field..field + 12].copy_from_slice(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]);
            resum_tar(bytes, field - 124);
        })
    };
    ova_with_a_duplicate_member: Invalid, "appears twice", |dir| {
        ova(dir, |bytes| {
            let at = header_of(bytes, b"a.img");
            let member = bytes[at..at + 512 + 4096].to_vec();
            bytes.splice(at..at, member);
        })
    };
    ova_without_its_disk: Invalid, "not a member", |dir| {
        ova(dir, |bytes| {
            let at = header_of(bytes, b"a.img");
            bytes[at..at + 5].copy_from_slice(b"b.img");
            resum_tar(bytes, at);
        })
    };
    ova_with_a_link: Invalid, "link or a device", |dir| {
        ova(dir, |bytes| {
            let at = header_of(bytes, b"a.img");
            bytes[at + 156] = b'2';
            resum_tar(bytes, at);
        })
    };
    ovf_with_an_external_entity: Invalid, "document type", |dir| {
        ovf(dir, "<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><Envelope ")
    };
    ovf_with_billions_of_laughs: Invalid, "document type", |dir| {
        ovf(dir, "<!DOCTYPE x [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">\
             <!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\"><!ENTITY d \"&c;&c;&c;&c;&c;&c;&c;&c;\">]>\
             <Envelope ")
    };
    qcow2_backing_outside: Invalid, "/etc/passwd", |dir| {
        made(dir, "qcow2", "cluster_size=64k", "vm.qcow2", |_| ());
        qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw",
            text(&dir.join("vm.qcow2"))]);
        "vm.qcow2"
    };
    qcow2_data_file_outside: Invalid, "/etc/passwd", |dir| {
        let path = dir.join("vm.qcow2");
        let data = format!("data_file={}", text(&dir.join("data")));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, text(&path), "1M"]);
        qemu_img(&["amend", "-f", "qcow2", "-o", "data_file=/etc/passwd", text(&path)]);
        fs::remove_file(dir.join("data")).unwrap();
        "vm.qcow2"
    };
    qcow2_encrypted: Unsupported, "encrypted", |dir| {
        let path = dir.join("vm.qcow2");
        let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
        qemu_img(&["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", options,
            text(&path), "1M"]);
        "vm.qcow2"
    };
    qcow2_marked_corrupt: Corrupt, "marked as corrupt", |dir| {
        made(dir, "qcow2", "cluster_size=64k", "vm.qcow2", |bytes| bytes[79] |= 2)
    };
    qcow2_overlapping_clusters: Corrupt, "can hold", |dir| {
        made(dir, "qcow2", "cluster_size=4k", "vm.qcow2", |bytes| {
            let l1 = vhd::be(bytes, 40, 8);
            let l2 = vhd::be(bytes, l1, 8) & 0xff_ffff_fe00;
            let first: [u8; 8] = bytes[l2..l2 + 8].try_into().unwrap();
            bytes[l2..l2 + 4096].copy_from_slice(&first.repeat(512));
            let length = bytes.len() - (1 << 20);
            bytes.truncate(length);
        })
    };
}
