//! `cofferdam explain`: which edge permits a connection, or which edge is missing and where it would be written. Exit
//! code 0 when it passes, 4 when it does not, 3 when only a daemon could tell and none answers.

pub(super) mod render;

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use self::render::{Object, text};
use super::policies;
use super::{SettingsArgs, block_on, print_json, print_text};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, InForce, Request, ask};
use crate::daemon::host_addresses;
use crate::daemon::status::{ContainerStatus, Status};
use crate::model::explain::{End, Host, Knowledge, Place, Question, QuestionError, explain};
use crate::model::{Identity, Rights, Standing};
use crate::policy::Policy;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Who opens the connection: a service (shop/web), a container's name, an address, world, host or an external
    #[arg(value_name = "A")]
    from: String,
    /// To whom: such a name with a port of the container, as in shop/db:5432, shop/dns:53/udp, shop/web:icmp
    #[arg(value_name = "B:PORT")]
    to: String,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

const DENIED: u8 = 4;
const NO_DAEMON: u8 = 3;
const USAGE: u8 = 2;

pub(super) fn run(args: ExplainArgs) -> Result<ExitCode, Refusal> {
    let named = args.settings.overrides.policies.is_some();
    let settings = args.settings.load()?;
    let socket = settings.control_socket.display();
    let (daemon, silence) = match Daemon::ask(&settings.control_socket)? {
        Ok(daemon) => (Some(daemon), String::new()),
        Err(error) => (None, format!("no daemon answers at {socket} ({error})")),
    };
    let mut remarks = Vec::new();
    let in_force = daemon.as_ref().map(|it| &it.policy);
    let in_force = match in_force.filter(|it| it.revision.is_some()) {
        None => None,
        Some(in_force) => match policies::of_daemon(&in_force.sources()) {
            Ok(loaded) => Some((loaded, in_force)),
            Err(code) => return Ok(code),
        },
    };
    let rights = match in_force.as_ref().filter(|_| !named) {
        Some((loaded, in_force)) => Rights {
            mode: in_force.mode,
            unmanaged: in_force.unmanaged,
            ..settings.rights(loaded.policy.clone())
        },
        None => {
            if !named {
                let directory = settings.policies.display();
                let why = if silence.is_empty() {
                    "the daemon has no policy yet"
                } else {
                    silence.as_str()
                };
                remarks.push(format!("{why}: this is the policy in {directory}"));
            }
            match policies::read(&settings.policies) {
                Ok(loaded) => settings.rights(loaded.policy),
                Err(code) => return Ok(code),
            }
        }
    };
    let knowledge = daemon
        .as_ref()
        .map_or(Knowledge::PolicyAlone, |it| Knowledge::Of(&it.host));
    let question = match Question::parse(&args.from, &args.to, &rights.policy, knowledge) {
        Ok(question) => question,
        Err(error @ QuestionError::NoDaemon { .. }) => {
            eprintln!("cofferdam: {error}: {silence}");
            return Ok(ExitCode::from(NO_DAEMON));
        }
        Err(error) => {
            eprintln!("cofferdam: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    // The daemon knows what its own policy selects.
    let is_container = |end: &End| matches!(end, End::Container { .. });
    if let Some((loaded, _)) = &in_force
        && named
        && (is_container(&question.from) || is_container(&question.to))
        && !selects_alike(&loaded.policy, &rights.policy)
    {
        eprintln!(
            "cofferdam: {} selects containers in another way than the policy in force, so whose a container would be is \
             not known: name the services instead",
            settings.policies.display()
        );
        return Ok(ExitCode::from(USAGE));
    }
    remarks.extend(question.remarks.clone());
    answered(&rights, question, remarks, args.json)
}

fn selects_alike(one: &Policy, other: &Policy) -> bool {
    let selectors = |policy: &Policy| -> Vec<_> {
        let services = policy.services.iter();
        services
            .map(|(id, service)| (id.clone(), service.selectors.clone()))
            .collect()
    };
    selectors(one) == selectors(other)
}

fn answered(
    rights: &Rights,
    question: Question,
    remarks: Vec<String>,
    json: bool,
) -> Result<ExitCode, Refusal> {
    let answer = match explain(rights, question, Timestamp::now()) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("cofferdam: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    if json {
        print_json(&Object::new(&answer, &remarks))?;
    } else {
        print_text(&text(&answer, &remarks))?;
    }
    Ok(match answer.outcome.passes() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(DENIED),
    })
}

/// What the daemon knows.
struct Daemon {
    policy: InForce,
    host: Host,
}

impl Daemon {
    /// The inner error: none answers.
    fn ask(socket: &Path) -> Result<std::io::Result<Self>, Refusal> {
        let asked = block_on(async {
            let status = ask(socket, Request::Status).await;
            Ok((status, ask(socket, Request::Policy).await))
        });
        match asked? {
            (Ok(Answer::Status(status)), Ok(Answer::Policy(policy))) => Ok(Ok(Self {
                policy: *policy,
                host: host(&status),
            })),
            (Err(error), _) | (_, Err(error)) => Ok(Err(error)),
            (Ok(Answer::Error(message)), _) | (_, Ok(Answer::Error(message))) => {
                Err(Refusal::system("ask the daemon", message))
            }
            _ => Err(Refusal::system("ask the daemon", "it answers another question")),
        }
    }
}

/// Whose the names and addresses are, by the daemon's status.
fn host(status: &Status) -> Host {
    let mut host = Host {
        own: host_addresses(),
        ..Host::default()
    };
    for (service, found) in &status.services {
        for container in &found.containers {
            let several = container.services.iter();
            let names: Vec<&String> = several.chain([service]).collect();
            let services = names.into_iter().filter_map(|name| name.parse().ok()).collect();
            if let Some(identity) = Identity::new(services) {
                add(&mut host, container, Standing::Managed(identity));
            }
        }
    }
    let ids = |names: &[String]| names.iter().filter_map(|name| name.parse().ok()).collect();
    for container in &status.others {
        let quarantined = status.quarantined.get(&container.name);
        let isolated = status.isolated.get(&container.name);
        let standing = match (quarantined, isolated.and_then(|it| Identity::new(ids(it)))) {
            (Some(services), _) => Standing::Quarantined(ids(services)),
            (None, Some(identity)) => Standing::Isolated(identity),
            (None, None) => Standing::Unmanaged,
        };
        add(&mut host, container, standing);
    }
    for (name, reasons) in &status.unenforceable {
        let note = format!(
            "what it may is said here, but no rule can hold it to that ({})",
            reasons.join("; ")
        );
        host.notes.entry(name.clone()).or_default().push(note);
    }
    host
}

fn add(host: &mut Host, container: &ContainerStatus, standing: Standing) {
    let name = container.name.clone();
    let place = match container.network_mode.as_deref() {
        None => Place::Own(standing),
        Some("host") => Place::Host,
        Some(mode) => match mode.strip_prefix("container:") {
            Some(other) => Place::Shared(other.to_owned()),
            None => Place::Nowhere,
        },
    };
    let managed = matches!(place, Place::Own(Standing::Managed(_)));
    if managed && container.endpoints.iter().any(|endpoint| !endpoint.bound) {
        let note =
            "not all of its endpoints are proven in the kernel yet: until then nothing of those passes";
        let notes = host.notes.entry(name.clone()).or_default();
        if notes.is_empty() {
            notes.push(note.to_owned());
        }
    }
    if matches!(place, Place::Own(_)) {
        for address in container
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.addresses)
        {
            host.addresses.entry(*address).or_default().insert(name.clone());
        }
    }
    host.containers.insert(name, place);
}
