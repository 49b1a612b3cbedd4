//! hyperexport on a terminal without arguments: what it asks, what it comes to, and how it is left.
use std::path::Path;
use std::process::{Command, Stdio};

use hyper2kvm_tests::daemon::Site;
use hyper2kvm_tests::dialog::{CTRL_C, DOWN, Dialog, ENTER, ESC};
use hyper2kvm_tests::images::{qemu_img, text};
use hyper2kvm_tests::programs::program;
use hyper2kvm_tests::vcsim::{PASSWORD, USERNAME};
use hyper2kvm_tests::vsphere::{Scene, assert_nowhere};

/// A directory with one VM's disk.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for name in ["vms", "vms/web-01", "config"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("vms/web-01/web-01.raw"), vec![7; 1 << 16]).unwrap();
    place
}

/// hyperexport in that directory, on a terminal.
fn start(place: &Path) -> Dialog {
    let mut command = Command::new(program("hyperexport"));
    command
        .env("HYPER2KVM_CONFIG_DIR", place.join("config"))
        .env("XDG_STATE_HOME", place.join("state"))
        .current_dir(place);
    Dialog::start(command)
}

/// To the question of what becomes of the disks.
fn reach_disks(dialog: &mut Dialog) -> &mut Dialog {
    dialog
        .expect("Where does the VM come from?")
        .press(&format!("{DOWN}{ENTER}"))
        .expect("Path of the VM or of a datastore, or an address:")
        .press(&format!("vms{ENTER}"))
        .expect("What is to be done with its disks?")
}

/// To the last question of an export without a conversion.
fn reach_start(dialog: &mut Dialog) -> &mut Dialog {
    reach_disks(dialog)
        .press(&format!("{DOWN}{DOWN}{ENTER}"))
        .expect("Into which directory?")
        .press(&format!("out{ENTER}"))
        .expect("web-01: copy to out/web-01")
        .expect("disk-0 web-01.raw (raw, 65536 bytes)")
        .expect("The same as a command:")
        .expect("hyperexport --provider local --vm vms/web-01 --output out")
        .expect("Start?")
}

/// The cursor is there again, if it was ever hidden.
fn has_cursor(text: &str) -> bool {
    text.rfind("\x1b[?25l") <= text.rfind("\x1b[?25h")
}

fn is_untouched(place: &Path) -> bool {
    let mut names: Vec<String> = std::fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names == ["config", "vms"]
}

#[test]
fn the_answers_become_an_export() {
    let place = place();
    let mut dialog = start(place.path());
    reach_start(&mut dialog).press(ENTER);
    let (code, text) = dialog.end();
    assert_eq!(code, Some(0), "{text}");
    assert!(has_cursor(&text), "{text:?}");
    let out = place.path().join("out/web-01");
    assert_eq!(
        std::fs::read(out.join("web-01.raw")).unwrap(),
        vec![7; 1 << 16]
    );
    assert!(out.join("manifest.json").exists());

    // What it said is what does the same.
    let again = Command::new(program("hyperexport"))
        .args("--provider local --vm vms/web-01 --output again".split(' '))
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(again.status.success(), "{again:?}");
    let again = place.path().join("again/web-01/web-01.raw");
    assert_eq!(std::fs::read(again).unwrap(), vec![7; 1 << 16]);
}

#[test]
fn leaving_at_any_question_leaves_nothing() {
    type Step = fn(&mut Dialog) -> &mut Dialog;
    let steps: [Step; 4] = [
        |dialog| dialog.expect("Where does the VM come from?"),
        |dialog| {
            dialog
                .expect("Where does the VM come from?")
                .press(&format!("{DOWN}{ENTER}"))
                .expect("Path of the VM or of a datastore, or an address:")
        },
        reach_disks,
        reach_start,
    ];
    for (number, step) in steps.into_iter().enumerate() {
        for key in [ESC, CTRL_C] {
            let place = place();
            let mut dialog = start(place.path());
            step(&mut dialog);
            dialog.press(key);
            let (code, text) = dialog.end();
            assert_eq!(code, Some(1), "{number} {key:?}: {text}");
            assert!(text.contains("left; nothing was done"), "{number}: {text}");
            assert!(has_cursor(&text), "{number} {key:?}: {text:?}");
            assert!(is_untouched(place.path()), "{number} {key:?}");
        }
    }
}

