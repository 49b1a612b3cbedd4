//! The guest's kernels, by their modules and the files in /boot that belong to them.
//!
//! Boot Loader Specification entries may have kernels of their own: `<token>/<version>/linux` and
//! `initrd`, which openSUSE gives a checksum and Debian the version in their names. One version
//! can have several initramfs there and one in /boot: each is told, as any of them may be started.
use super::appliance::Appliance;
use super::inspect::read_text;
use super::model::Kernel;
use crate::error::Result;

/// Where distributions put a kernel's image and initramfs; `{}` is its version, or what stands for
/// it.
const IMAGES: [&str; 4] = [
    "/boot/vmlinuz-{}",
    "/boot/vmlinux-{}",
    "/boot/kernel-{}",
    "/lib/modules/{}/vmlinuz",
];
const INITRAMFS: [&str; 5] = [
    "/boot/initrd.img-{}",
    "/boot/initramfs-{}.img",
    "/boot/initrd-{}.img",
    "/boot/initrd-{}",
    "/boot/initramfs-{}",
];

/// The directories of entries' kernels; `{}` is the token.
const ENTRIES: [&str; 3] = ["/boot/{}", "/efi/{}", "/boot/efi/{}"];

/// The kernels that have modules and an image, the oldest first; one for each initramfs.
pub fn list(appliance: &mut Appliance<'_>) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    if !appliance.flag("is_dir", &["/lib/modules/"])? {
        return Ok(kernels);
    }
    let mut versions = appliance.list("ls", &["/lib/modules/"])?;
    versions.sort_by_key(|version| sort_key(version));
    let tokens = tokens(|path| read_text(appliance, path))?;
    for version in versions {
        let names = names(&version, |path| read_text(appliance, path))?;
        let mut files = Vec::new();
        for directory in entries(&tokens, &version) {
            if appliance.flag("is_dir", &[&directory])? {
                let found = appliance.list("ls", &[&directory])?.into_iter();
                files.extend(found.map(|name| format!("{directory}{name}")));
            }
        }
        let image = first_that_is(appliance, &paths(&IMAGES, &names))?;
        let Some(image) = image.or_else(|| called("linux", &files).into_iter().next()) else {
            continue;
        };
        let mut all: Vec<_> = called("initrd", &files).into_iter().map(Some).collect();
        let usual = first_that_is(appliance, &paths(&INITRAMFS, &names))?;
        if usual.is_some() || all.is_empty() {
            all.push(usual);
        }
        kernels.extend(all.into_iter().map(|initramfs| Kernel {
            initramfs,
            modules: format!("/lib/modules/{version}"),
            version: version.clone(),
            image: image.clone(),
            drivers: Vec::new(),
        }));
    }
    Ok(kernels)
}

/// What the directories of entries' kernels may be called by.
fn tokens(mut read: impl FnMut(&str) -> Result<String>) -> Result<Vec<String>> {
    let mut tokens = Vec::new();
    for path in ["/etc/kernel/entry-token", "/etc/machine-id"] {
        tokens.push(read(path)?.trim().to_owned());
    }
    Ok(tokens)
}

fn entries(tokens: &[String], version: &str) -> Vec<String> {
    let all = paths(&ENTRIES, tokens).into_iter();
    all.map(|directory| format!("{directory}/{version}/"))
        .collect()
}

/// The files with that name, whatever is added to it.
fn called(stem: &str, files: &[String]) -> Vec<String> {
    let is_called = |path: &&String| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let rest = name.strip_prefix(stem);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    };
    files.iter().filter(is_called).cloned().collect()
}

/// What stands for a kernel in the names of its files: its version; Arch's package, which the
/// modules tell; Alpine's flavour, whose release must be this one.
fn names(version: &str, mut read: impl FnMut(&str) -> Result<String>) -> Result<Vec<String>> {
    let package = read(&format!("/lib/modules/{version}/pkgbase"))?;
    let mut names = vec![version.to_owned(), package.trim().to_owned()];
    if let Some((_, flavour)) = version.rsplit_once('-') {
        let release = format!("/usr/share/kernel/{flavour}/kernel.release");
        if read(&release)?.trim() == version {
            names.push(flavour.to_owned());
        }
    }
    Ok(names)
}

/// Every name in every place; what is no single name is in none.
fn paths(places: &[&str], names: &[String]) -> Vec<String> {
    let is_name = |name: &&String| !name.is_empty() && !name.contains('/');
    let of_place = |place: &&str| {
        let all = names.iter().filter(is_name);
        all.map(|name| place.replace("{}", name))
            .collect::<Vec<_>>()
    };
    places.iter().flat_map(of_place).collect()
}

