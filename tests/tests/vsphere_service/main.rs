//! The export service against a simulated vCenter: by request to the qcow2, killed and again.
mod stream;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyper2kvm_tests::daemon::names;
use hyper2kvm_tests::exports::ExportSite;
use hyper2kvm_tests::images::{qemu_img, text};
use hyper2kvm_tests::proxy::{Harm, rule};
use hyper2kvm_tests::vcsim::{PASSWORD, USERNAME};
use hyper2kvm_tests::vsphere::{Scene, assert_nowhere, expect};
use queue::error::ErrorKind;
use queue::job::{ExportFormat, ExportRequest, JobState};

const SERVER: &str = "vc.example.com";

/// The service with the scene's server; `more` are keys of its section.
fn site(scene: &Scene, more: &str) -> ExportSite {
    let site = ExportSite::new("[retry]\nmax_retries = 0\n");
    site.configure(&section(SERVER, &scene.proxy.address, more));
    site
}

fn section(name: &str, address: &str, more: &str) -> String {
    format!(
        "[server.{name:?}]\nprovider = \"vsphere\"\naddress = {address:?}\n\
         username = {USERNAME:?}\n{more}\n"
    )
}

/// As configuration: the scene's password, in a file with this mode.
fn password_file(scene: &Scene, mode: u32) -> String {
    let path = scene.path(&format!("password-{mode:o}"));
    fs::write(&path, format!("{PASSWORD}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    format!("password_file = {path:?}\n")
}

fn thumbprint(scene: &Scene) -> String {
    format!("thumbprint = {:?}\n", scene.simulator.thumbprint())
}

#[track_caller]
fn assert_same(original: &Path, result: &Path) {
    let formats = ["compare", "-f", "raw", "-F", "qcow2"];
    qemu_img(&[&formats[..], &[text(original), text(result)]].concat());
}

/// No spool, output, log or configuration knows the password.
#[track_caller]
fn assert_secret(site: &ExportSite) {
    assert_nowhere("s3cret", site.instance.top.path());
}

#[test]
fn a_request_becomes_a_vm_with_its_hardware() {
    let scene = Scene::new(Vec::new());
    let mut site = site(&scene, &thumbprint(&scene));
    let credentials = scene.path("credentials");
    fs::create_dir(&credentials).unwrap();
    let credential = credentials.join(format!("{SERVER}.password"));
    fs::write(credential, PASSWORD).unwrap();
    let credentials = text(&credentials).to_owned();
    site.environment
        .push(("CREDENTIALS_DIRECTORY", credentials));
    expect(&site.check(), 0, "");

    let mut converter = site.instance.start();
    let mut exporter = site.start();
    let mut request = ExportRequest::new(SERVER, "/DC0/vm/web");
    request.options.stream = Some(false);
    site.ask(&request);
    let results = site.instance.directories.output.join("web");
    converter.wait(120, "the VM is converted", || {
        results.join("domain.xml").exists() && site.instance.is_quiet()
    });
    exporter.wait(20, "the export is over", || site.is_quiet());
    for (name, disk) in [("web.qcow2", "a.raw"), ("web-disk2.qcow2", "b.raw")] {
        assert_same(&scene.path(disk), &results.join(name));
    }
    let domain = fs::read_to_string(results.join("domain.xml")).unwrap();
    for fact in ["00:50:56:ab:cd:00", ">3</vcpu>", ">1572864</memory>"] {
        assert!(domain.contains(fact), "no {fact} in {domain}");
    }
    let export = site.record_of("web").unwrap();
    assert_eq!((export.state, export.disks.len()), (JobState::Completed, 2));
    let drop = export.delivered.unwrap().drop;
    let archived = site.instance.directories.processed().join(drop);
    let expected = [
        "manifest.json",
        "web-disk1.vmdk",
        "web-disk2.vmdk",
        "web.ovf",
    ];
    assert_eq!(names(&archived), expected);
    scene.simulator.assert_clean();
    exporter.stop();
    converter.stop();
    assert_secret(&site);
}

/// SIGKILL in mid-download: the next service removes what was left, and exports the VM.
#[test]
fn a_killed_service_leaves_nothing_on_the_server() {
    let rules = vec![rule("GET /nfc/", 1, Harm::Stall(100_000))];
    let scene = Scene::new(rules);
    let more = format!("{}insecure = true\n", password_file(&scene, 0o600));
    let site = site(&scene, &more);
    // Another server is none of this debt's business, and need not even be there.
    site.configure(&section("a.example.com", "127.0.0.1:9", &more));
    let mut converter = site.instance.start();
    let mut exporter = site.start();
    assert!(exporter.log().contains("any certificate is trusted"));
    site.ask(&ExportRequest::new(SERVER, "live"));
    exporter.wait(30, "a download", || scene.proxy.count("GET /nfc/") > 0);
    exporter.kill();
    let state = scene.simulator.control("");
    assert_eq!(state["Snapshots"].as_array().unwrap().len(), 1, "{state}");
    let debts = site.directories.work.join("debts");
    assert!(fs::read_dir(&debts).unwrap().count() > 0);

    let mut exporter = site.start();
    exporter.wait(60, "it is exported after all", || {
        let record = site.record_of("live");
        record.is_some_and(|record| record.state == JobState::Completed) && site.is_quiet()
    });
    scene.simulator.assert_clean();
    assert_eq!(fs::read_dir(&debts).unwrap().count(), 0);
    converter.wait(60, "the VM is converted", || {
        site.instance.link("live").exists() && site.instance.is_quiet()
    });
    assert_same(&scene.path("b.raw"), &site.instance.link("live"));
    assert!(!exporter.log().contains("a.example.com, to be tried"));
    exporter.stop();
    converter.stop();
    assert_secret(&site);
}

/// Without a request as well: what is owed is settled although the export is cancelled.
#[test]
fn what_is_owed_is_settled_without_another_export() {
    let rules = vec![rule("GET /nfc/", 1, Harm::Stall(100_000))];
    let scene = Scene::new(rules);
    let more = format!("{}insecure = true\n", password_file(&scene, 0o600));
    let site = site(&scene, &more);
    site.make_queue();
    let mut exporter = site.start();
    site.ask(&ExportRequest::new(SERVER, "live"));
    exporter.wait(30, "a download", || scene.proxy.count("GET /nfc/") > 0);
    let job_id = site.record_of("live").unwrap().job_id;
    exporter.kill();
    site.control(&queue::job::Request::Cancel { job_id });
    let mut exporter = site.start();
    exporter.wait(30, "nothing is left", || {
        let state = scene.simulator.control("");
        ["Snapshots", "Leases"].map(|kind| state[kind] == serde_json::json!([])) == [true; 2]
    });
    exporter.stop();
    assert_secret(&site);
}

/// Refused, then taken: no file, record, log or command line knows either password.
#[test]
fn a_password_is_nowhere() {
    let scene = Scene::new(Vec::new());
    let more = password_file(&scene, 0o600) + &thumbprint(&scene);
    let file = scene.path("password-600");
    fs::write(&file, "s3cret-wrong\n").unwrap();
    let site = site(&scene, &more);
    let converter = site.instance.start();
    let mut exporter = site.start();
    let assert_unknown = |pid: u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains("s3cret"));
        assert_secret(&site);
    };
    site.ask(&ExportRequest::new(SERVER, "live"));
    exporter.wait(60, "the login is refused", || {
        let record = site.record_of("live");
        record.is_some_and(|record| record.state == JobState::Failed) && site.is_quiet()
    });
    let failure = site.record_of("live").unwrap().error.unwrap();
    assert!(failure.to_text().contains("InvalidLogin"), "{failure:?}");
    let told = fs::read_to_string(site.directories.output.join("default/live.error")).unwrap();
    assert!(told.contains("InvalidLogin"), "{told}");
    assert_unknown(exporter.pid());

    fs::write(&file, PASSWORD).unwrap();
    expect(&site.hyperctl(&["retry", "--vm", "live"]), 0, "");
    exporter.wait(60, "a login", || {
        scene.simulator.calls("ExportSnapshot") > 0
    });
    assert_unknown(exporter.pid());
    exporter.wait(60, "the VM is converted", || {
        site.instance.link("live").exists() && site.instance.is_quiet() && site.is_quiet()
    });
    for arguments in [
        &["status", "--vm", "live", "--json"][..],
        &["logs", "--vm", "live"],
    ] {
        let output = site.hyperctl(arguments);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("s3cret"));
    }
    assert_unknown(exporter.pid());
    exporter.stop();
    converter.stop();
    assert_secret(&site);
}

