//! VMs that lie in files or on a web server, exported and converted: by request and at once.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hyper2kvm_tests::exports::ExportSite;
use hyper2kvm_tests::images::{self, noise, text};
use hyper2kvm_tests::programs::program;
use hyper2kvm_tests::proxy::{Harm, Proxy, Rule, rule};
use hyper2kvm_tests::vmfs;
use hyper2kvm_tests::vsphere::{expect, said};
use hyper2kvm_tests::web::{Web, certificates};
use queue::error::ErrorKind;
use queue::job::{ExportRequest, JobState};
use serde_json::Value;

const MIB: usize = 1 << 20;
const DISK_BYTES: usize = 16 * MIB;
/// Requests for the first bytes, before the download.
const LOOKS: u32 = 2;

/// hyperexport with a configuration of its own that leaves guests alone.
fn hyperexport(top: &Path, arguments: &[&str]) -> Output {
    let etc = top.join("own-etc");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("hyper2kvm.toml"), "[guest]\nfix = \"off\"\n").unwrap();
    let mut command = Command::new("timeout");
    command
        .arg("120")
        .arg(program("hyperexport"))
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HYPER2KVM_CONFIG_DIR", etc)
        .env("XDG_STATE_HOME", top.join("state"));
    command.output().unwrap()
}

/// Converts at once into `<top>/converted/<vm>/`.
fn convert(top: &Path, source: &str, more: &[&str]) -> Output {
    let out = top.join("converted");
    let mut arguments = vec!["--source", source, "--pipeline"];
    arguments.extend(["--hyper2kvm-output-dir", text(&out)]);
    arguments.extend(more);
    hyperexport(top, &arguments)
}

fn descriptor(cid: u32, parent: Option<(u32, &str)>, kind: &str, extent: &str) -> String {
    let sectors = DISK_BYTES / 512;
    let (parent_cid, hint) = parent.unwrap_or((u32::MAX, ""));
    let hint = match hint {
        "" => String::new(),
        hint => format!("parentFileNameHint=\"{hint}\"\n"),
    };
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID={parent_cid:08x}\n{hint}\
         createType=\"{kind}\"\nRW {sectors} {} \"{extent}\"\n",
        kind.to_ascii_uppercase()
    )
}

const VMX: &str = ".encoding = \"UTF-8\"\nconfig.version = \"8\"\ndisplayName = \"web |2201|22\"\n\
    annotation = \"the shop\"\nguestOS = \"debian12-64\"\nfirmware = \"efi\"\nmemSize = \"768\"\n\
    uefi.secureBoot.enabled = \"TRUE\"\nnumvcpus = \"3\"\nscsi0.present = \"TRUE\"\n\
    nvme0.present = \"TRUE\"\nnvme0:0.present = \"TRUE\"\nnvme0:0.fileName = \"data.vmdk\"\n\
    scsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"web-000002.vmdk\"\n\
    ethernet0.present = \"TRUE\"\nethernet0.virtualDev = \"vmxnet3\"\n\
    ethernet0.networkName = \"VM Network\"\nethernet0.generatedAddress = \"00:50:56:AB:CD:01\"\n\
    sata0:0.present = \"TRUE\"\nsata0:0.deviceType = \"cdrom-image\"\n\
    sata0:0.fileName = \"/vmfs/volumes/iso/debian.iso\"\n";

/// A VM as ESXi leaves it on a datastore, with two snapshots; what its two disks hold.
fn datastore_vm(directory: &Path, top: &Path) -> (PathBuf, PathBuf) {
    fs::create_dir(directory).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes).unwrap();
    let mut disk = vec![0; DISK_BYTES];
    disk[..4 * MIB].copy_from_slice(&noise(1, 4 * MIB));
    write("web-flat.vmdk", &disk);
    write(
        "web.vmdk",
        descriptor(1, None, "vmfs", "web-flat.vmdk").as_bytes(),
    );
    let snapshots = [
        (1, "vmfsSparse", "delta", "web.vmdk", 2 * MIB),
        (
            2,
            "seSparse",
            "sesparse",
            "/vmfs/volumes/5f3c/web/web-000001.vmdk",
            8 * MIB,
        ),
    ];
    for (number, kind, suffix, parent, at) in snapshots {
        let mut changes = vec![0; DISK_BYTES];
        let news = noise(10 + u64::from(number), MIB);
        changes[at..at + MIB].copy_from_slice(&news);
        disk[at..at + MIB].copy_from_slice(&news);
        let extent = match kind {
            "seSparse" => vmfs::se_sparse(&changes, false),
            _ => vmfs::cowd(&changes, 1),
        };
        let (name, file) = (
            format!("web-00000{number}.vmdk"),
            format!("web-00000{number}-{suffix}.vmdk"),
        );
        write(&file, &extent);
        let parent = Some((number, parent));
        write(
            &name,
            descriptor(number + 1, parent, kind, &file).as_bytes(),
        );
    }
    write("web-000002-ctk.vmdk", b"change tracking");
    write("web.vmx", VMX.as_bytes());
    let (first, second) = (top.join("first.raw"), top.join("second.raw"));
    fs::write(&first, &disk).unwrap();
    images::raw_disk(&second, 4 << 20, &[(MIB as u64, &noise(5, MIB))]);
    let data = images::vmdk(&second, "monolithicSparse", &top.join("made"));
    fs::copy(data, directory.join("data.vmdk")).unwrap();
    (first, second)
}

