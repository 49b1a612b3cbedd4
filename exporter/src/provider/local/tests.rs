//! What is found in directories, and what is refused there.
use std::path::{Path, PathBuf};

use super::*;
use crate::error::ErrorKind;
use crate::machine::{Power, Summary};
use crate::transfer::{Algorithm, Steady};

const BASE: &str = "# Disk DescriptorFile\nCID=1\nRW 8 VMFS \"vm-flat.vmdk\"\n";
const MIDDLE: &str = "# Disk DescriptorFile\nCID=2\nparentCID=1\nparentFileNameHint=\"vm.vmdk\"\n\
                      RW 8 VMFSSPARSE \"vm-000001-delta.vmdk\"\n";
const LEAF: &str = "# Disk DescriptorFile\nCID=3\nparentCID=2\n\
                    parentFileNameHint=\"/vmfs/volumes/x/y/vm-000001.vmdk\"\n\
                    RW 8 SESPARSE \"vm-000002-sesparse.vmdk\"\n";

struct Bench(tempfile::TempDir);

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            bench.write(name, content);
        }
        bench
    }

    /// `ds/vm/`: a VM with two snapshots.
    fn with_snapshots(vmx: &str) -> Self {
        let bench = Self::new(&[
            ("ds/vm/vm.vmdk", BASE),
            ("ds/vm/vm-flat.vmdk", "12345678"),
            ("ds/vm/vm-000001.vmdk", MIDDLE),
            ("ds/vm/vm-000001-delta.vmdk", "COWD"),
            ("ds/vm/vm-000002.vmdk", LEAF),
            ("ds/vm/vm-000002-sesparse.vmdk", "se"),
            ("ds/vm/vm-000002-ctk.vmdk", "ctk"),
            ("ds/vm/vm.nvram", "n"),
        ]);
        bench.write("ds/vm/vm.vmx", vmx);
        bench
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn local(&self, datastores: &[(&str, &str)]) -> Local {
        let mounted = datastores.iter();
        Local::new(Reach {
            datastores: mounted
                .map(|(name, path)| ((*name).to_owned(), self.path(path)))
                .collect(),
            ..Reach::default()
        })
    }

    fn describe(&self, name: &str) -> Result<Vm> {
        self.local(&[]).describe(self.path(name).to_str().unwrap())
    }

    #[track_caller]
    fn refuses(&self, name: &str, about: &str) -> Error {
        let error = self.describe(name).unwrap_err();
        assert!(error.to_line().contains(about), "{}", error.to_line());
        error
    }
}

fn vmx(disk: &str) -> String {
    format!("displayName = \"The VM\"\nmemsize = \"512\"\nscsi0:0.fileName = \"{disk}\"\n")
}

fn files(vm: &Vm) -> Vec<(&str, &str, u64)> {
    let disks = vm.disks.iter();
    disks
        .map(|disk| (disk.file.as_str(), disk.format.as_str(), disk.size_bytes))
        .collect()
}

struct NoLedger;

impl Ledger for NoLedger {
    fn owe(&self, _: &Debt) -> Result<()> {
        Ok(())
    }
    fn settle(&self, _: &Debt) -> Result<()> {
        Ok(())
    }
}

fn export(local: &Local, vm: &Vm, into: &Path) -> Result<Exported> {
    let order = Order {
        checksum: Algorithm::Blake3,
        stream: None,
    };
    std::fs::create_dir(into).unwrap();
    local.export(vm, into, order, &NoLedger, &Steady)
}

fn names(directory: &Path) -> Vec<String> {
    let paths = entries(directory).unwrap().into_iter();
    let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.map(name).collect()
}

#[test]
fn finds_bare_disks_in_order_with_their_extents() {
    let descriptor =
        "# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"vm-flat.vmdk\" 0\nRW 8 FLAT \"x.raw\" 0\n";
    let bench = Bench::new(&[
        ("vm/vm.vmdk", descriptor),
        ("vm/vm-flat.vmdk", "12345678"),
        ("vm/vm-ctk.vmdk", "t"),
        ("vm/x.raw", "1234"),
        ("vm/vm_10.vmdk", "KDMV"),
        ("vm/vm_3.raw.gz", "x"),
        ("vm/notes.txt", "x"),
        ("vm/.hidden.vmdk", "x"),
        ("vm/late.vmdk.part", "x"),
    ]);
    std::fs::write(bench.path("vm/vm_2.img"), b"QFI\xfb").unwrap();
    let vm = bench.describe("vm").unwrap();
    let expected = [
        ("vm.vmdk", "vmdk", descriptor.len() as u64 + 12),
        ("vm_2.img", "qcow2", 4),
        ("vm_3.raw.gz", "raw", 1),
        ("vm_10.vmdk", "vmdk", 4),
    ];
    assert_eq!(files(&vm), expected);
    assert_eq!(vm.name, "vm");
    let one = bench.describe("vm/vm.vmdk").unwrap();
    assert_eq!((files(&one), one.name.as_str()), (vec![expected[0]], "vm"));
}

