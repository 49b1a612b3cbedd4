//! The model against what Linux does and what POSIX leaves open.
use std::path::Path;

use nix::errno::Errno;
use queue::durable::{self, HostVolume, Volume};

use super::{Disk, Fault, Process};

fn start() -> (Disk, Process) {
    let disk = Disk::default();
    let process = Process::start(&disk);
    for directory in ["/q", "/o"] {
        process.create_dir(Path::new(directory), 0o755).unwrap();
    }
    disk.settle();
    (disk, process)
}

/// The images after a crash, each as the sorted list of its paths and texts.
fn images(disk: &Disk) -> Vec<String> {
    let after = |crash| {
        let tree = disk.after(crash).tree().into_iter();
        let line =
            |(path, text): (std::path::PathBuf, String)| format!("{}={text}", path.display());
        tree.map(line)
            .filter(|line| !line.ends_with("=/"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut images: Vec<String> = disk.crashes().iter().map(after).collect();
    images.sort();
    images.dedup();
    images
}

#[test]
fn bytes_and_names_are_synced_apart() {
    let (disk, process) = start();
    process.write(Path::new("/q/a"), b"abcd").unwrap();
    assert_eq!(images(&disk), ["", "/q/a=", "/q/a=ab", "/q/a=abcd"]);
    process.sync(Path::new("/q")).unwrap();
    assert_eq!(images(&disk), ["/q/a=", "/q/a=ab", "/q/a=abcd"]);
    process.sync(Path::new("/q/a")).unwrap();
    assert_eq!(images(&disk), ["/q/a=abcd"]);
}

#[test]
fn a_rename_is_whole_and_needs_both_directories() {
    let (disk, process) = start();
    durable::replace(&process, Path::new("/q/a"), b"x").unwrap();
    process
        .rename(Path::new("/q/a"), Path::new("/o/a"))
        .unwrap();
    for directory in ["/o", "/q"] {
        assert_eq!(images(&disk), ["/o/a=x", "/q/a=x"]);
        process.sync(Path::new(directory)).unwrap();
    }
    assert_eq!(images(&disk), ["/o/a=x"]);
}

#[test]
fn what_is_in_a_directory_without_a_durable_name_is_out_of_reach() {
    let (disk, process) = start();
    durable::replace(&process, Path::new("/q/a"), b"x").unwrap();
    process.create_dir(Path::new("/q/d"), 0o755).unwrap();
    process
        .rename(Path::new("/q/a"), Path::new("/q/d/a"))
        .unwrap();
    process.sync(Path::new("/q/d")).unwrap();
    assert_eq!(images(&disk), ["/q/a=x", "/q/d/a=x"]);
    let fork = disk.fork();
    Process::start(&fork)
        .create_dir(Path::new("/o/d"), 0o755)
        .unwrap();
    let other = Process::start(&fork);
    other
        .rename(Path::new("/q/d/a"), Path::new("/o/d/a"))
        .unwrap();
    other.sync(Path::new("/o/d")).unwrap();
    other.sync(Path::new("/q/d")).unwrap();
    // Lost: the rename was forced, the directory that it leads to was not.
    assert!(images(&fork).contains(&String::new()));
    // Of changes that are not forced, none outlives what it builds on.
    process.sync(Path::new("/q")).unwrap();
    assert_eq!(images(&disk), ["/q/d/a=x"]);
}

#[test]
fn unforced_changes_are_lost_one_by_one_or_from_some_point_on() {
    let (disk, process) = start();
    for name in ["/q/1", "/o/2", "/q/3"] {
        process.write(Path::new(name), b"").unwrap();
    }
    let all = images(&disk);
    assert!(all.contains(&"/o/2= /q/1=".to_owned()) && all.contains(&"/o/2= /q/3=".to_owned()));
    process.sync(Path::new("/o")).unwrap();
    // Strictly only what was forced, although something older was not.
    assert!(images(&disk).contains(&"/o/2=".to_owned()));
    assert!(!images(&disk).contains(&"/q/1= /q/3=".to_owned()));
    assert!(disk.crashes()[0].loses_nothing());
}

#[test]
fn faults_strike_once_at_their_step() {
    let (disk, process) = start();
    process.fault_at(2, Fault::Fail(Errno::EIO));
    process.write(Path::new("/q/a"), b"abcd").unwrap();
    let error = process.write(Path::new("/q/b"), b"abcd").unwrap_err();
    assert_eq!(error.os_error(), Some(nix::libc::EIO));
    assert_eq!(disk.tree()[Path::new("/q/b")], "ab");
    process.fault_at(1, Fault::FailAfter(Errno::ENOENT));
    assert!(
        process
            .rename(Path::new("/q/a"), Path::new("/q/c"))
            .is_err()
    );
    assert!(process.stat(Path::new("/q/c")).unwrap().is_some());
    process.fault_at(1, Fault::KillAfter);
    let error = process
        .rename(Path::new("/q/c"), Path::new("/q/d"))
        .unwrap_err();
    assert!(Process::is_killed(&error) && process.is_dead());
    assert!(Process::is_killed(
        &process.stat(Path::new("/q/d")).unwrap_err()
    ));
    assert!(disk.tree().contains_key(Path::new("/q/d")));
}

#[test]
fn locks_die_with_their_process() {
    let (disk, first) = start();
    let second = Process::start(&disk);
    let path = Path::new("/q/lock");
    assert!(second.lock(path, false).unwrap().is_none());
    let held = first.lock(path, true).unwrap().unwrap();
    assert!(second.lock(path, true).unwrap().is_none());
    drop(held);
    let held = second.lock(path, false).unwrap().unwrap();
    second.kill();
    let held_by_first = first.lock(path, false).unwrap();
    assert!(held_by_first.is_some());
    drop(held);
    assert!(Process::start(&disk).lock(path, false).unwrap().is_none());
    let other = disk.clone();
    let third = Process::start(&disk);
    third.interrupt_at(1, move || {
        Process::start(&other)
            .write(Path::new("/q/x"), b"")
            .unwrap()
    });
    let error = third.write(Path::new("/q/x"), b"").unwrap_err();
    assert_eq!(error.os_error(), Some(nix::libc::EEXIST));
}

/// The same calls on the model and on the real file system end the same way.
#[test]
fn errors_are_those_of_the_host() {
    let top = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let model = Process::start(&disk);
    let real = |path: &str| top.path().join(path.trim_start_matches('/'));
    type Call = fn(&dyn Volume, &dyn Fn(&str) -> std::path::PathBuf) -> queue::error::Result<()>;
    let calls: &[Call] = &[
        |v, p| v.create_dir(&p("/a"), 0o755),
        |v, p| v.create_dir(&p("/a"), 0o755),
        |v, p| v.create_dir(&p("/b/c"), 0o755),
        |v, p| v.write(&p("/a/f"), b"1"),
        |v, p| v.write(&p("/a/f"), b"2"),
        |v, p| v.write(&p("/a/f/g"), b"2"),
        |v, p| v.rename(&p("/a/f"), &p("/a/f/g")),
        |v, p| v.rename(&p("/a"), &p("/a/g")),
        |v, p| v.rename(&p("/absent"), &p("/g")),
        |v, p| v.create_dir(&p("/d"), 0o755),
        |v, p| v.rename(&p("/a/f"), &p("/d")),
        |v, p| v.rename(&p("/d"), &p("/a/f")),
        |v, p| v.rename(&p("/d"), &p("/a")),
        |v, p| v.remove_dir(&p("/a")),
        |v, p| v.remove_file(&p("/a")),
        |v, p| v.remove_dir(&p("/a/f")),
        |v, p| v.remove_file(&p("/absent")),
        |v, p| v.symlink(Path::new("f"), &p("/a/l")),
        |v, p| v.symlink(Path::new("f"), &p("/a/l")),
        |v, p| v.read(&p("/a/l"), 9).map(|_| ()),
        |v, p| v.lock(&p("/a/l"), true).map(|_| ()),
        |v, p| v.exchange(&p("/a"), &p("/d")).map(|_| ()),
        |v, p| v.exchange(&p("/a"), &p("/absent")).map(|_| ()),
        |v, p| v.sync(&p("/absent")),
        |v, p| v.read_dir(&p("/absent")).map(|_| ()),
        |v, p| v.read_dir(&p("/d/f")).map(|_| ()),
        |v, p| v.rename_new(&p("/d/f"), &p("/a/g")).map(|_| ()),
        |v, p| v.rename(&p("/a"), &p("/d")),
        |v, p| durable::remove_tree(v, &p("/d")),
        |v, p| v.read_dir(&p("/d")).map(|_| ()),
    ];
    for (index, call) in calls.iter().enumerate() {
        let on_model = call(&model, &|path| path.into());
        let on_host = call(&HostVolume, &real);
        let told = |result: queue::error::Result<()>| result.map_err(|error| error.os_error());
        assert_eq!(told(on_model), told(on_host), "call {index}");
    }
}
