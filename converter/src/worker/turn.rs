//! One job's turn: from the held job to its published result, or to its failure.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use queue::durable::{HostVolume, Volume};
use queue::instance::Config;
use queue::job::{Finding, JobId, Phase, VmName};
use queue::roots::Roots;
use queue::service::turn::{end_badly, note_time, supersede};
use queue::service::{Activity, Outcome, Reporter, log};
use queue::spool::recover::Waiting;
use queue::spool::{Begun, Job, Product};

use crate::convert::Resume;
use crate::convert::care;
use crate::convert::examine::Care;
use crate::convert::vm::{self, Converted, Order};
use crate::convert::wishes::Wishes;
use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{self, Appliance, Unpacker};

/// Opening and measuring a source, however slow the file system.
const VERIFY_PATIENCE: Duration = Duration::from_secs(600);
/// One batch of a conversion.
const CONVERT_PATIENCE: Duration = Duration::from_secs(120);
/// Committing a repair, or reading a repaired image again, between two signs of life.
const CARE_PATIENCE: Duration = Duration::from_secs(600);
/// Making a large result durable on a slow disk is one system call.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(3600);

/// What a job is worked with: fixed when its turn begins.
#[derive(Debug, Clone)]
pub struct Settings {
    pub config: Config,
    /// Where dropped files may still lie, and the configured source roots.
    pub source_roots: Vec<PathBuf>,
    pub output: PathBuf,
    pub host: String,
    pub care: Care,
}

/// Works on a held job until it is published, failed or put back.
pub fn turn(mut job: Box<Job>, settings: &Settings, activity: &Activity) -> Outcome {
    activity.enter(job.memory.vm_name.as_str(), Phase::Verify, VERIFY_PATIENCE);
    match job.begin() {
        Ok(Begun::Yes) => {}
        Ok(Begun::NameTaken) => return Outcome::NameTaken(Waiting::from(&*job)),
        Ok(Begun::Superseded(later)) => return supersede(job, later),
        Err(error) => return end_badly(job, error, activity),
    }
    let begun = Instant::now();
    let converted = match convert(&mut job, settings, activity) {
        Ok(Work::Done(converted)) => *converted,
        Ok(Work::NameTaken) => {
            let waiting = Waiting::from(&*job);
            return match job.release() {
                Ok(()) => Outcome::NameTaken(waiting),
                Err(error) => Outcome::Trouble(error),
            };
        }
        Ok(Work::Superseded(later)) => return supersede(job, later),
        Err(error) => return end_badly(job, error, activity),
    };
    let bytes_in = converted.disks.iter().map(|disk| disk.source_bytes).sum();
    let bytes_out = converted.disks.iter().map(|disk| disk.output_bytes).sum();
    activity.enter(
        job.memory.vm_name.as_str(),
        Phase::Publish,
        PUBLISH_PATIENCE,
    );
    job.record.disks = converted.disks;
    let product = match serde_json::to_value(&converted.metadata) {
        Ok(metadata) => Product {
            format: extension(&converted.file),
            file: converted.file,
            metadata,
        },
        Err(error) => {
            let error = Error::new(ErrorKind::Internal, "write metadata.json").with_source(error);
            return end_badly(job, error, activity);
        }
    };
    log::say(
        &mut job,
        &format!(
            "converted in {:.1} s; publishing",
            begun.elapsed().as_secs_f64()
        ),
    );
    let (job_id, vm_name) = (job.id(), job.memory.vm_name.to_string());
    if settings.config.libvirt.define
        && let Err(error) = job.ask_import(&settings.config.libvirt.uri)
    {
        return end_badly(job, error, activity);
    }
    match job.publish(product) {
        Ok(()) => {
            tracing::info!(%job_id, vm_name, phase = "publish", "{vm_name}: published");
            Outcome::Published {
                bytes_in,
                bytes_out,
            }
        }
        Err((job, error)) => end_badly(job, error, activity),
    }
}

fn extension(file: &str) -> String {
    file.rsplit_once('.')
        .map_or("qcow2", |(_, extension)| extension)
        .to_owned()
}

/// What a conversion came to.
enum Work {
    Done(Box<Converted>),
    /// The VM's real name is taken by another running job.
    NameTaken,
    /// A later job has published what bears the VM's real name.
    Superseded(JobId),
}

