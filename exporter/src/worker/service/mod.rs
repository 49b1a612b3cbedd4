//! The export service: requests from its own spool, worked off into the queues of instances. What
//! it shares with the converter's daemon is `queue::service`; one export's turn is its own.
mod debts;
mod space;
mod turn;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use queue::arrival::Intake;
use queue::instance::exports::{ExportsConfig, Server};
use queue::instance::{Directories, Instance};
use queue::service::{Activity, Outcome, Service, Work};
use queue::spool::Job;

use crate::error::{Error, Result};
use crate::export::Origin;
use crate::machine::Provider;
use space::Space;

/// What the service is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub config: ExportsConfig,
    /// Those of the configuration, or others.
    pub directories: Directories,
}

impl Settings {
    pub fn new(config: ExportsConfig) -> Self {
        let directories = config.instance().directories;
        Self {
            config,
            directories,
        }
    }

    pub fn instance(&self) -> Instance {
        Instance {
            directories: self.directories.clone(),
            ..self.config.instance()
        }
    }
}

/// Runs the service until SIGTERM or SIGINT; `reload` reads its configuration again.
pub fn run(settings: Settings, reload: &dyn Fn() -> Result<Settings>) -> Result<()> {
    let space = Arc::new(Space::default());
    let debts = settings.directories.work.join("debts");
    let service = |settings: &Settings| Service {
        instance: settings.instance(),
        intake: Intake::Requests,
        work: Arc::new(Exports {
            servers: settings.config.server.clone(),
            slots: usize::try_from(settings.config.concurrent_exports).unwrap_or(1),
            debts: debts.clone(),
            space: space.clone(),
        }),
    };
    let collector = debts::Collector::start(&debts, &settings.config.server)?;
    queue::service::run(service(&settings), &|| {
        let fresh = reload()?;
        collector.set_servers(&fresh.config.server);
        Ok(service(&fresh))
    })
}

type Servers = BTreeMap<String, Server>;

/// What the service does with what it claims.
struct Exports {
    servers: Servers,
    slots: usize,
    /// What running exports owe to servers, and what dead ones did.
    debts: PathBuf,
    space: Arc<Space>,
}

impl Work for Exports {
    fn turn(&self, job: Box<Job>, activity: &Activity) -> Outcome {
        turn::turn(job, self, activity)
    }

    fn has_room(&self, running: &mut dyn Iterator<Item = &Activity>) -> bool {
        running.count() < self.slots
    }

    fn lane_limit(&self, lane: &str) -> usize {
        let limit = self
            .servers
            .get(lane)
            .and_then(|server| server.max_concurrent);
        limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(1))
    }

    fn not_heeded(&self) -> Vec<String> {
        if self.servers.is_empty() {
            return vec!["no [server.\"…\"] is configured: every request will be refused".into()];
        }
        let insecure = self.servers.iter().filter(|(_, server)| server.insecure);
        let insecure = insecure.map(|(name, _)| {
            format!("server {name}: any certificate is trusted (insecure = true)")
        });
        let unusable = self.servers.iter().filter_map(|(name, server)| {
            trouble(name, server).map(|error| format!("server {name}: {}", error.to_line()))
        });
        insecure.chain(unusable).collect()
    }
}

/// The provider that talks to a configured server.
fn connect(name: &str, server: &Server) -> Result<Arc<dyn Provider>> {
    Origin::configured(name, server)?.connect()
}

/// Why nothing can be exported from a configured server, as far as this host can tell.
fn trouble(name: &str, server: &Server) -> Option<Error> {
    let origin = Origin::configured(name, server);
    origin.and_then(|origin| origin.check()).err()
}