#[track_caller]
fn assert_hardware(result: &Path) {
    let domain = fs::read_to_string(result.join("domain.xml")).unwrap();
    for part in ["00:50:56:ab:cd:01", ">786432<", ">3</vcpu>"] {
        assert!(domain.contains(part), "no {part} in {domain}");
    }
}

#[test]
fn a_vm_of_a_datastore_comes_with_its_snapshots_and_hardware() {
    const NAME: &str = "web %2201%22";
    let site = ExportSite::new("");
    let top = site.instance.top.path().to_path_buf();
    let (first, second) = datastore_vm(&site.vms().join("web"), &top);
    let mut converter = site.instance.start();
    let exporter = site.start();
    site.ask(&site.request("web"));
    converter.wait(60, "the VM is converted", || {
        site.instance.link(NAME).exists() && site.instance.is_quiet()
    });
    exporter.stop();
    converter.stop();
    let result = site.instance.directories.output.join(NAME);
    let outcome = convert(&top, text(&site.vms().join("web")), &[]);
    expect(&outcome, 0, "");
    for result in [result, top.join("converted").join(NAME)] {
        images::judge(&first, &result.join(format!("{NAME}.qcow2")), "qcow2");
        images::judge(
            &second,
            &result.join(format!("{NAME}-disk2.qcow2")),
            "qcow2",
        );
        assert_hardware(&result);
    }
    let [export] = &site.records()[..] else {
        panic!("{:?}", site.records());
    };
    assert_eq!(export.disks.len(), 2);

    // The manifest vouches for every file of a chain.
    let kept = top.join("kept");
    let web = site.vms().join("web");
    let keep = ["--source", text(&web), "--output", text(&kept)];
    expect(&hyperexport(&top, &keep), 0, "");
    let kept = kept.join(NAME);
    let manifest: Value =
        serde_json::from_slice(&fs::read(kept.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["notes"][0], "the shop");
    assert_eq!(manifest["vm"]["secureboot"], true);
    assert_eq!(manifest["disks"][0]["pieces"].as_array().unwrap().len(), 5);
    assert_eq!(manifest["disks"][1]["bus"], "nvme");
    let base = kept.join("web-flat.vmdk");
    let mut bytes = fs::read(&base).unwrap();
    bytes[0] ^= 1;
    fs::write(&base, bytes).unwrap();
    fs::create_dir(top.join("again")).unwrap();
    let output = Command::new("timeout")
        .arg("120")
        .arg(program("hyper2kvm"))
        .args(["convert", "--no-fix", text(&kept), "--output"])
        .arg(top.join("again"))
        .output()
        .unwrap();
    expect(&output, 1, "web-flat.vmdk");
}

#[test]
fn disks_of_one_name_come_from_two_datastores() {
    let site = ExportSite::new("");
    let top = site.instance.top.path().to_path_buf();
    let other = top.join("other");
    site.configure(&format!("datastores = {{ other = {other:?} }}\n"));
    let mut raws = Vec::new();
    for (seed, directory) in [(1, site.vms().join("db")), (2, other.join("db"))] {
        fs::create_dir_all(&directory).unwrap();
        let raw = top.join(format!("{seed}.raw"));
        images::raw_disk(&raw, DISK_BYTES as u64, &[(0, &noise(seed, MIB))]);
        fs::copy(&raw, directory.join("db-flat.vmdk")).unwrap();
        let text = descriptor(1, None, "vmfs", "db-flat.vmdk");
        fs::write(directory.join("db.vmdk"), text).unwrap();
        raws.push(raw);
    }
    let vmx = "scsi0:0.fileName = \"db.vmdk\"\n\
               scsi0:1.fileName = \"/vmfs/volumes/other/db/db.vmdk\"\n";
    fs::write(site.vms().join("db/db.vmx"), vmx).unwrap();
    let mut converter = site.instance.start();
    let exporter = site.start();
    site.ask(&site.request("db"));
    converter.wait(60, "the VM is converted", || {
        site.instance.link("db").exists()
    });
    exporter.stop();
    converter.stop();
    let result = site.instance.directories.output.join("db");
    images::judge(&raws[0], &result.join("db.qcow2"), "qcow2");
    images::judge(&raws[1], &result.join("db-disk2.qcow2"), "qcow2");
}

#[test]
fn a_datastore_is_listed_and_a_running_vm_is_left_alone() {
    let top = tempfile::tempdir().unwrap();
    let store = top.path().join("store");
    fs::create_dir(&store).unwrap();
    datastore_vm(&store.join("web"), top.path());
    fs::create_dir(store.join("db")).unwrap();
    fs::write(
        store.join("db/db.vmx"),
        "displayName = \"Data base\"\nmemsize = \"64\"\n",
    )
    .unwrap();
    fs::write(store.join("db/.lck-5e00000000000000"), "").unwrap();
    let output = hyperexport(top.path(), &["--list", text(&store), "--json"]);
    expect(&output, 0, "");
    let listed: Vec<Value> = said(&output)
        .0
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told: Vec<[&str; 3]> = listed
        .iter()
        .map(|vm| ["name", "location", "power"].map(|key| vm[key].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ["Data base", "db/db.vmx", "on"],
            ["web \"01\"", "web/web.vmx", "off"]
        ]
    );
    let id = listed[1]["id"].as_str().unwrap();
    let plan = hyperexport(top.path(), &["--vm", id, "--pipeline", "--dry-run"]);
    expect(&plan, 0, "");
    assert!(said(&plan).0.contains("web-000002.vmdk (vmdk"), "{plan:?}");
    fs::write(store.join("web/web.vmx.lck"), "").unwrap();
    let output = convert(top.path(), id, &[]);
    expect(&output, 1, "shut the VM down and export it again");
    assert!(said(&output).1.contains("web.vmx.lck"), "{output:?}");
}

#[test]
fn a_hostile_vmx_reads_nothing_that_is_not_its_own() {
    let site = ExportSite::new("");
    site.make_queue();
    let top = site.instance.top.path().to_path_buf();
    fs::write(
        top.join("secret.vmdk"),
        descriptor(1, None, "vmfs", "web-flat.vmdk"),
    )
    .unwrap();
    let absolute = top.join("secret.vmdk");
    let mut daemon = site.start();
    for (number, (file, about)) in [
        ("../../secret.vmdk", "leaves the VM's directory"),
        (text(&absolute), "leaves the VM's directory"),
        ("/vmfs/volumes/5f3c/x/x.vmdk", "the datastore \"5f3c\""),
        ("link.vmdk", "is a link"),
    ]
    .into_iter()
    .enumerate()
    {
        let vm = format!("vm-{number}");
        let directory = site.vms().join(&vm);
        fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink(&absolute, directory.join("link.vmdk")).unwrap();
        let line = format!("scsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"{file}\"\n");
        fs::write(directory.join("vm.vmx"), line).unwrap();
        site.ask(&site.request(&vm));
        let failed = || {
            site.record_of(&vm)
                .filter(|it| it.state == JobState::Failed)
        };
        daemon.wait(30, "the export fails", || failed().is_some());
        let error = failed().unwrap().error.unwrap();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(about), "{error:?}");
        assert!(error.remedy.is_some());
    }
    daemon.wait(10, "nothing is left of it", || site.is_quiet());
    daemon.stop();
}