fn convert(job: &mut Job, settings: &Settings, activity: &Activity) -> Result<Work> {
    let started = Instant::now();
    job.record.phase = Phase::Verify;
    job.record.log.clear();
    job.save_record(false)?;
    let owner = job.owner_path();
    let roots = Roots::open(&job.source_dir(), &settings.source_roots)?;
    let mut wished = Wishes::of_config(&settings.config);
    if let Some(manifest) = source::read_manifest(&roots, &owner)? {
        wished = wished.heed(&manifest, &settings.output)?;
    }
    wished.origin.drop.clone_from(&job.memory.drop);
    let mut appliance = open_source(job, &roots, &settings.config, activity)?;
    match take_name(job, &appliance)? {
        Begun::Yes => {}
        Begun::NameTaken => return Ok(Work::NameTaken),
        Begun::Superseded(later) => return Ok(Work::Superseded(later)),
    }
    job.check_conflict(wished.plan.format.as_str())?;
    vm::check_space(&appliance, &wished.plan, &job.staging_dir())?;
    let mut caring = foresee(job, &appliance, wished.care(&settings.care))?;
    job.record.notes.clone_from(&wished.notes);
    job.record.notes.extend(appliance.notes.iter().cloned());
    note_time(job, Phase::Verify, started);

    job.record.phase = Phase::Convert;
    let name = job.memory.vm_name.clone();
    activity.enter(name.as_str(), Phase::Convert, CONVERT_PATIENCE);
    let (staging, result) = (job.staging_dir(), job.result_dir());
    let resume = Resume {
        directory: job.journal_dir(),
        every_bytes: settings.config.checkpoint_mib.saturating_mul(1 << 20),
        has_more: appliance.disks.len() > 1 || caring.is_wanted(),
        sync: &|path| sync(path, activity),
    };
    if resume.every_bytes == 0 {
        job.start_over()?;
    }
    let order = Order {
        name: &name,
        first_file: wished.first_file.as_deref(),
        plan: &wished.plan,
        libvirt: &settings.config.libvirt,
        directory: &staging,
        result: &result,
        origin: wished.origin.clone(),
        host: &settings.host,
        resume: (resume.every_bytes > 0).then_some(&resume),
    };
    let count = appliance.disks.len();
    let attempts = job.memory.attempts;
    let reporter = Reporter::new(activity, job, vm::work_bytes(&appliance), count);
    let mut converted = vm::vm(&mut appliance, &order, &reporter, &mut |number, disk| {
        reporter.enter_disk(number);
        reporter.tell(&format!(
            "converting disk {number} of {count}: {} ({})",
            disk.name, disk.format
        ));
    })?;
    care_for(&appliance, &order, &mut caring, &mut converted, &reporter)?;
    drop(reporter);
    converted.metadata.attempts = attempts;
    converted.metadata.notes.extend(wished.notes);
    for (step, seconds) in &converted.metadata.guest.timings {
        job.record.timings.insert(format!("guest_{step}"), *seconds);
    }
    Ok(Work::Done(Box::new(converted)))
}

/// Tells what is known of the guest before anything is copied.
fn foresee(job: &mut Job, appliance: &Appliance, mut caring: Care) -> Result<Care> {
    let foreseen = caring.foresee(appliance);
    job.record.findings = caring.findings().to_vec();
    foreseen.map(|()| caring)
}

/// What is compressed as a whole is unpacked into the staging directory; pollers see how far.
fn open_source(
    job: &mut Job,
    roots: &Roots,
    config: &Config,
    activity: &Activity,
) -> Result<Appliance> {
    let (owner, staging) = (job.owner_path(), job.staging_dir());
    let reporter = Reporter::new(activity, job, 0, 0);
    let unpacker = Unpacker {
        directory: &staging,
        observer: &reporter,
        patience: Duration::from_secs(config.incomplete_timeout),
    };
    source::open(roots, &owner, config.checksum, &unpacker)
}

/// What is written so far may take long to become durable.
fn sync(path: &Path, activity: &Activity) -> Result<()> {
    activity.be_patient(PUBLISH_PATIENCE);
    let synced = HostVolume.sync(path);
    activity.be_patient(CONVERT_PATIENCE);
    synced
}

/// Gives the job the name its source bears, if that differs from what the claim made of it.
fn take_name(job: &mut Job, appliance: &Appliance) -> Result<Begun> {
    let Some(name) = appliance.machine.name.as_deref() else {
        return Ok(Begun::Yes);
    };
    let Ok(name) = VmName::new(name) else {
        return Ok(Begun::Yes);
    };
    if name == job.memory.vm_name {
        return Ok(Begun::Yes);
    }
    job.rename_vm(name)
}

/// Repairs and proves the guest, and says so.
fn care_for(
    appliance: &Appliance,
    order: &Order<'_>,
    caring: &mut Care,
    converted: &mut Converted,
    reporter: &Reporter<'_>,
) -> Result<()> {
    let mut on_phase = |phase| {
        reporter.enter(phase, CARE_PATIENCE);
        reporter.tell(match phase {
            Phase::Prove => "booting the result",
            _ => "repairing the guest",
        });
    };
    care::care(appliance, order, caring, converted, reporter, &mut on_phase)?;
    tell_care(reporter, converted);
    reporter.end_phase();
    Ok(())
}

/// What became of the guest, in the job's log.
fn tell_care(reporter: &Reporter<'_>, converted: &Converted) {
    let guest = &converted.metadata.guest;
    let name = guest.os.as_ref().map_or("the guest", |os| os.name.as_str());
    match &guest.reason {
        _ if guest.repaired => reporter.tell(&format!("{name} is repaired")),
        Some(reason) => reporter.tell(&format!("{name} stays as it is: {reason}")),
        None => {}
    }
    if let Some(proof) = &guest.boot {
        reporter.tell(&format!(
            "boot check: {:?}: {}",
            proof.verdict, proof.evidence
        ));
    }
}

impl Observer for Reporter<'_> {
    fn expect(&self, bytes: u64) {
        Reporter::expect(self, bytes);
    }

    fn advance(&self, bytes: u64) {
        Reporter::advance(self, bytes);
    }

    fn resume(&self, bytes: u64) {
        Reporter::resume(self, bytes);
    }

    fn follow(&self, is_following: bool) {
        Reporter::follow(self, is_following);
    }

    fn is_cancelled(&self) -> bool {
        Reporter::is_cancelled(self)
    }

    fn is_paused(&self) -> bool {
        Reporter::is_paused(self)
    }

    fn tell(&self, line: &str) {
        Reporter::tell(self, line);
    }

    fn find(&self, finding: &Finding) {
        Reporter::find(self, finding);
    }
}