#[test]
fn a_snapshot_takes_along_what_it_stands_on() {
    let bench = Bench::with_snapshots(&vmx("vm-000002.vmdk"));
    let vm = bench.describe("ds/vm").unwrap();
    assert_eq!((vm.name.as_str(), vm.power), ("The VM", Power::Off));
    assert_eq!(vm.machine.memory_bytes, Some(512 << 20));
    assert_eq!(vm.disks[0].bus.as_deref(), Some("scsi"));
    let into = bench.path("into");
    let exported = export(&bench.local(&[]), &vm, &into).unwrap();
    let chain = [
        "vm-000001-delta.vmdk",
        "vm-000001.vmdk",
        "vm-000002-sesparse.vmdk",
        "vm-000002.vmdk",
        "vm-flat.vmdk",
        "vm.vmdk",
    ];
    assert_eq!(names(&into), chain);
    let [disk] = &exported.disks[..] else {
        panic!("{exported:?}");
    };
    assert_eq!(disk.file, "vm-000002.vmdk");
    assert_eq!(disk.pieces.len(), 5);
    for piece in &disk.pieces {
        let content = std::fs::read(into.join(&piece.local_path)).unwrap();
        let sum = format!("blake3:{}", blake3::hash(&content).to_hex());
        assert_eq!(piece.checksum.as_deref(), Some(sum.as_str()));
        assert_eq!(piece.bytes, content.len() as u64);
    }
    // Without the .vmx the disk that no other stands on is the VM's.
    std::fs::remove_file(bench.path("ds/vm/vm.vmx")).unwrap();
    let bare = bench.describe("ds/vm").unwrap();
    assert_eq!(files(&bare), files(&vm));
    bench.write("ds/vm/vm-000003.vmdk", MIDDLE);
    bench.refuses("ds/vm", "both stand on");
}

#[test]
fn a_datastore_lists_its_vms_and_a_file_stands_for_one() {
    let bench = Bench::with_snapshots(&vmx("vm-000002.vmdk"));
    bench.write("ds/broken/broken.vmx", "what is this\n");
    bench.write("ds/on/on.vmx", "displayName = \"On\"\nnumvcpus = \"2\"\n");
    bench.write("ds/on/.lck-1a2b000000000000", "");
    bench.write("ds/iso/x.iso", "");
    let ds = bench.path("ds");
    let found = bench.local(&[]).discover(ds.to_str().unwrap()).unwrap();
    let told = |vm: &Summary| {
        let location = vm.location.clone().unwrap();
        (vm.name.clone(), location, vm.power)
    };
    let expected = [
        ("broken", "broken/broken.vmx", Power::Off),
        ("On", "on/on.vmx", Power::On),
        ("The VM", "vm/vm.vmx", Power::Off),
    ];
    let expected = expected.map(|(name, at, power)| (name.to_owned(), at.to_owned(), power));
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(
        (found[1].cpus, found[2].memory_bytes),
        (Some(2), Some(512 << 20))
    );
    let by_id = bench.local(&[]).describe(&found[2].id).unwrap();
    assert_eq!(by_id.name, "The VM");
    bench.refuses("ds/broken", "broken.vmx: line 1");
    bench.refuses("ds", "holds 0 disks");
    bench.write("ds/vm/other.vmx", "");
    bench.refuses("ds/vm", "holds 2 VMs");
    assert!(bench.describe("ds/vm/vm.vmx").is_ok());
}