fn first_that_is(appliance: &mut Appliance<'_>, paths: &[String]) -> Result<Option<String>> {
    for path in paths {
        if appliance.flag("exists", &[path])? {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

/// Numbers in a version compare as numbers.
fn sort_key(version: &str) -> Vec<(u64, String)> {
    let parts = version.split(|c: char| !c.is_ascii_alphanumeric());
    parts
        .map(|part| (part.parse().unwrap_or(0), part.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::model::Guest;

    #[test]
    fn a_kernel_has_the_initramfs_that_its_system_calls_it_by() {
        let files = [
            ("/lib/modules/6.12.8-arch1-1/pkgbase", "linux\n"),
            ("/usr/share/kernel/lts/kernel.release", "6.6.69-0-lts\n"),
            ("/lib/modules/6.1-evil/pkgbase", "../../etc/x"),
        ];
        let read = |path: &str| {
            let found = files.iter().find(|(name, _)| *name == path);
            Ok(found
                .map(|(_, text)| (*text).to_owned())
                .unwrap_or_default())
        };
        for (version, initramfs) in [
            ("6.1.0-30-amd64", "/boot/initrd.img-6.1.0-30-amd64"),
            ("6.12.8-arch1-1", "/boot/initramfs-linux.img"),
            ("6.6.69-0-lts", "/boot/initramfs-lts"),
        ] {
            let paths = paths(&INITRAMFS, &names(version, read).unwrap());
            assert!(paths.iter().any(|path| path == initramfs), "{paths:?}");
            assert!(paths[0].ends_with(version), "{paths:?}");
        }
        // Its modules are left from before an update: the image is another's.
        for version in ["6.6.60-0-lts", "6.1-evil"] {
            let paths = paths(&["/boot/vmlinuz-{}"], &names(version, read).unwrap());
            assert_eq!(paths, [format!("/boot/vmlinuz-{version}")]);
        }
    }

    #[test]
    fn every_samples_kernels_are_where_they_are_looked_for() {
        let top = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest/linux/samples");
        for entry in std::fs::read_dir(top).unwrap() {
            let folder = entry.unwrap().path();
            let facts = std::fs::read(folder.join("guest.json")).unwrap();
            let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
            let guest: Guest = serde_json::from_value(facts["guest"].clone()).unwrap();
            let read = |path: &str| {
                let file = folder.join("before").join(path.trim_start_matches('/'));
                Ok(std::fs::read_to_string(file).unwrap_or_default())
            };
            for kernel in guest.kernels {
                let names = names(&kernel.version, read).unwrap();
                let (images, mut initramfs) = (paths(&IMAGES, &names), paths(&INITRAMFS, &names));
                let beside: Vec<String> = kernel.initramfs.iter().cloned().collect();
                let entries = entries(&tokens(read).unwrap(), &kernel.version);
                initramfs.extend(called("initrd", &beside).into_iter().filter(|path| {
                    let (folder, _) = path.rsplit_once('/').unwrap();
                    entries.contains(&format!("{folder}/"))
                }));
                assert!(images.contains(&kernel.image), "{folder:?}: {images:?}");
                let wanted = kernel.initramfs.unwrap_or_else(|| initramfs[0].clone());
                assert!(initramfs.contains(&wanted), "{wanted}: {initramfs:?}");
                assert_eq!(kernel.modules, format!("/lib/modules/{}", kernel.version));
            }
        }
    }

    #[test]
    fn an_entrys_kernel_is_beneath_its_token() {
        let read = |path: &str| {
            let found = path == "/etc/kernel/entry-token";
            Ok(if found { "tumbleweed\n" } else { "" }.to_owned())
        };
        let entries = entries(&tokens(read).unwrap(), "6.17.9-1-default");
        let [boot, efi, esp] =
            ["/boot", "/efi", "/boot/efi"].map(|top| format!("{top}/tumbleweed/6.17.9-1-default/"));
        assert_eq!(entries, [boot, efi, esp]);
        let files = [
            "a/linux-0a1b",
            "a/initrd",
            "a/initrd-2c3d",
            "a/initrd.img-6.1",
        ];
        let files = files.map(str::to_owned);
        assert_eq!(called("linux", &files), files[..1]);
        assert_eq!(called("initrd", &files), files[1..]);
        let others = ["a/initrdx", "a/microcode", "a/linuxes", "initrd/x"].map(str::to_owned);
        assert!(called("initrd", &others).is_empty() && called("linux", &others).is_empty());
    }

    #[test]
    fn versions_sort_as_people_count() {
        let mut versions = vec!["6.1.0-10-amd64", "6.1.0-9-amd64", "5.10.0-30-amd64"];
        versions.sort_by_key(|version| sort_key(version));
        assert_eq!(
            versions,
            ["5.10.0-30-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64"]
        );
    }
}
