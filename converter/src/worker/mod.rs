//! The converter's daemon: one instance's queue, worked off by conversions. Only this room knows
//! the queue's moves; what it shares with other daemons is `queue::service`.
mod turn;

use std::path::Path;
use std::sync::Arc;

use queue::arrival::Intake;
use queue::instance::Instance;
use queue::job::{Definition, Phase};
use queue::service::{Activity, Outcome, Service, Work, host_name};
use queue::spool::Job;

use crate::convert::examine::Care;
use crate::convert::wishes;
use crate::error::Result;
use crate::guest::appliance;
use crate::guest::berths::Berth;
use crate::libvirt;
use turn::Settings;

/// How many sources that still arrive are followed at a time: each holds threads and their memory.
const FOLLOWED_MAX: usize = 16;

/// Runs the instance's daemon until SIGTERM or SIGINT; `reload` reads its configuration again.
pub fn run(instance: Instance, reload: &dyn Fn() -> Result<Instance>) -> Result<()> {
    let host = host_name();
    appliance::sweep(&instance.directories.work);
    queue::service::run(service(instance, &host), &|| Ok(service(reload()?, &host)))
}

fn service(instance: Instance, host: &str) -> Service {
    let work = Arc::new(Conversions {
        settings: settings(&instance, host),
    });
    Service {
        instance,
        intake: Intake::Machines,
        work,
    }
}

fn settings(instance: &Instance, host: &str) -> Settings {
    let mut source_roots = vec![instance.directories.queue.clone()];
    source_roots.extend(instance.config.source_roots.iter().cloned());
    Settings {
        config: instance.config.clone(),
        source_roots,
        output: instance.directories.output.clone(),
        host: host.to_owned(),
        care: Care::of(&instance.config.guest, &instance.directories.work),
    }
}

/// What the converter does with what it claims.
struct Conversions {
    settings: Settings,
}

impl Work for Conversions {
    fn turn(&self, job: Box<Job>, activity: &Activity) -> Outcome {
        turn::turn(job, &self.settings, activity)
    }

    /// Guests in care need no slot; but what is copied for them waits for an appliance. Nor do
    /// sources that still arrive: a download may take a day.
    fn has_room(&self, running: &mut dyn Iterator<Item = &Activity>) -> bool {
        let slots = usize::try_from(self.settings.config.max_concurrent_jobs).unwrap_or(1);
        let ahead = slots.saturating_add(Berth::count().saturating_mul(2));
        let (mut copying, mut all, mut followed) = (0, 0, 0);
        for activity in running {
            if activity.is_following() {
                followed += 1;
                continue;
            }
            let is_in_care = matches!(activity.phase(), Phase::Repair | Phase::Prove);
            copying += usize::from(!is_in_care);
            all += 1;
        }
        copying < slots && all < ahead && followed < FOLLOWED_MAX
    }

    fn define(&self, domain: &Path) -> Definition {
        libvirt::define(&self.settings.config.libvirt.uri, domain)
    }

    fn not_heeded(&self) -> Vec<String> {
        wishes::not_heeded(&self.settings.config)
    }
}