#[test]
fn wrong_answers_are_asked_again() {
    let place = place();
    let mut dialog = start(place.path());
    dialog
        .expect("Where does the VM come from?")
        .press(&format!("{DOWN}{ENTER}"))
        .expect("Path of the VM or of a datastore, or an address:")
        .press(ENTER)
        .expect("an answer is needed")
        .press(&format!("nowhere{ENTER}"))
        .expect("list nowhere")
        .expect("Path of the VM or of a datastore, or an address:")
        .press(&format!("vms/web-01{ENTER}"))
        .expect("What is to be done with its disks?")
        .press(&format!("{DOWN}{ENTER}"))
        .expect("Define the VM in libvirt")
        .press(ENTER)
        .expect("convert with")
        .expect("hyperexport --provider local --vm vms/web-01 --pipeline")
        .expect("Start?")
        .press(&format!("n{ENTER}"));
    let (code, text) = dialog.end();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("left; nothing was done"), "{text}");
    assert!(is_untouched(place.path()));
}

#[test]
fn without_a_terminal_nobody_is_asked() {
    let output = Command::new(program("hyperexport"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--vm"));
}

/// hyperexport that knows of an instance `prod`, the one of the site.
fn start_beside(site: &Site) -> Dialog {
    let (top, directories) = (site.top.path(), &site.directories);
    std::fs::create_dir(top.join("etc")).unwrap();
    let config = format!(
        "watch_dir = {:?}\noutput_dir = {:?}\nwork_dir = {:?}\n",
        directories.queue, directories.output, directories.work
    );
    std::fs::write(top.join("etc/prod.toml"), config).unwrap();
    let mut command = Command::new(program("hyperexport"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HYPER2KVM_CONFIG_DIR", top.join("etc"))
        .env("XDG_STATE_HOME", top.join("state"));
    Dialog::start(command)
}

/// Answers what is asked of the server, the first two by these keys, up to the password.
fn name_server<'a>(
    dialog: &'a mut Dialog,
    scene: &Scene,
    [host, user]: [&str; 2],
) -> &'a mut Dialog {
    dialog
        .expect("vCenter or ESXi host:")
        .press(&format!("{host}{ENTER}"))
        .expect("User:")
        .press(&format!("{user}{ENTER}"))
        .expect("Its certificate is:")
        .press(&format!("{DOWN}{ENTER}"))
        .expect("Thumbprint (SHA-256 or SHA-1):")
        .press(&format!("{}{ENTER}", scene.simulator.thumbprint()))
        .expect(&format!("Password of {USERNAME} on 127.0.0.1: "))
}

/// A server, a wrong password, the right one, a VM from the list, an instance: its qcow2. Neither
/// password shows on the terminal, in an argument or in a file.
#[test]
fn a_vm_of_a_server_is_picked_and_converted() {
    let scene = Scene::new(Vec::new());
    let site = Site::new("[guest]\nfix = \"off\"\n");
    let daemon = site.start();
    let mut dialog = start_beside(&site);
    let address = &scene.proxy.address;
    dialog.expect("Where does the VM come from?").press(ENTER);
    name_server(&mut dialog, &scene, [address, USERNAME])
        .type_hidden("s3cret-wrong")
        .expect("InvalidLogin");
    // What was answered before is offered.
    name_server(&mut dialog, &scene, ["", ""])
        .type_hidden(PASSWORD)
        .expect("Which VM?")
        .press("web-0")
        .expect("web-02")
        .press(ENTER)
        .expect("What is to be done with its disks?");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", dialog.child.id())).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains("s3cret"));
    dialog
        .press(ENTER)
        .expect("Which instance?")
        .press(&format!("prod{ENTER}"))
        .expect("Define the VM in libvirt")
        .press(ENTER)
        .expect("for hyper2kvm@prod.service")
        .expect("The same as a command:")
        .expect(&format!(
            "--vcenter {address} --username {USERNAME} --thumbprint"
        ))
        .expect("--vm web-02 --hyper2kvm-daemon --hyper2kvm-instance prod")
        .expect("Start?")
        .press(ENTER);
    let (code, said) = dialog.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let result = site.link("web-02");
    assert!(said.contains("web-02.qcow2"), "{said}");
    let (original, result) = (scene.path("b.raw"), text(&result));
    qemu_img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        text(&original),
        result,
    ]);
    scene.simulator.assert_clean();
    daemon.stop();
    assert_nowhere("s3cret", site.top.path());
}
