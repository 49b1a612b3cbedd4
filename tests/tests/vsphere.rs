//! hyperexport against a simulated vCenter and ESXi host: found, exported both ways, compared.
use hyper2kvm_tests::dialog::Dialog;
use hyper2kvm_tests::images::text;
use hyper2kvm_tests::proxy::{Harm, rule};
use hyper2kvm_tests::vcsim::{PASSWORD, Simulator, USERNAME};
use hyper2kvm_tests::vsphere::{Scene, expect, said, signal, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn listed(scene: &Scene, pattern: &str) -> Vec<String> {
    let output = scene.run(&["--json", "--list", pattern]);
    expect(&output, 0, "");
    let mut names: Vec<String> = said(&output)
        .0
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["name"]
                .as_str()
                .unwrap()
                .into()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn vms_are_found_by_whatever_names_them() {
    let scene = Scene::new(Vec::new());
    let output = scene.run(&["--json", "--list", "web"]);
    let web: Value = serde_json::from_str(said(&output).0.lines().next().unwrap()).unwrap();
    assert_eq!((&web["power"], &web["cpus"]), (&"off".into(), &3.into()));
    assert_eq!(web["memory_bytes"], 1536 << 20);
    let (id, path) = (
        web["id"].as_str().unwrap(),
        web["location"].as_str().unwrap(),
    );
    assert_eq!(path, "/DC0/vm/web");
    for (pattern, names) in [
        (id, &["web"][..]),
        (path, &["web"]),
        ("DC0/vm/web", &["web"]),
        ("web*", &["web", "web-02"]),
        ("/DC0/vm/*", &["DC0_C0_RP0_VM3", "live", "web", "web-02"]),
        ("nothing", &[]),
    ] {
        let mut found = listed(&scene, pattern);
        found.retain(|name| !name.starts_with("DC0_") || names.contains(&name.as_str()));
        assert_eq!(found, names, "{pattern}");
    }
    let text = said(&scene.run(&["--list"])).0;
    assert!(
        text.contains("/DC0/vm/live") && text.contains(" on "),
        "{text}"
    );

    let dry = scene.export(id, &["--dry-run", "--json"]);
    expect(&dry, 0, "");
    for (vm, code, about) in [
        (path, 0, ""),
        ("web*", 1, "means 2 VMs: /DC0/vm/web (vm-"),
        ("nothing", 1, "there is no VM \"nothing\""),
    ] {
        expect(&scene.export(vm, &["--dry-run"]), code, about);
    }
    let plan = said(&scene.export("live", &["--dry-run"])).0;
    assert!(
        plan.contains("from a snapshot that is removed again"),
        "{plan}"
    );
    scene.assert_nothing_exported();
    scene.simulator.assert_clean();
}

/// By the server's own search, and in the inventory where it has none.
#[test]
fn an_id_or_a_uuid_means_one_vm() {
    let scene = Scene::new(Vec::new());
    let web = said(&scene.run(&["--json", "--list", "web"])).0;
    let web: Value = serde_json::from_str(web.trim()).unwrap();
    let (instance, bios) = (
        "5010aaaa-0000-0000-0000-000000000000",
        "4210AAAA-0000-0000-0000-000000000000",
    );
    for fault in ["", "FindAllByUuid"] {
        scene.simulator.control(&format!("fault={fault}"));
        for vm in [web["id"].as_str().unwrap(), instance, bios] {
            assert_eq!(listed(&scene, vm), ["web"]);
            let output = scene.export(vm, &["--dry-run", "--json"]);
            expect(&output, 0, "");
            let plan: Value = serde_json::from_str(&said(&output).0).unwrap();
            assert_eq!(plan["vm_name"], "web", "{vm}");
        }
        let clone = "5010aaaa-0000-0000-0000-000000000002";
        assert_eq!(listed(&scene, clone), ["web-02"]);
        let shared = "4210aaaa-0000-0000-0000-000000000001";
        expect(&scene.export(shared, &["--dry-run"]), 1, "means 2 VMs");
        let unknown = "4210aaaa-0000-0000-0000-000000000009";
        expect(&scene.export(unknown, &["--dry-run"]), 1, "there is no VM");
    }
    assert!(scene.simulator.calls("FindAllByUuid") > 6);
    expect(
        &scene.export("vm-999999", &["--dry-run"]),
        1,
        "there is no VM",
    );
    expect(&scene.export(instance, &[]), 0, "");
    scene.assert_same("web", &["a", "b"]);
}

#[test]
fn a_vm_that_is_off_is_exported_as_it_is() {
    let scene = Scene::new(Vec::new());
    let output = scene.export("web", &["--json"]);
    expect(&output, 0, "");
    let answer: Value = serde_json::from_str(&said(&output).0).unwrap();
    assert_eq!(answer["outcome"], "exported");
    scene.assert_same("web", &["a", "b"]);
    scene.simulator.assert_clean();
    assert_eq!(scene.simulator.calls("HttpNfcLeaseComplete"), 1);
    assert_eq!(scene.simulator.calls("CreateSnapshot_Task"), 0);
    assert_eq!(scene.simulator.calls("Logout"), 1);

    let manifest = scene.manifest("web");
    let source = &manifest["source"];
    assert_eq!(source["provider"], "vsphere");
    assert_eq!(source["export_method"], "ExportVm");
    assert_eq!(source["datacenter"], "DC0");
    assert!(source["vm_id"].as_str().unwrap().starts_with("vm-"));
    let vm = &manifest["vm"];
    assert_eq!((&vm["cpu"], &vm["mem_mb"]), (&3.into(), &1536.into()));
    assert_eq!(
        (&vm["firmware"], &vm["secureboot"]),
        (&"uefi".into(), &true.into())
    );
    assert_eq!(
        (&vm["tpm"], &vm["os_hint"]),
        (&false.into(), &"debian11_64Guest".into())
    );
    let nic = &manifest["nics"][0];
    assert_eq!(
        (&nic["mac"], &nic["model"]),
        (&"00:50:56:ab:cd:00".into(), &"VmxNet3".into())
    );
    assert_eq!(nic["network"], "DC0_DVPG0");
    assert_eq!(manifest["notes"][0], "kept for <accounting> & friends");
    assert_eq!(manifest["disks"][0]["label"], "Hard disk 1");
    assert_eq!(manifest["disks"][1]["bus"], "scsi");
    assert!(
        manifest["warnings"].as_array().is_none_or(Vec::is_empty),
        "{manifest}"
    );
    let ovf = std::fs::read_to_string(scene.path("out/web/web.ovf")).unwrap();
    assert!(ovf.contains("web-disk2.vmdk"), "{ovf}");
}

#[test]
fn one_command_makes_a_vm_of_it() {
    let scene = Scene::new(Vec::new());
    std::fs::create_dir(scene.path("etc")).unwrap();
    std::fs::write(scene.path("etc/hyper2kvm.toml"), "[guest]\nfix = \"off\"\n").unwrap();
    let (results, queue) = (scene.path("results"), scene.path("queue"));
    let converter = hyper2kvm_tests::programs::program("hyper2kvm");
    let arguments = [
        ["--vm", "web"],
        ["--hyper2kvm-path", text(&converter)],
        ["--hyper2kvm-output-dir", text(&results)],
        ["--hyper2kvm-watch-dir", text(&queue)],
    ];
    let output = scene.run(&[&arguments.concat()[..], &["--pipeline"]].concat());
    expect(&output, 0, "");
    scene.simulator.assert_clean();
    for (name, disk) in [("web.qcow2", "a.raw"), ("web-disk2.qcow2", "b.raw")] {
        let (result, original) = (results.join("web").join(name), scene.path(disk));
        let formats = ["compare", "-f", "raw", "-F", "qcow2"];
        let files = [text(&original), text(&result)];
        hyper2kvm_tests::images::qemu_img(&[&formats[..], &files].concat());
    }
    let domain = std::fs::read_to_string(results.join("web/domain.xml")).unwrap();
    for fact in [
        "00:50:56:ab:cd:00",
        ">3</vcpu>",
        ">1572864</memory>",
        "secure-boot",
    ] {
        assert!(domain.contains(fact), "no {fact} in {domain}");
    }
}

#[test]
fn a_running_vm_is_exported_from_a_snapshot() {
    let scene = Scene::new(Vec::new());
    // An older server: no SHA-256, no lengths.
    scene.simulator.control("sha256=0&sizes=0&chunked=1");
    expect(&scene.export("live", &[]), 0, "");
    scene.assert_same("live", &["b"]);
    scene.simulator.assert_clean();
    assert_eq!(scene.simulator.calls("CreateSnapshot_Task"), 1);
    assert_eq!(scene.simulator.calls("RemoveSnapshot_Task"), 1);
    assert_eq!(scene.simulator.calls("ExportVm"), 0);
    let manifest = scene.manifest("live");
    assert_eq!(manifest["source"]["export_method"], "ExportSnapshot");
    assert_eq!(manifest["vm"]["firmware"], "bios");
}

#[test]
fn a_quiet_export_says_nothing() {
    let scene = Scene::new(Vec::new());
    let output = scene.export("web", &["--quiet"]);
    expect(&output, 0, "");
    assert_eq!(said(&output), (String::new(), String::new()));
    scene.assert_same("web", &["a", "b"]);
    scene.simulator.assert_clean();
}

#[test]
fn a_terminal_shows_a_bar_for_each_disk() {
    let scene = Scene::new(Vec::new());
    let out = scene.path("out");
    let command = scene.trusting(&["--vm", "web", "--output", text(&out)]);
    let (code, shown) = Dialog::start(command).end();
    assert_eq!(code, Some(0), "{shown}");
    for disk in ["web-disk1.vmdk ", "web-disk2.vmdk "] {
        assert!(shown.contains(disk), "{shown}");
    }
    // The VM itself has no end that is known, and no empty bar.
    assert!(!shown.contains("0/0"), "{shown}");
}

#[test]
fn an_appliance_is_packed() {
    let scene = Scene::new(Vec::new());
    expect(&scene.export("web", &["--format", "ova"]), 0, "");
    let out = scene.path("out/web");
    let names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["web.ova"]);
    let ova = out.join("web.ova");
    let list = hyper2kvm_tests::images::run("tar", "tar", &["-tf", text(&ova)]);
    let list = String::from_utf8(list.stdout).unwrap();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(
        lines,
        ["web.ovf", "web.mf", "web-disk1.vmdk", "web-disk2.vmdk"]
    );
    let unpack = ["-C", text(&out), "-xf", text(&ova)];
    hyper2kvm_tests::images::run("tar", "tar", &unpack);
    scene.assert_same("web", &["a", "b"]);
    let mf = std::fs::read_to_string(out.join("web.mf")).unwrap();
    for line in mf.lines() {
        let (name, sum) = line
            .strip_prefix("SHA256(")
            .unwrap()
            .split_once(")= ")
            .unwrap();
        let file = out.join(name);
        let tool = hyper2kvm_tests::images::run("coreutils", "sha256sum", &[text(&file)]);
        assert!(tool.stdout.starts_with(sum.as_bytes()), "{name}");
    }
    assert_eq!(mf.lines().count(), 3);
}

#[test]
fn an_esxi_host_is_a_server_too() {
    let scene = Scene::with(Vec::new(), &["-esx"]);
    expect(&scene.export("web", &[]), 0, "");
    scene.assert_same("web", &["a", "b"]);
    scene.simulator.assert_clean();
}

#[test]
fn only_the_right_certificate_is_trusted() {
    let scene = Scene::new(Vec::new());
    let password = scene.path("password");
    let list = |more: &[&str]| {
        let mut arguments = vec!["--list", "web", "--password-file", text(&password)];
        arguments.extend(more);
        let output = scene.command(&arguments).output().unwrap();
        scene.assert_secret(&output);
        output
    };
    let unknown = list(&[]);
    expect(&unknown, 1, "the certificate of 127.0.0.1 is not trusted");
    // Not even the password was sent.
    assert_eq!(scene.proxy.count("RetrieveServiceContent"), 0);
    let thumbprint = said(&unknown)
        .1
        .split_once("SHA-256 thumbprint is ")
        .map(|(_, rest)| rest.lines().next().unwrap().to_owned())
        .unwrap();
    assert_eq!(scene.simulator.thumbprint(), thumbprint);
    expect(&list(&["--thumbprint", &thumbprint]), 0, "");
    let pem = scene.simulator.certificates.join("server.pem");
    let arguments = ["x509", "-noout", "-fingerprint", "-sha1", "-in", text(&pem)];
    let sha1 = hyper2kvm_tests::images::run("openssl", "openssl", &arguments);
    let sha1 = String::from_utf8(sha1.stdout).unwrap();
    expect(
        &list(&["--thumbprint", sha1.trim().split_once('=').unwrap().1]),
        0,
        "",
    );
    let other = thumbprint.replace(&thumbprint[..2], "00");
    expect(&list(&["--thumbprint", &other]), 1, "is not trusted");
    expect(&list(&["--insecure"]), 0, "warning: --insecure");
}

#[test]
fn a_password_is_needed_and_never_shown() {
    let scene = Scene::new(Vec::new());
    let ca = scene.simulator.certificates.join("ca.pem");
    let list = ["--list", "web", "--ca-file", text(&ca)];
    let without = scene.command(&list).output().unwrap();
    expect(&without, 2, "no password is given");
    let wrong = scene
        .command(&list)
        .env("VSPHERE_PASSWORD", "s3cret-wrong")
        .output()
        .unwrap();
    expect(&wrong, 1, "InvalidLogin");
    scene.assert_secret(&wrong);
    let right = scene
        .command(&list)
        .env("HYPER2KVM_VCENTER_PASSWORD", PASSWORD)
        .output()
        .unwrap();
    expect(&right, 0, "");
    let credentials = scene.path("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("vcenter-password"), PASSWORD).unwrap();
    let service = scene
        .command(&list)
        .env("CREDENTIALS_DIRECTORY", &credentials)
        .output()
        .unwrap();
    expect(&service, 0, "");
    let password = credentials.join("vcenter-password");
    let list = [&list[..], &["--password-file", text(&password)]].concat();
    let open = scene.command(&list).output().unwrap();
    expect(&open, 0, "is open to others than its owner; run: chmod 600");
}

#[test]
fn what_a_killed_export_left_is_cleaned_up_by_the_next() {
    let rules = vec![rule("GET /nfc/", 1, Harm::Stall(100_000))];
    let scene = Scene::new(rules);
    let out = scene.path("out");
    let arguments = ["--vm", "live", "--output", text(&out)];
    let mut command = scene.trusting(&arguments);
    let mut child = command.spawn().unwrap();
    wait_until("a download", || scene.proxy.count("GET /nfc/") > 0);
    let state = scene.simulator.control("");
    assert_eq!(state["Snapshots"].as_array().unwrap().len(), 1, "{state}");
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    let state = scene.simulator.control("");
    assert_eq!(state["Snapshots"].as_array().unwrap().len(), 1, "{state}");
    expect(&scene.run(&["--list", "live"]), 0, "");
    scene.simulator.assert_clean();
    let debts = scene.path("state/hyperexport/debts");
    assert_eq!(std::fs::read_dir(debts).unwrap().count(), 0);
}

#[test]
fn an_interrupt_leaves_nothing() {
    let rules = vec![rule("GET /nfc/", 9, Harm::Stall(100_000))];
    let scene = Scene::new(rules);
    let out = scene.path("out");
    let child = scene
        .trusting(&["--vm", "live", "--output", text(&out)])
        .spawn()
        .unwrap();
    wait_until("a download", || scene.proxy.count("GET /nfc/") > 0);
    signal(&child, Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    scene.simulator.assert_clean();
    scene.assert_nothing_exported();
}

/// The simulator with TLS of its own, without a proxy.
#[test]
fn the_simulator_speaks_tls() {
    let scene = Scene::new(Vec::new());
    let vm = format!("one={}", text(&scene.path("b.vmdk")));
    let simulator = Simulator::start(&scene.path("tls"), &[vm], &["-tls"]);
    let ca = simulator.certificates.join("ca.pem");
    let password = scene.path("password");
    let output = std::process::Command::new("timeout")
        .arg("60")
        .arg(hyper2kvm_tests::programs::program("hyperexport"))
        .args(["--vcenter", &simulator.address, "--username", USERNAME])
        .args(["--password-file", text(&password), "--ca-file", text(&ca)])
        .args(["--vm", "one", "--output", text(&scene.path("out"))])
        .env("XDG_STATE_HOME", scene.path("state"))
        .output()
        .unwrap();
    expect(&output, 0, "");
    scene.assert_same("one", &["b"]);
}
