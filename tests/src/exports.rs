//! The export service with an instance behind it: their directories, configuration, VMs to export.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use queue::instance::Directories;
use queue::job::{ExportRequest, JobId, Record, Request};
use queue::spool::request;

use crate::daemon::{Daemon, Site, names, records};
use crate::programs::program;

/// The default instance and the service that fills its queue from `vms/`.
pub struct ExportSite {
    pub instance: Site,
    pub directories: Directories,
    config: PathBuf,
    /// What the service has in its environment besides the test's own.
    pub environment: Vec<(&'static str, String)>,
}

/// The server of all VMs in `vms/`.
pub const SERVER: &str = "store";

impl ExportSite {
    /// `config` is TOML of the service; a `[server]` for `vms/` is added to it.
    pub fn new(config: &str) -> Self {
        let instance = Site::new("rescan_seconds = 1\n");
        let top = instance.top.path();
        let at = |name: &str| top.join(name);
        fs::create_dir(at("vms")).unwrap();
        fs::create_dir(at("etc")).unwrap();
        let told = &instance.directories;
        fs::write(
            at("etc/hyper2kvm.toml"),
            format!(
                "watch_dir = {:?}\noutput_dir = {:?}\nwork_dir = {:?}\n",
                told.queue, told.output, told.work
            ),
        )
        .unwrap();
        let roots = at("vms");
        let server = format!("[server.{SERVER}]\nprovider = \"local\"\nroots = [{roots:?}]\n");
        let directories = Directories {
            queue: at("requests"),
            output: at("exports-output"),
            work: at("exports-work"),
        };
        let places = format!(
            "requests_dir = {:?}\noutput_dir = {:?}\nwork_dir = {:?}\n",
            directories.queue, directories.output, directories.work
        );
        let text = format!("{places}{config}\n{server}");
        fs::write(at("etc/hypervisord.toml"), text).unwrap();
        Self {
            directories,
            config: at("etc"),
            environment: Vec::new(),
            instance,
        }
    }

    /// Adds to the service's configuration.
    pub fn configure(&self, text: &str) {
        let path = self.config.join("hypervisord.toml");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{before}{text}")).unwrap();
    }

    pub fn start(&self) -> Daemon {
        self.launch().ready()
    }

    /// Starts the service without waiting for it.
    pub fn launch(&self) -> Daemon {
        let mut command = Command::new(program("hypervisord"));
        command
            .arg("daemon")
            .env("HYPER2KVM_CONFIG_DIR", &self.config)
            .envs(self.environment.iter().map(|(key, value)| (key, value)));
        Daemon::spawn(command, self.instance.top.path())
    }

    /// hyperctl with these arguments, which finds both by their configuration.
    pub fn hyperctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("hyperctl"));
        command
            .env("HYPER2KVM_CONFIG_DIR", &self.config)
            .env("LC_ALL", "C.UTF-8");
        command.args(args).output().unwrap()
    }

    /// `hypervisord check-config` of the service's configuration.
    pub fn check(&self) -> Output {
        let mut command = Command::new(program("hypervisord"));
        command
            .arg("check-config")
            .env("HYPER2KVM_CONFIG_DIR", &self.config)
            .envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.output().unwrap()
    }

    /// Makes the instance's queue, as its converter does when it first starts.
    pub fn make_queue(&self) {
        fs::create_dir_all(self.instance.directories.incoming()).unwrap();
    }

    /// A VM to export: a directory with the disk `source` under the VM's name.
    pub fn vm(&self, name: &str, source: &Path) {
        let dir = self.vms().join(name);
        fs::create_dir(&dir).unwrap();
        let extension = source.extension().unwrap().to_str().unwrap();
        fs::hard_link(source, dir.join(format!("{name}.{extension}"))).unwrap();
    }

    pub fn vms(&self) -> PathBuf {
        self.instance.top.path().join("vms")
    }

    /// Drops a request under its VM's name.
    pub fn ask(&self, request: &ExportRequest) {
        self.put(
            &format!("{}.json", request.vm_name()),
            &serde_json::to_string(request).unwrap(),
        );
    }

    pub fn request(&self, vm: &str) -> ExportRequest {
        ExportRequest::new(SERVER, vm)
    }

    /// Drops any file among the requests, by a rename.
    pub fn put(&self, name: &str, text: &str) {
        let unfinished = self.directories.queue.join(format!("{name}.part"));
        fs::create_dir_all(&self.directories.queue).unwrap();
        fs::write(&unfinished, text).unwrap();
        fs::rename(&unfinished, self.directories.queue.join(name)).unwrap();
    }

    pub fn control(&self, asked: &Request) {
        request::submit(&self.directories, asked).unwrap();
    }

    pub fn records(&self) -> Vec<Record> {
        records(&self.directories)
    }

    pub fn record(&self, id: JobId) -> Record {
        let all = self.records();
        all.into_iter().find(|record| record.job_id == id).unwrap()
    }

    /// The record of the only export of this VM, if it is claimed.
    pub fn record_of(&self, vm: &str) -> Option<Record> {
        let all = self.records();
        all.into_iter().find(|record| record.vm_name == vm)
    }

    /// Nothing is being exported, and nothing of it is left behind.
    pub fn is_quiet(&self) -> bool {
        names(&self.directories.processing()).is_empty()
            && names(&self.instance.directories.incoming()).is_empty()
    }
}
