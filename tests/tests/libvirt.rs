//! Published VMs become domains of a real libvirtd: by themselves, by request, once.
#![allow(clippy::unwrap_used, clippy::panic)] // a panic is how a test fails
use std::process::{Command, Output};

use hyper2kvm_tests::daemon::{Site, names};
use hyper2kvm_tests::guest::validate;
use hyper2kvm_tests::images;
use hyper2kvm_tests::libvirt::Libvirt;
use hyper2kvm_tests::programs;
use nix::sys::signal::Signal;
use queue::job::{DefineState, Definition, JobState, Record};

fn site(libvirt: &Libvirt, define: bool) -> Site {
    let uri = libvirt.uri();
    let config = format!(
        "rescan_seconds = 1\n[guest]\nfix = \"off\"\n\
         [libvirt]\ndefine = {define}\nuri = \"{uri}\"\n"
    );
    let mut site = Site::new(&config);
    site.prefer_programs(&libvirt.programs());
    site
}

/// The newest record of a VM.
fn record(site: &Site, vm: &str) -> Option<Record> {
    let mut records = site.records();
    records.retain(|record| record.vm_name == vm);
    records.pop()
}

fn told(site: &Site, vm: &str) -> Option<Definition> {
    let told = record(site, vm)?.libvirt?;
    (told.state != DefineState::Pending).then_some(told)
}

