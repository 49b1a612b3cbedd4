//! A manifest's disk that is converted while it arrives, and how it becomes a disk like any other.
use std::path::Path;
use std::sync::Arc;

use queue::job::manifest::Disk;
use queue::roots::Roots;

use super::arriving::{Arriving, Patient, Whole};
use super::vmdk::stream::{Stream, Trail};
use super::{SourceDisk, Unpacker, file_name, vmdk};
use crate::disk::{
    Algorithm, Checksum, Image, MAX_CAPACITY_BYTES, Observer, Waiter, Window, corrupt,
};
use crate::error::{Error, ErrorKind, Result};

/// How a growing disk is to be read.
pub(super) enum Opening {
    Streamed(Box<SourceDisk>),
    /// It is whole already, or had to be first.
    Whole(Window, Whole),
}

pub(super) struct Growing {
    stream: Arc<Stream>,
    /// Whether what is stated of the whole file is verified.
    checks: bool,
    /// By the manifest, of the whole file.
    stated: Vec<Checksum>,
}

/// What became of a disk that was streamed.
#[derive(Debug, PartialEq, Eq)]
pub enum Completed {
    /// The whole file is what was streamed.
    AsStreamed,
    /// It has to be converted as any other, for this reason.
    Otherwise(String),
}

/// Opens a disk of `manifest` that is said to grow.
pub(super) fn open(
    roots: &Roots,
    manifest: &Path,
    named: &Disk,
    checks: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Opening> {
    let (file, path) = roots.open_reference(manifest, &named.local_path)?;
    let folder = roots.folder_of(&path)?;
    let arriving = Arriving::new(file, &path, folder, unpacker.patience)?;
    let observer = unpacker.observer;
    let waiter = Patient(observer);
    if let Some(whole) = arriving.look_for_end()? {
        return Ok(Opening::Whole(arriving.whole_window()?, whole));
    }
    observer.follow(true);
    observer.tell(&format!("{} still arrives", named.local_path));
    let is_vmdk = named.source_format.eq_ignore_ascii_case("vmdk");
    let opened = match is_vmdk {
        true => Stream::open(arriving, &waiter)?,
        false => Err(arriving),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(arriving) => {
            observer.tell(&format!("{} has to be whole first", named.local_path));
            let whole = wait_for_end(&arriving, observer)?;
            return Ok(Opening::Whole(arriving.whole_window()?, whole));
        }
    };
    let stated = named.checksum.as_deref();
    let stated = stated.filter(|text| checks && !text.is_empty());
    let parse = |text| {
        let window = &stream.arriving().window()?;
        super::manifest::parse_checksum(text, window, &file_name(manifest), &named.id)
    };
    let stated = stated.map(parse).transpose()?.into_iter().collect();
    let format = format!("vmdk ({})", super::content::shown(stream.create_type()));
    let expected_bytes = named.bytes.min(MAX_CAPACITY_BYTES);
    let arrived_bytes = stream.arriving().length_bytes();
    let stream = Arc::new(stream);
    let image = Box::new(Arc::clone(&stream));
    let mut disk = SourceDisk::new(&file_name(&path), format, image);
    disk.source_bytes = arrived_bytes;
    disk.allocated_bytes = arrived_bytes.max(expected_bytes);
    disk.bus.clone_from(&named.bus);
    disk.boot_order = named.boot_order_hint;
    disk.growing = Some(Growing {
        stream,
        checks,
        stated,
    });
    Ok(Opening::Streamed(Box::new(disk)))
}

fn wait_for_end(arriving: &Arriving, observer: &dyn Observer) -> Result<Whole> {
    let whole = arriving.wait_for_end(&Patient(observer))?;
    observer.follow(false);
    whole.ok_or_else(|| Error::new(ErrorKind::Internal, "a wait that nobody ended was given up"))
}

impl SourceDisk {
    /// Whether it still arrives: its map is not known before `complete`.
    pub fn is_growing(&self) -> bool {
        self.growing.is_some()
    }

    /// What has arrived of a growing disk is hashed by whoever follows it, if that is wanted.
    pub(crate) fn read_hash(&self, waiter: &dyn Waiter) -> Result<()> {
        match &self.growing {
            Some(growing) if growing.checks => growing.stream.read_hash(waiter),
            _ => Ok(()),
        }
    }

    /// Whether a growing disk was found not to be a stream after all.
    pub(crate) fn is_irregular(&self) -> bool {
        let growing = self.growing.as_ref();
        growing.is_some_and(|growing| growing.stream.irregular().is_some())
    }

    /// Waits until a growing disk is whole; from then on it is a disk like any other. Tells
    /// whether what was streamed of it is what it holds.
    pub fn complete(&mut self, observer: &dyn Observer) -> Result<Completed> {
        let Some(growing) = &self.growing else {
            return Ok(Completed::AsStreamed);
        };
        let arriving = growing.stream.arriving();
        let whole = wait_for_end(arriving, observer)?;
        let window = arriving.whole_window()?;
        let path = window.path().to_path_buf();
        let lookup = |name: &str| Err(corrupt(&path, format!("it names another file, {name:?}")));
        let (image, _) = vmdk::open(window.clone(), &lookup)?;
        let completed = growing.compare(image.as_ref(), observer)?;
        let mut checksums = growing.stated.clone();
        for checksum in &mut checksums {
            checksum.window = window.clone();
        }
        if growing.checks {
            checksums.extend(whole.checksum(&window)?);
        }
        if completed == Completed::AsStreamed {
            growing.verify(&checksums, observer)?;
            checksums.clear();
        }
        self.capacity_bytes = image.capacity_bytes();
        self.source_bytes = window.length_bytes();
        self.allocated_bytes = window.allocated_bytes();
        self.image = image;
        self.checksums = checksums;
        self.growing = None;
        Ok(completed)
    }
}

impl Growing {
    fn compare(&self, image: &dyn Image, observer: &dyn Observer) -> Result<Completed> {
        if let Some(why) = self.stream.irregular() {
            return Ok(Completed::Otherwise(why.to_owned()));
        }
        let Some(streamed) = self.stream.trail() else {
            return Ok(Completed::Otherwise(
                "it was not read to its end".to_owned(),
            ));
        };
        let patient = Patient(observer);
        let told = Trail::of(image, &|| patient.go_on(0))?;
        let is_same = told.is(&streamed) && image.capacity_bytes() == self.stream.capacity_bytes();
        Ok(match is_same {
            true => Completed::AsStreamed,
            false => Completed::Otherwise("its grain tables name other grains".to_owned()),
        })
    }

    /// What was hashed while it arrived need not be read again.
    fn verify(&self, checksums: &[Checksum], observer: &dyn Observer) -> Result<()> {
        let patient = Patient(observer);
        for checksum in checksums {
            match self.stream.hash() {
                Some(hash) if checksum.algorithm == Algorithm::Blake3 => {
                    checksum.check(hash.to_hex().as_str())?;
                }
                _ => checksum.verify(&|| patient.go_on(0).is_ok())?,
            }
        }
        patient.go_on(0).map(|_| ())
    }
}
