//! `hyper2kvm verify`: reads an image again and holds it against its metadata.json.
use std::path::Path;
use std::process::ExitCode;

use converter::convert;
use converter::convert::metadata::Metadata;
use converter::error::{Error, ErrorKind, Result};

use crate::args::VerifyArgs;
use crate::output;
use crate::progress::{Interrupt, Progress};

pub fn run(args: &VerifyArgs) -> ExitCode {
    match verify(args) {
        Ok((digest, stated)) => {
            let compared = stated.is_some();
            if args.json {
                let image = &args.image;
                let verdict = serde_json::json!({
                    "image": image, "digest": digest, "compared": compared });
                output::json(&verdict);
            } else if compared {
                output::line(&format!("{}: as converted, {digest}", args.image.display()));
            } else {
                let image = args.image.display();
                output::line(&format!(
                    "{image}: {digest}, with nothing to compare it with"
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => output::trouble(&error, args.json, output::FAILED),
    }
}

/// The image's digest and, if there is metadata, the equal one that it states.
fn verify(args: &VerifyArgs) -> Result<(String, Option<String>)> {
    // The link that stands for a result leads to its directory.
    let image = args
        .image
        .canonicalize()
        .map_err(|error| Error::io("find", &args.image, error))?;
    let stated = stated_digest(args, &image)?;
    let interrupt = Interrupt::listen()?;
    let disk = convert::reopen(&image)?;
    let progress = Progress::new(disk.allocated_bytes, args.json, &interrupt);
    let digest = convert::digest(&disk, 0, &progress)?;
    drop(progress);
    match stated {
        Some(stated) if stated != digest => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{}: the content is {digest}, not {stated}", image.display()),
        )
        .with_remedy("the image was changed since its conversion; convert it again")),
        stated => Ok((digest, stated)),
    }
}

fn stated_digest(args: &VerifyArgs, image: &Path) -> Result<Option<String>> {
    let beside = image.with_file_name("metadata.json");
    let path = match &args.metadata {
        Some(path) => path,
        None if beside.exists() => &beside,
        None => return Ok(None),
    };
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let metadata = Metadata::parse(&bytes)?;
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let disk = metadata.disks.into_iter().find(|disk| disk.file == name);
    // A digest may not have been asked for: then there is nothing to compare with.
    disk.map(|disk| disk.digest).ok_or_else(|| {
        Error::invalid(format!("{} does not speak of {name:?}", path.display()))
            .with_remedy("give the metadata.json that was published with the image")
    })
}