#[test]
fn a_section_reaches_its_roots_and_names() {
    let bench = Bench::with_snapshots(&vmx("vm-000002.vmdk"));
    bench.write("ds/single.raw", "x");
    bench.write("else/vm.raw", "x");
    let section = queue::instance::exports::Server {
        roots: vec![bench.path("ds")],
        ..Default::default()
    };
    let local = Local::new(Reach::of(&section, Default::default()).unwrap());
    for vm in [
        "vm",
        "vm/vm.vmx",
        "The VM",
        "vm/vm-000001.vmdk",
        "single.raw",
    ] {
        assert!(local.describe(vm).is_ok(), "{vm}");
    }
    assert_eq!(local.discover("").unwrap().len(), 2);
    let outside = bench.path("else/vm.raw");
    for vm in [
        "..",
        ".",
        "../else/vm.raw",
        outside.to_str().unwrap(),
        "http://h/x.ova",
    ] {
        assert!(local.describe(vm).is_err(), "{vm}");
        assert!(local.discover(vm).is_err(), "{vm}");
    }
    bench.write("ds/vm2/vm2.vmx", "displayName = \"The VM\"\n");
    let error = local.describe("The VM").unwrap_err();
    assert!(
        error.to_line().contains("2 VMs are called"),
        "{}",
        error.to_line()
    );
}

#[test]
fn a_vm_that_runs_is_refused() {
    for lock in [
        "ds/vm/vm.vmx.lck/M1.lck",
        "ds/vm/.lck-0a",
        "ds/vm/vm-000002.vmdk.lck/M.lck",
    ] {
        let bench = Bench::with_snapshots(&vmx("vm-000002.vmdk"));
        bench.write(lock, "");
        let error = bench.refuses("ds/vm", "is running, or open in VMware: its lock");
        assert!(error.remedy.unwrap().contains("shut the VM down"));
    }
    // Of somebody else.
    let bench = Bench::with_snapshots(&vmx("vm-000002.vmdk"));
    bench.write("ds/vm/other.vmdk.lck/M1.lck", "");
    let vm = bench.describe("ds/vm").unwrap();
    bench.write("ds/vm/vm.vmx.lck", "");
    let error = export(&bench.local(&[]), &vm, &bench.path("into")).unwrap_err();
    assert!(
        error.to_line().contains("is running"),
        "{}",
        error.to_line()
    );
}

#[test]
fn names_never_leave_the_vm_and_its_datastores() {
    let bench = Bench::with_snapshots("");
    bench.write("ds/other/vm.vmdk", BASE);
    bench.write("ds/other/vm-flat.vmdk", "87654321");
    bench.write("secret.vmdk", BASE);
    std::os::unix::fs::symlink(bench.path("secret.vmdk"), bench.path("ds/vm/link.vmdk")).unwrap();
    let absolute = bench.path("secret.vmdk");
    for (file, about) in [
        ("../../secret.vmdk", "leaves the VM's directory"),
        (absolute.to_str().unwrap(), "leaves the VM's directory"),
        ("../other/vm.vmdk", "leaves the VM's directory"),
        ("..\\\\..\\\\secret.vmdk", "leaves the VM's directory"),
        ("C:\\\\vms\\\\x.vmdk", "is not there"),
        ("/vmfs/volumes/5f3c/other/vm.vmdk", "--datastore 5f3c=DIR"),
        ("/vmfs/volumes/x.vmdk", "--datastore x.vmdk=DIR"),
        ("link.vmdk", "is a link"),
        ("gone.vmdk", "gone.vmdk is not there"),
        ("a|00b.vmdk", "no file's name"),
    ] {
        bench.write("ds/vm/vm.vmx", &vmx(file));
        bench.refuses("ds/vm", about);
    }
    // Where the datastore is known, its files are.
    let store = bench.local(&[("5f3c", "ds")]);
    let path = bench.path("ds/vm");
    for file in ["../other/vm.vmdk", "/vmfs/volumes/5f3c/other/vm.vmdk"] {
        bench.write("ds/vm/vm.vmx", &vmx(file));
        assert!(store.describe(path.to_str().unwrap()).is_ok(), "{file}");
    }
    for file in ["/vmfs/volumes/5f3c/../secret.vmdk", "../../secret.vmdk"] {
        bench.write("ds/vm/vm.vmx", &vmx(file));
        let error = store.describe(path.to_str().unwrap()).unwrap_err();
        assert!(
            error.to_line().contains("leaves the VM's"),
            "{}",
            error.to_line()
        );
    }
}

