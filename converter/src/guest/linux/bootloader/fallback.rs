//! The path that UEFI firmware starts when it remembers no loader: `EFI/BOOT/BOOTX64.EFI` of the
//! EFI system partition. A converted machine's firmware remembers none.
//!
//! A shim starts the GRUB beside it, whose own prefix leads it back to its menu. SUSE's have no
//! architecture in their names, and its signed GRUB has no prefix: it reads the `grub.cfg` beside
//! it, which leads to the menu.

/// The vendor's loader to copy where the fallback is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Relative to the top of the EFI system partition.
    pub from: String,
    pub to: String,
}

/// `files` are the paths below the partition's top, in any order and case.
pub fn missing(files: &[String], arch: &str) -> Vec<Copy> {
    let suffix = match arch {
        "x86_64" | "amd64" => "x64",
        "aarch64" | "arm64" => "aa64",
        "i386" | "i486" | "i586" | "i686" => "ia32",
        _ => return Vec::new(),
    };
    let fallback = format!("efi/boot/boot{suffix}.efi");
    let is_there = |path: &str| files.iter().any(|file| file.eq_ignore_ascii_case(path));
    if is_there(&fallback) {
        return Vec::new();
    }
    let mut loaders: Vec<&String> = files.iter().filter(|file| is_vendor(file)).collect();
    loaders.sort();
    let named = |name: &str| {
        let mut found = loaders.iter();
        found
            .find(|file| file_name(file).eq_ignore_ascii_case(name))
            .copied()
    };
    let beside = |loader: &str, name: &str| {
        let folder = loader.rsplit_once('/').map_or("", |(folder, _)| folder);
        let wanted = format!("{folder}/{name}");
        let mut found = loaders.iter();
        found
            .find(|file| file.eq_ignore_ascii_case(&wanted))
            .copied()
    };
    let place = |from: &str, name: &str| Copy {
        from: from.to_owned(),
        to: format!("EFI/BOOT/{name}"),
    };
    let boot = format!("BOOT{}.EFI", suffix.to_ascii_uppercase());
    let of_arch = |stem: &str| format!("{stem}{suffix}.efi");
    if let Some(shim) = named(&of_arch("shim")).or_else(|| named("shim.efi")) {
        let is_of_arch = file_name(shim).eq_ignore_ascii_case(&of_arch("shim"));
        let fellows = if !is_of_arch && beside(shim, "grub.efi").is_some() {
            ["grub.efi", "MokManager.efi", "grub.cfg"].map(str::to_owned)
        } else {
            [of_arch("grub"), of_arch("mm"), "MokManager.efi".to_owned()]
        };
        let mut copies = Vec::new();
        for name in &fellows {
            if let Some(found) = beside(shim, name) {
                copies.push(place(found, name));
            }
        }
        // The last is the one by which the next run sees that all is there.
        copies.push(place(shim, &boot));
        return copies;
    }
    let loader = named(&of_arch("grub")).or_else(|| named(&of_arch("systemd-boot")));
    loader
        .map(|loader| place(loader, &boot))
        .into_iter()
        .collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// A file in a folder of its vendor: `EFI/debian/grubx64.efi`.
fn is_vendor(path: &str) -> bool {
    let mut parts = path.split('/');
    let top = parts.next().unwrap_or_default();
    let vendor = parts.next().unwrap_or_default();
    top.eq_ignore_ascii_case("efi")
        && !matches!(
            vendor.to_ascii_lowercase().as_str(),
            "boot" | "microsoft" | ""
        )
        && parts.next().is_some()
        && parts.next().is_none()
}