fn hyperctl(site: &Site, arguments: &[&str]) -> Output {
    let mut command = Command::new(programs::program("hyperctl"));
    command.args(arguments);
    command.arg("--watch-dir").arg(&site.directories.queue);
    command.arg("--output-dir").arg(&site.directories.output);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_published_vm_is_defined_and_runs() {
    let top = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&top.path().join("libvirt"));
    let site = site(&libvirt, true);
    let disk = images::edges(top.path());
    let mut daemon = site.start();
    site.deliver(&disk, "web 01.raw");
    daemon.wait(60, "libvirt answers", || told(&site, "web 01").is_some());
    let definition = told(&site, "web 01").unwrap();
    assert_eq!(definition.state, DefineState::Defined, "{definition:?}");
    assert_eq!(definition.uri, libvirt.uri());
    assert_eq!(libvirt.domains(), ["web 01"]);
    let domain = site.directories.output.join("web 01/domain.xml");
    validate(&domain);
    let uuid = libvirt.virsh(&["domuuid", "web 01"]);
    assert!(std::fs::read_to_string(&domain).unwrap().contains(&uuid));

    // What is defined starts, with the disk that was published.
    libvirt.virsh(&["start", "web 01"]);
    assert_eq!(libvirt.virsh(&["domstate", "web 01"]), "running");
    let disks = libvirt.virsh(&["domblklist", "web 01"]);
    let image = site.directories.output.join("web 01/web 01.qcow2");
    assert!(disks.contains(image.to_str().unwrap()), "{disks}");
    libvirt.virsh(&["destroy", "web 01"]);

    // Once more by request: nothing changes.
    let before = libvirt.virsh(&["dumpxml", "--inactive", "web 01"]);
    let output = hyperctl(&site, &["import", "--vm", "web 01"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said, format!("web 01: defined at {}\n", libvirt.uri()));
    assert_eq!(libvirt.virsh(&["dumpxml", "--inactive", "web 01"]), before);

    // The same VM again is the same domain.
    site.deliver(&disk, "web 01.raw");
    daemon.wait(60, "the second one", || {
        site.count(JobState::Completed) == 2 && told(&site, "web 01").is_some()
    });
    let again = told(&site, "web 01").unwrap();
    assert_eq!(again.state, DefineState::Defined, "{again:?}");
    assert_eq!(libvirt.domains(), ["web 01"]);
    assert_eq!(libvirt.virsh(&["domuuid", "web 01"]), uuid);
    let first = site.records()[0].job_id.to_string();
    let output = hyperctl(&site, &["import", "--job", &first]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("a later one replaced it"), "{said}");
    libvirt.virsh(&["undefine", "web 01"]);
    daemon.stop();
}

#[test]
fn a_name_that_is_taken_is_left_and_told() {
    let top = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&top.path().join("libvirt"));
    let other = "<domain type='qemu'><name>42</name><memory>8192</memory>\
                 <os><type>hvm</type></os></domain>";
    let path = top.path().join("other.xml");
    std::fs::write(&path, other).unwrap();
    libvirt.virsh(&["define", path.to_str().unwrap()]);
    let before = libvirt.virsh(&["dumpxml", "42"]);

    let site = site(&libvirt, true);
    let disk = images::edges(top.path());
    let mut daemon = site.start();
    site.deliver(&disk, "42.raw");
    daemon.wait(60, "libvirt answers", || told(&site, "42").is_some());
    let definition = told(&site, "42").unwrap();
    assert_eq!(definition.state, DefineState::NameTaken, "{definition:?}");
    assert_eq!(libvirt.virsh(&["dumpxml", "42"]), before);
    // The conversion is none the worse for it.
    assert_eq!(record(&site, "42").unwrap().state, JobState::Completed);
    assert!(site.link("42").exists() && !site.error("42").exists());
    let shown = text(&hyperctl(&site, &["status", "--vm", "42"]).stdout);
    assert!(shown.contains("the name is taken"), "{shown}");
    assert!(shown.contains("rename or undefine that domain"), "{shown}");
    let output = hyperctl(&site, &["import", "--vm", "42"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("another domain"), "{said}");

    // With the name free, the request does it.
    libvirt.virsh(&["undefine", "42"]);
    let output = hyperctl(&site, &["import", "--vm", "42", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["request"], "import");
    assert_eq!(json["job"]["libvirt"]["state"], "defined");
    assert_eq!(libvirt.domains(), ["42"]);
    assert_eq!(names(&site.directories.control()), Vec::<String>::new());
    daemon.stop();
}

/// A libvirt that hangs holds up no job; what it was not told is told after a crash.
#[test]
fn a_crash_before_the_answer_is_made_good() {
    let top = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&top.path().join("libvirt"));
    let site = site(&libvirt, true);
    let disk = images::edges(top.path());
    let mut daemon = site.start();
    libvirt.signal(Signal::SIGSTOP);
    site.deliver(&disk, "first.raw");
    daemon.wait(60, "the first is published", || site.link("first").exists());
    site.deliver(&disk, "second.raw");
    daemon.wait(60, "the second is published", || {
        site.link("second").exists()
    });
    assert_eq!(names(&site.directories.control()).len(), 2);
    daemon.kill();
    libvirt.signal(Signal::SIGCONT);
    assert!(libvirt.domains().is_empty());

    let mut daemon = site.start();
    for vm in ["first", "second"] {
        daemon.wait(90, "libvirt answers", || told(&site, vm).is_some());
        let definition = told(&site, vm).unwrap();
        assert_eq!(definition.state, DefineState::Defined, "{definition:?}");
    }
    assert_eq!(libvirt.domains(), ["first", "second"]);
    assert_eq!(names(&site.directories.control()), Vec::<String>::new());
    daemon.stop();
}

/// What was not asked for at first is asked for later; what is not published is refused.
#[test]
fn a_vm_is_imported_later_on_request() {
    let top = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&top.path().join("libvirt"));
    let site = site(&libvirt, false);
    let mut daemon = site.start();
    site.deliver(&images::edges(top.path()), "quiet.raw");
    let broken = top.path().join("broken.vmdk");
    std::fs::write(&broken, images::noise(1, 70_000)).unwrap();
    site.deliver(&broken, "broken.vmdk");
    daemon.wait(60, "both have ended", || {
        site.link("quiet").exists() && site.error("broken").exists()
    });
    assert_eq!(record(&site, "quiet").unwrap().libvirt, None);
    assert!(libvirt.domains().is_empty());
    let output = hyperctl(&site, &["import", "--vm", "quiet"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(libvirt.domains(), ["quiet"]);
    let output = hyperctl(&site, &["import", "--vm", "broken"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("only a published VM"), "{said}");
    assert_eq!(
        hyperctl(&site, &["import", "--vm", "nobody"]).status.code(),
        Some(2)
    );
    daemon.stop();
    let output = hyperctl(&site, &["import", "--vm", "quiet"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
}

/// With the daemon by its request, without it by `hyper2kvm convert`: one and the same domain.
#[test]
fn one_command_defines_what_it_exports() {
    let top = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&top.path().join("libvirt"));
    let site = site(&libvirt, false);
    let vms = top.path().join("web");
    std::fs::create_dir(&vms).unwrap();
    std::fs::copy(images::edges(top.path()), vms.join("web.raw")).unwrap();
    let export = || {
        let mut command = site.hyperexport();
        command.arg("--vm").arg(&vms).arg("--libvirt");
        command.output().unwrap()
    };
    let daemon = site.start();
    let output = export();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(libvirt.domains(), ["web"]);
    let uuid = libvirt.virsh(&["domuuid", "web"]);
    let told = told(&site, "web").unwrap();
    assert_eq!(told.state, DefineState::Defined, "{told:?}");
    daemon.stop();

    libvirt.virsh(&["undefine", "web"]);
    let output = export();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("is not running"), "{said}");
    assert_eq!(libvirt.domains(), ["web"]);

    // A name that another domain has is left to that one.
    libvirt.virsh(&["undefine", "web"]);
    std::fs::remove_dir_all(site.directories.output.join("web")).unwrap();
    let other = "<domain type='qemu'><name>web</name><memory>8192</memory>\
                 <os><type>hvm</type></os></domain>";
    let xml = top.path().join("other.xml");
    std::fs::write(&xml, other).unwrap();
    libvirt.virsh(&["define", xml.to_str().unwrap()]);
    let mut daemon = Some(site.start());
    for is_running in [true, false] {
        let output = export();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("web is converted, but not defined"), "{said}");
        assert!(said.contains("rename or undefine that domain"), "{said}");
        assert_eq!(said.contains("is not running"), !is_running, "{said}");
        assert_ne!(libvirt.virsh(&["domuuid", "web"]), uuid);
        if let Some(daemon) = daemon.take() {
            daemon.stop();
        }
    }
}