/// `disk.vmdk`, its content as `disk.raw`, and `vm.ova` with it, called web-01.
fn appliance(directory: &Path) -> PathBuf {
    fs::create_dir(directory).unwrap();
    let raw = directory.join("disk.raw");
    images::raw_disk(&raw, DISK_BYTES as u64, &[(0, &noise(7, 6 * MIB))]);
    let vmdk = images::vmdk(&raw, "streamOptimized", &directory.join("made"));
    fs::rename(vmdk, directory.join("disk.vmdk")).unwrap();
    let ovf = images::ovf(&[("disk.vmdk", DISK_BYTES as u64)]);
    fs::write(directory.join("vm.ovf"), ovf).unwrap();
    images::ova(directory, &["vm.ovf", "disk.vmdk"]);
    raw
}

#[test]
fn appliances_are_vms() {
    let site = ExportSite::new("");
    let top = site.instance.top.path().to_path_buf();
    let raw = appliance(&top.join("made"));
    for (vm, files) in [
        ("packed", &["vm.ova"][..]),
        ("open", &["vm.ovf", "disk.vmdk"]),
    ] {
        fs::create_dir(site.vms().join(vm)).unwrap();
        for file in files {
            fs::copy(top.join("made").join(file), site.vms().join(vm).join(file)).unwrap();
        }
    }
    let listed = hyperexport(&top, &["--list", text(&site.vms()), "--json"]);
    let (out, _) = said(&listed);
    assert_eq!(out.matches("\"name\":\"web-01\"").count(), 2, "{out}");
    assert_eq!(out.matches("\"cpus\":2").count(), 2, "{out}");
    let mut converter = site.instance.start();
    let exporter = site.start();
    for name in ["packed", "open"] {
        let mut request = site.request(name);
        request.name = (name == "open").then(|| "renamed".to_owned());
        site.ask(&request);
    }
    for name in ["web-01", "renamed"] {
        converter.wait(60, "the VM is converted", || {
            site.instance.link(name).exists()
        });
        images::judge(&raw, &site.instance.link(name), "qcow2");
        let domain = site
            .instance
            .directories
            .output
            .join(name)
            .join("domain.xml");
        assert!(fs::read_to_string(domain).unwrap().contains(">2</vcpu>"));
    }
    exporter.stop();
    converter.stop();
}