#[test]
fn what_is_wrong_with_a_server_is_told() {
    let scene = Scene::new(Vec::new());
    let open = format!("{}insecure = true\n", password_file(&scene, 0o640));
    let site = site(&scene, &open);
    let unsound = format!(
        "{}ca_file = \"/nowhere/ca.pem\"\n",
        password_file(&scene, 0o600)
    );
    site.configure(&section("unsound", "127.0.0.1:9", &unsound));
    site.configure(&section("bare", "127.0.0.1:9", "insecure = true\n"));
    let checked = site.check();
    for about in ["chmod 600", "/nowhere/ca.pem", "server unsound: "] {
        expect(&checked, 2, about);
    }
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains("credential bare.password"), "{said}");

    site.make_queue();
    let mut exporter = site.start();
    assert!(exporter.log().contains("chmod 600"), "{}", exporter.log());
    site.ask(&ExportRequest::new(SERVER, "web"));
    site.ask(&ExportRequest::new("bare", "live"));
    let mut appliance = ExportRequest::new(SERVER, "appliance");
    appliance.options.format = ExportFormat::Ova;
    site.ask(&appliance);
    exporter.wait(30, "all of them failed", || {
        let failed = |state| state == JobState::Failed;
        let records = site.records();
        records.len() == 3 && records.iter().all(|record| failed(record.state))
    });
    for (drop, kind, about) in [
        ("web.json", ErrorKind::Invalid, "chmod 600"),
        (
            "live.json",
            ErrorKind::Invalid,
            "LoadCredential=bare.password",
        ),
        ("appliance.json", ErrorKind::Unsupported, "for an ova"),
    ] {
        let mut records = site.records().into_iter();
        let failure = records.find(|record| record.drop == drop).unwrap().error;
        let failure = failure.unwrap();
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.to_text().contains(about), "{failure:?}");
    }
    assert_eq!(scene.simulator.calls("Login"), 0);
    exporter.stop();
    assert_secret(&site);
}
