//! `convert`: drops an export request for hypervisord, and follows the VM to its qcow2.
use std::collections::BTreeMap;

use queue::instance::exports::{self, ExportsConfig, Server};
use queue::job::record::DaemonState;
use queue::job::{ExportRequest, Priority};
use queue::spool::submit;
use serde_json::json;

use super::control::no_daemon;
use super::follow::{Awaited, Limits, Show, follow_awaited};
use crate::args;
use crate::outcome::{Exit, Result, Stop};
use crate::render;
use crate::view::{self, Life, Migration, Place, Scope};
use crate::watch::Interrupt;

pub fn run(args: &args::Convert) -> Result<Exit> {
    let request = request(args)?;
    let service = view::export_service()?;
    let target = view::chosen(&args::Place {
        instance: Some(args.instance.clone()),
        ..args::Place::default()
    })?;
    if service.life() != Life::Responding {
        return Err(no_daemon(&service));
    }
    for place in [&service, &target] {
        render::notes(&idle(place).into_iter().collect::<Vec<_>>());
    }
    // Listening before there is anything to go on without being followed.
    let interrupt = Interrupt::listen()?;
    let drop = submit::request(&service.directories, &request)?;
    let vm = request.vm_name().to_string();
    if args.detach {
        return detach(args, &request, &drop);
    }
    let scope = Scope::of_export(&service, &target);
    let place = service.clone();
    let mut show = Show::detect(args.json);
    if !args.json {
        show.say(&format!("{vm}: requested"))?;
    }
    let limits = Limits {
        timeout: args.timeout,
        interrupt: Some(interrupt),
    };
    let followed = follow_awaited(Awaited::Request { drop, place }, &scope, &mut show, &limits);
    show.close()?;
    let (exit, found) = followed?;
    let how = match exit {
        Exit::TimedOut => "timed out",
        Exit::Interrupted => "no longer followed",
        _ => return Ok(exit),
    };
    Err(
        Stop::new(exit, format!("{vm}: {how}; the work goes on")).with_remedy(format!(
            "go on following: {}",
            follow_on(found.first(), &vm)
        )),
    )
}

fn request(args: &args::Convert) -> Result<ExportRequest> {
    let config = exports::config_path();
    let servers = ExportsConfig::load(&config)?.server;
    let server = match &args.vcenter {
        // The service may have been started with another file.
        Some(host) if !config.exists() => host,
        Some(host) => named(&servers, host)?,
        None => only_one(&servers, args.provider.as_deref().unwrap_or_default())?,
    };
    let mut request = ExportRequest::new(server, &args.vm);
    request.provider.clone_from(&args.provider);
    request.name.clone_from(&args.name);
    request.instance.clone_from(&args.instance);
    request.options.priority = Priority::from(args.priority);
    // The service has another working directory.
    let is_local = servers
        .get(server)
        .is_some_and(|server| server.provider == "local");
    if is_local && (args.vm.starts_with("./") || args.vm.starts_with("../")) {
        let path = std::fs::canonicalize(&args.vm);
        let path = path.map_err(|error| Stop::usage(format!("--vm {}: {error}", args.vm)))?;
        let text = path.into_os_string().into_string();
        request.vm = text.map_err(|_| Stop::usage("--vm: the path is not UTF-8"))?;
    }
    Ok(request)
}

type Servers = BTreeMap<String, Server>;

/// The server's name in the configuration: what was typed, or whose address that is.
fn named<'a>(servers: &'a Servers, host: &'a str) -> Result<&'a str> {
    let has_address = |server: &Server| server.address.as_deref() == Some(host);
    let mut by_address = servers.iter().filter(|(_, server)| has_address(server));
    match (
        servers.contains_key(host),
        by_address.next(),
        by_address.next(),
    ) {
        (true, ..) => Ok(host),
        (false, Some((name, _)), None) => Ok(name),
        _ => Err(unknown(servers, &format!("there is no server {host}"))),
    }
}

fn only_one<'a>(servers: &'a Servers, provider: &str) -> Result<&'a str> {
    let mut fitting = servers
        .iter()
        .filter(|(_, server)| server.provider == provider);
    match (fitting.next(), fitting.next()) {
        (Some((name, _)), None) => Ok(name),
        (Some(_), Some(_)) => Err(unknown(servers, &format!("several servers are {provider}"))),
        (None, _) => Err(unknown(servers, &format!("no server is {provider}"))),
    }
}

fn unknown(servers: &Servers, what: &str) -> Stop {
    let path = exports::config_path();
    let known: Vec<&str> = servers.keys().map(String::as_str).collect();
    let remedy = match known.is_empty() {
        true => "add a section [server.\"HOST\"] there, then reload hypervisord".to_owned(),
        false => format!("name one with --vcenter: {}", known.join(", ")),
    };
    Stop::usage(format!("{what} in {}", path.display())).with_remedy(remedy)
}

/// Why the work may have to wait for somebody.
fn idle(place: &Place) -> Option<String> {
    let heartbeat = place.heartbeat().ok().flatten();
    let Some(heartbeat) = heartbeat.filter(|_| place.life() == Life::Responding) else {
        return Some(no_daemon(place).message + "; the VM waits in its queue");
    };
    let instance = &place.instance;
    (!heartbeat.is(DaemonState::Running)).then(|| {
        format!(
            "{instance} is {}; the VM waits for `resume`",
            heartbeat.state()
        )
    })
}

fn detach(args: &args::Convert, request: &ExportRequest, drop: &str) -> Result<Exit> {
    let vm = request.vm_name().to_string();
    if args.json {
        render::print_json(&json!({
            "vm_name": vm, "instance": request.instance, "drop": drop, "request": request,
        }))?;
    } else {
        let on = follow_on(None, &vm);
        render::print(&format!("{vm}: requested; follow it: {on}\n"))?;
    }
    Ok(Exit::Done)
}

/// The command that shows the rest. A VM's name may hold spaces, but no quote.
fn follow_on(found: Option<&Migration>, vm: &str) -> String {
    match found {
        Some(found) => format!("hyperctl status --job {} --follow", found.id()),
        None if vm.contains(' ') => format!("hyperctl status --vm '{vm}' --follow"),
        None => format!("hyperctl status --vm {vm} --follow"),
    }
}