/// A web server behind TLS.
struct Site {
    proxy: Proxy,
    _web: Web,
    raw: PathBuf,
    top: tempfile::TempDir,
}

impl Site {
    fn new(ranges: bool, rules: Vec<Rule>) -> Self {
        let top = tempfile::tempdir().unwrap();
        let raw = appliance(&top.path().join("www"));
        let web = Web::start(&top.path().join("www"), ranges);
        let proxy = Proxy::start(&web.address, &certificates(top.path()), rules);
        Self {
            proxy,
            _web: web,
            raw,
            top,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}/{path}", self.proxy.address)
    }

    fn ca_file(&self) -> PathBuf {
        self.top.path().join("certificates/server.pem")
    }

    /// Converts what lies at the path.
    fn convert(&self, path: &str) -> Output {
        let ca_file = self.ca_file();
        let more = ["--ca-file", text(&ca_file)];
        convert(self.top.path(), &self.url(path), &more)
    }

    #[track_caller]
    fn assert_converted(&self, output: &Output, vm: &str) {
        expect(output, 0, "");
        let result = self.top.path().join(format!("converted/{vm}/{vm}.qcow2"));
        images::judge(&self.raw, &result, "qcow2");
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        let left = fs::read_dir(self.top.path().join("converted"));
        assert_eq!(left.into_iter().flatten().count(), 0);
    }
}

#[test]
fn a_disk_comes_from_a_web_server_and_goes_on_where_it_broke() {
    let site = Site::new(
        true,
        vec![rule("GET /disk.vmdk", LOOKS + 1, Harm::Cut(2 * MIB))],
    );
    site.assert_converted(&site.convert("disk.vmdk"), "disk");
    assert_eq!(site.proxy.count("range: bytes=2097152-"), 1);
    assert_eq!(site.proxy.count("GET "), LOOKS as usize + 2);
}

#[test]
fn a_server_without_ranges_sends_it_anew() {
    let site = Site::new(
        false,
        vec![rule("GET /disk.vmdk", LOOKS + 1, Harm::Cut(2 * MIB))],
    );
    site.assert_converted(&site.convert("disk.vmdk"), "disk");
    assert_eq!(site.proxy.count("range: bytes=2097152-"), 1);
}

