//! Conversions that are interrupted: whatever is left of one, the next gives the same bytes, and
//! does again only what was not durable.
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::convert::resume::Resume;

/// One disk, its target and its journal, and a file system that loses what was not synced.
struct Site {
    dir: tempfile::TempDir,
    unpacked: Arc<AtomicU64>,
    disk: SourceDisk,
    plan: Plan,
    synced: Mutex<Synced>,
}

#[derive(Default)]
struct Synced {
    image: Vec<u8>,
    /// As it was when a journal that may speak of it became durable.
    durable: Vec<u8>,
}

impl Site {
    fn new(plan: Plan) -> Self {
        let unpacked = Arc::new(AtomicU64::new(0));
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[0; 4096]).unwrap();
        let image = Fake {
            files: [Window::whole(file, Path::new("fake")).unwrap()],
            capacity_bytes: (BLOCKS + 3) * BLOCK_BYTES,
            fault: Fault::None,
            unpacked: unpacked.clone(),
        };
        let disk = SourceDisk::new("fake", "fake".to_owned(), Box::new(image));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("staging")).unwrap();
        Self {
            dir,
            unpacked,
            disk,
            plan,
            synced: Mutex::default(),
        }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("staging/out")
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journals/out.journal")
    }

    fn sync(&self, path: &Path) -> Result<()> {
        let mut synced = self.synced.lock().unwrap();
        if path == self.image() {
            synced.image = std::fs::read(path).unwrap();
        } else if path == self.journal() {
            synced.durable = synced.image.clone();
        }
        Ok(())
    }

    fn attempt(&self, observer: &dyn Observer) -> Result<DiskReport> {
        self.attempt_with(observer, "journals", &|path| self.sync(path))
    }

    fn attempt_with(
        &self,
        observer: &dyn Observer,
        journals: &str,
        sync: &(dyn Fn(&Path) -> Result<()> + Sync),
    ) -> Result<DiskReport> {
        let resume = Resume {
            directory: self.dir.path().join(journals),
            every_bytes: 1 << 20,
            has_more: false,
            sync,
        };
        self.unpacked.store(0, Ordering::Relaxed);
        copy_on(&self.disk, &self.image(), &self.plan, &resume, observer)
    }

    /// An attempt that ends after `after` batches and a checkpoint, without a last one.
    fn crash(&self, after: u64) {
        let ended = self.attempt(&Ending::crash(after, self));
        assert_eq!(ended.unwrap_err().kind, ErrorKind::Cancelled);
    }

    fn has_checkpoint(&self) -> bool {
        !self.synced.lock().unwrap().durable.is_empty()
    }

    /// What was never synced is lost, as garbage of the same length.
    fn lose_power(&self) {
        let length = std::fs::metadata(self.image()).unwrap().len() as usize;
        let mut left = self.synced.lock().unwrap().durable.clone();
        left.resize(length, 0xa5);
        std::fs::write(self.image(), left).unwrap();
    }

    /// The same in one go.
    fn whole(&self) -> (Vec<u8>, DiskReport) {
        let target = self.dir.path().join("whole");
        let report = copy(&self.disk, &target, &self.plan, &Unobserved).unwrap();
        let bytes = std::fs::read(&target).unwrap();
        std::fs::remove_file(&target).unwrap();
        (bytes, report)
    }

    fn check(&self, report: &DiskReport) {
        let (bytes, whole) = self.whole();
        let found = std::fs::read(self.image()).unwrap();
        let differs = found.iter().zip(&bytes).position(|(a, b)| a != b);
        let lengths = (found.len(), bytes.len());
        assert_eq!((differs, lengths.0), (None, lengths.1), "{:?}", self.plan);
        let resumed_bytes = report.resumed_bytes;
        assert_eq!(
            *report,
            DiskReport {
                resumed_bytes,
                ..whole
            }
        );
    }
}

/// Ends the work after so many batches, if at all; hears what is told.
struct Ending<'a> {
    asked: AtomicU64,
    after: u64,
    /// Whose checkpoint is waited for.
    site: Option<&'a Site>,
    pauses: bool,
    advanced: AtomicU64,
    resumed: AtomicU64,
    told: Mutex<Vec<String>>,
}