#[test]
fn disks_of_one_name_get_a_directory_each() {
    let bench = Bench::with_snapshots(
        "scsi0:0.fileName = \"vm.vmdk\"\nscsi0:1.fileName = \"/vmfs/volumes/b/vm/vm.vmdk\"\n",
    );
    bench.write("b/vm/vm.vmdk", BASE);
    bench.write("b/vm/vm-flat.vmdk", "87654321");
    let local = bench.local(&[("b", "b")]);
    let vm = local
        .describe(bench.path("ds/vm").to_str().unwrap())
        .unwrap();
    assert_eq!(vm.disks[1].file, "disk-1/vm.vmdk");
    let into = bench.path("into");
    let exported = export(&local, &vm, &into).unwrap();
    assert_eq!(
        exported.disks[1].pieces[0].local_path,
        "disk-1/vm-flat.vmdk"
    );
    assert_eq!(
        std::fs::read(into.join("vm-flat.vmdk")).unwrap(),
        b"12345678"
    );
    assert_eq!(
        std::fs::read(into.join("disk-1/vm-flat.vmdk")).unwrap(),
        b"87654321"
    );
    bench.write(
        "ds/vm/vm.vmx",
        "scsi0:0.fileName = \"vm.vmdk\"\nscsi0:1.fileName = \"./vm.vmdk\"\n",
    );
    bench.refuses("ds/vm", "another slot");
}

#[test]
fn refuses_what_would_lose_something() {
    let hint = "# Disk DescriptorFile\nparentFileNameHint=\"base.vmdk\"\n";
    let looped = "# Disk DescriptorFile\nparentFileNameHint=\"vm.vmdk\"\n";
    let raw = "# Disk DescriptorFile\ncreateType=\"vmfsRawDeviceMap\"\nRW 8 VMFSRDM \"r.vmdk\"\n";
    let away = "# Disk DescriptorFile\nRW 8 FLAT \"../x-flat.vmdk\" 0\n";
    let locked = "# Disk DescriptorFile\nencryptionKeys=\"vmware:key/list\"\n";
    for (files, about) in [
        (&[("vm/readme.txt", "x")][..], "holds 0 disks"),
        (&[("vm/vm-flat.vmdk", "x")], "without its descriptor"),
        (&[("vm/vm.vmdk", BASE)], "vm-flat.vmdk is not there"),
        (&[("vm/vm-000001.vmdk", hint)], "base.vmdk is not there"),
        (&[("vm/vm.vmdk", looped)], "does not end"),
        (&[("vm/vm.vmdk", raw)], "raw device"),
        (&[("vm/vm.vmdk", away)], "in another directory"),
        (&[("vm/vm.vmdk", locked)], "is encrypted"),
        (
            &[("vm/a.vmdk", "KDMV"), ("vm/a.ova", "x")],
            "beside it the disk a.vmdk",
        ),
        (
            &[("vm/a.ova", "x"), ("vm/b.ova", "x")],
            "holds 2 appliances",
        ),
        (&[("vm/a.vmx", "encryption.data = \"x\"")], "is encrypted"),
        (&[("vm/a.vmx", "memsize = \"1\"")], "names no disk"),
    ] {
        Bench::new(files).refuses("vm", about);
    }
    let bench = Bench::new(&[("vm-flat.vmdk", "x"), ("a.txt", "x")]);
    for name in ["vm-flat.vmdk", "a.txt"] {
        assert_eq!(bench.describe(name).unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[test]
fn an_appliance_is_described_by_its_descriptor() {
    let ovf = r#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
        xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="r"><References>
        <File ovf:id="f" ovf:href="App%20disk.vmdk"/></References><DiskSection>
        <Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="4096"/></DiskSection>
        <VirtualSystem ovf:id="x"><Name>App</Name><VirtualHardwareSection><Item>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>3</rasd:VirtualQuantity>
        </Item></VirtualHardwareSection></VirtualSystem></Envelope>"#;
    let bench = Bench::new(&[
        ("vm/app.ovf", ovf),
        ("vm/App disk.vmdk", "KDMV"),
        ("vm/app.mf", "digests"),
    ]);
    let vm = bench.describe("vm").unwrap();
    assert_eq!((vm.name.as_str(), vm.machine.cpus), ("App", Some(3)));
    let size = ovf.len() as u64 + 11;
    assert_eq!(files(&vm), [("app.ovf", "ovf", size)]);
    assert_eq!(vm.disks[0].capacity_bytes, Some(4096));
    let into = bench.path("into");
    export(&bench.local(&[]), &vm, &into).unwrap();
    assert_eq!(names(&into), ["App disk.vmdk", "app.mf", "app.ovf"]);
    for (href, about) in [
        ("../secret.vmdk", "does not lie beside it"),
        ("..%2Fsecret.vmdk", "does not lie beside it"),
        ("http://h/x.vmdk", "names a disk elsewhere"),
        ("gone.vmdk", "gone.vmdk is not there"),
    ] {
        bench.write("vm/app.ovf", &ovf.replace("App%20disk.vmdk", href));
        bench.refuses("vm/app.ovf", about);
    }
}