#[test]
fn an_appliance_comes_from_a_web_server_by_its_name() {
    let site = Site::new(true, Vec::new());
    let output = site.convert("moved/vm.ova");
    site.assert_converted(&output, "web-01");
    let kept = site.top.path().join("kept");
    let url = site.url("vm.ova");
    let keep = ["--source", &url, "--insecure", "--output", text(&kept)];
    let output = hyperexport(site.top.path(), &keep);
    expect(&output, 0, "whoever answers for the server is believed");
    let manifest: Value =
        serde_json::from_slice(&fs::read(kept.join("web-01/manifest.json")).unwrap()).unwrap();
    let ova = site.top.path().join("www/vm.ova");
    let sum = images::run("coreutils", "sha256sum", &[text(&ova)]).stdout;
    let sum = format!("sha256:{}", String::from_utf8_lossy(&sum[..64]));
    assert_eq!(manifest["disks"][0]["checksum"], sum);
    assert_eq!(
        manifest["notes"][0],
        format!("downloaded from {url} ({sum})")
    );
}

#[test]
fn what_a_web_server_does_wrong_is_told_and_nothing_is_left() {
    let always = u32::MAX;
    let site = Site::new(
        true,
        vec![
            rule("GET /vm.ova", always, Harm::Longer(10)),
            rule("GET /gone.vmdk", always, Harm::Status(403)),
        ],
    );
    fs::write(
        site.top.path().join("www/part.vmdk"),
        descriptor(1, None, "vmfs", "x"),
    )
    .unwrap();
    let size = fs::metadata(site.top.path().join("www/vm.ova"))
        .unwrap()
        .len();
    let wrong = format!("sends {} bytes instead of {size}", size + 10);
    for (path, about) in [
        ("vm.ova", wrong.as_str()),
        ("gone.vmdk", "403"),
        ("nowhere.vmdk", "404"),
        ("part.vmdk", "one of several files"),
        ("vm.ovf", "not named like a disk or an OVA"),
        ("away/127.0.0.1/vm.ova", "away from https"),
    ] {
        expect(&site.convert(path), 1, about);
        site.assert_nothing_left();
    }
    let unknown = convert(site.top.path(), &site.url("disk.vmdk"), &[]);
    expect(&unknown, 1, "is not trusted");
    for address in [
        "https://user:geheim@127.0.0.1/x.ova",
        "https://h/x.ova?geheim",
    ] {
        let output = convert(site.top.path(), address, &["--json"]);
        expect(&output, 2, "is not taken");
        let (out, err) = said(&output);
        assert!(
            !out.contains("geheim") && !err.contains("geheim"),
            "{out}{err}"
        );
    }
}

#[test]
fn the_service_asks_only_the_addresses_of_its_section() {
    let web = Site::new(true, Vec::new());
    let site = ExportSite::new("");
    let ca_file = web.ca_file();
    let urls = web.url("moved/");
    site.configure(&format!(
        "[server.images]\nprovider = \"local\"\nurls = [{:?}, {urls:?}]\nca_file = {ca_file:?}\n",
        web.url("vm.ova")
    ));
    let check = site.check();
    assert!(check.status.success(), "{check:?}");
    let mut converter = site.instance.start();
    let mut exporter = site.start();
    site.ask(&ExportRequest::new("images", &web.url("vm.ova")));
    converter.wait(60, "the VM is converted", || {
        site.instance.link("web-01").exists()
    });
    images::judge(&web.raw, &site.instance.link("web-01"), "qcow2");
    let before = web.proxy.count("GET ");
    // The second leads to an address that is not beneath any.
    for (path, seen) in [("disk.vmdk", 0), ("moved/disk.vmdk", 1)] {
        let mut request = ExportRequest::new("images", &web.url(path));
        request.name = Some(format!("refused-{seen}"));
        site.ask(&request);
        let failed = || {
            let record = site.record_of(&format!("refused-{seen}"));
            record.filter(|it| it.state == JobState::Failed)
        };
        exporter.wait(30, "it is refused", || failed().is_some());
        let message = failed().unwrap().error.unwrap().message;
        assert!(message.contains("not beneath the urls"), "{message}");
        assert_eq!(web.proxy.count("GET "), before + seen);
    }
    site.put(
        "ticket.json",
        r#"{"export_version": "1.0", "server": "images", "vm": "https://u:geheim@h/x.ova"}"#,
    );
    let failed = || {
        site.record_of("ticket")
            .filter(|it| it.state == JobState::Failed)
    };
    exporter.wait(30, "the secret is refused", || failed().is_some());
    let told = format!("{:?}{}", failed().unwrap(), exporter.log());
    assert!(!told.contains("geheim"), "{told}");
    exporter.stop();
    converter.stop();
}