impl<'a> Ending<'a> {
    fn new(after: u64, pauses: bool) -> Self {
        Self {
            asked: 0.into(),
            after,
            site: None,
            pauses,
            advanced: 0.into(),
            resumed: 0.into(),
            told: Mutex::default(),
        }
    }

    fn crash(after: u64, site: &'a Site) -> Self {
        Self {
            site: Some(site),
            ..Self::new(after, false)
        }
    }

    fn never() -> Self {
        Self::new(u64::MAX, false)
    }

    fn has_told(&self, text: &str) -> bool {
        let told = self.told.lock().unwrap();
        told.iter().any(|line| line.contains(text))
    }
}

impl Observer for Ending<'_> {
    fn advance(&self, bytes: u64) {
        self.advanced.fetch_add(bytes, Ordering::Relaxed);
    }

    fn resume(&self, bytes: u64) {
        self.resumed.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if asked < self.after && self.after != u64::MAX {
            // Slow enough for checkpoints on the way.
            pause();
        }
        let ends = asked >= self.after;
        while ends && self.site.is_some_and(|site| !site.has_checkpoint()) {
            pause();
        }
        ends
    }

    fn is_paused(&self) -> bool {
        self.pauses
    }

    fn tell(&self, line: &str) {
        self.told.lock().unwrap().push(line.to_owned());
    }
}

fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(5));
}

fn plans() -> Vec<Plan> {
    let plan = |format, compress| Plan {
        format,
        compress,
        threads: 2,
        ..Plan::default()
    };
    vec![
        plan(OutFormat::Qcow2, Compress::None),
        plan(OutFormat::Qcow2, Compress::Zlib),
        plan(OutFormat::Qcow2, Compress::Zstd),
        plan(OutFormat::Raw, Compress::None),
    ]
}

#[test]
fn goes_on_after_a_power_loss_with_the_same_bytes() {
    for plan in plans() {
        let site = Site::new(plan);
        site.crash(10);
        site.lose_power();
        let observer = Ending::never();
        let report = site.attempt(&observer).unwrap();
        let all = BLOCKS / 2 + 1;
        let unpacked = site.unpacked.load(Ordering::Relaxed);
        site.check(&report);
        assert!(
            unpacked < all,
            "all again: {:?} {:?}",
            observer.told,
            site.plan
        );
        assert!(report.resumed_bytes > 0);
        assert_eq!(
            observer.resumed.load(Ordering::Relaxed),
            report.resumed_bytes
        );
        let done = observer.advanced.load(Ordering::Relaxed) + report.resumed_bytes;
        assert_eq!(done, site.disk.allocated_bytes);
        assert!(observer.has_told("goes on behind"));
    }
}

#[test]
fn goes_on_as_often_as_it_takes() {
    for plan in plans() {
        let site = Site::new(plan);
        let mut attempts = 0;
        let report = loop {
            attempts += 1;
            assert!(attempts < 40, "it gets nowhere");
            match site.attempt(&Ending::new(3, true)) {
                Ok(report) => break report,
                Err(error) => assert_eq!(error.kind, ErrorKind::Cancelled),
            }
            site.lose_power();
        };
        assert!(attempts > 3);
        site.check(&report);
    }
}

#[test]
fn a_pause_keeps_all_that_was_written() {
    let site = Site::new(Plan {
        threads: 1,
        ..Plan::default()
    });
    site.attempt(&Ending::new(6, true)).unwrap_err();
    let report = site.attempt(&Ending::never()).unwrap();
    // Six batches of eight units; the rest is done now.
    assert_eq!(
        site.unpacked.load(Ordering::Relaxed),
        BLOCKS / 2 + 1 - 6 * 8
    );
    site.check(&report);
}

#[test]
fn a_finished_disk_is_not_read_again() {
    let site = Site::new(Plan::default());
    site.crash(10);
    let first = site.attempt(&Ending::never()).unwrap();
    let observer = Ending::never();
    let again = site.attempt(&observer).unwrap();
    assert_eq!(site.unpacked.load(Ordering::Relaxed), 0);
    assert_eq!(again.digest, first.digest);
    assert_eq!(again.resumed_bytes, site.disk.allocated_bytes);
    assert!(observer.has_told("finished before"));
    site.check(&again);

    let file = File::options().write(true).open(site.image()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"repaired", 5 * BLOCK_BYTES).unwrap();
    let observer = Ending::never();
    let report = site.attempt(&observer).unwrap();
    assert!(observer.has_told("changed after it was finished"));
    site.check(&report);
}

#[test]
fn what_is_not_as_it_was_starts_over() {
    type Change = fn(&mut Site);
    let changes: [(Change, &str); 5] = [
        (|site| site.plan.compress = Compress::Zstd, "compress"),
        (|site| site.disk.name = "other".to_owned(), "disk"),
        (
            |site| {
                let name = Path::new("changed");
                let file = tempfile::tempfile().unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 0).unwrap();
                let image = Fake {
                    files: [Window::whole(file, name).unwrap()],
                    capacity_bytes: site.disk.capacity_bytes,
                    fault: Fault::None,
                    unpacked: site.unpacked.clone(),
                };
                site.disk = SourceDisk::new("fake", "fake".to_owned(), Box::new(image));
            },
            "source_files",
        ),
        (
            |site| {
                let bytes = std::fs::read(site.image()).unwrap();
                std::fs::remove_file(site.image()).unwrap();
                std::fs::write(site.dir.path().join("staging/in its place"), "").unwrap();
                std::fs::write(site.image(), bytes).unwrap();
            },
            "image",
        ),
        (
            |site| {
                let file = File::options().write(true).open(site.image()).unwrap();
                file.set_len(BLOCK_BYTES).unwrap();
            },
            "shorter",
        ),
    ];
    for (change, why) in changes {
        let mut site = Site::new(Plan::default());
        site.crash(10);
        change(&mut site);
        let observer = Ending::never();
        let report = site.attempt(&observer).unwrap();
        assert!(observer.has_told("starts over"), "{why}");
        assert!(observer.has_told(why), "{why}: {:?}", observer.told);
        assert_eq!(report.resumed_bytes, 0);
        site.check(&report);
    }
}

#[test]
fn a_journal_that_is_cut_anywhere_gives_the_same_bytes() {
    for cut in [0, 20, 400, 700, 2000] {
        let site = Site::new(Plan::default());
        site.crash(10);
        let mut journal = std::fs::read(site.journal()).unwrap();
        journal.truncate(journal.len().saturating_sub(cut));
        if cut == 700 {
            journal[300] ^= 1;
        }
        std::fs::write(site.journal(), journal).unwrap();
        let report = site.attempt(&Ending::never()).unwrap();
        site.check(&report);
    }
}

#[test]
fn a_journal_that_cannot_be_written_fails_nothing() {
    let site = Site::new(Plan::default());
    let observer = Ending::new(1000, false);
    let report = site
        .attempt_with(&observer, "no/such/directory", &|_| Ok(()))
        .unwrap();
    assert!(observer.has_told("goes on without checkpoints"));
    site.check(&report);
}

#[test]
fn a_target_that_cannot_be_made_durable_fails_it() {
    let site = Site::new(Plan::default());
    let failed = AtomicBool::new(false);
    let sync = |path: &Path| {
        if path == site.image() {
            failed.store(true, Ordering::Relaxed);
            return Err(Error::io(
                "fsync",
                path,
                std::io::Error::from_raw_os_error(5),
            ));
        }
        Ok(())
    };
    let ended = site.attempt_with(&Ending::new(1000, false), "journals", &sync);
    assert_eq!(ended.unwrap_err().kind, ErrorKind::Io);
    assert!(failed.into_inner());
    assert!(!site.journal().exists());
}

#[test]
fn a_small_disk_pays_nothing() {
    let site = Site::new(Plan::default());
    let resume = Resume {
        directory: site.dir.path().join("journals"),
        every_bytes: 1 << 40,
        has_more: false,
        sync: &|path| panic!("{} is synced", path.display()),
    };
    copy_on(&site.disk, &site.image(), &site.plan, &resume, &Unobserved).unwrap();
    assert!(!resume.directory.exists());
}
