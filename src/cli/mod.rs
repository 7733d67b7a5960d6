//! The command line: one file for each command.

mod apply;
mod audit;
pub mod check;
mod doctor;
mod down;
mod explain;
mod explain_code;
mod flows;
mod graph;
mod guard;
mod learn;
mod plan;
mod policies;
mod run;
mod sarif;
mod schema;
mod socket_filter;
mod status;
pub mod test;
mod top;
mod verify;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::daemon::Refusal;
use crate::policy::{Colour, Faults, SourceFile};
use crate::settings::{Overrides, Settings};

/// Network segmentation for Docker hosts: only declared service-to-service ports can be reached.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the policy has faults, a test does not hold, what passes is not what is declared, audit found what \
--fail-on names, doctor found what fails, or status --check found the daemon not enforcing; 2 plan found changes, learn --against \
found what is missing, or, of every other command, wrong usage; \
3 no daemon answers, or check --deny-warnings found only \
warnings; 4 explain says that it is denied, in whole or in part; 10 settings; 11 missing privileges; 12 no engine; 13 engine \
too old; 14 nft missing or failing; 15 br_netfilter; 16 address pool taken; 17 another Cofferdam is running; 18 the system \
refused something; 19 what a saved plan was made from has changed; 20 git missing or failing; 21 a later version wrote the state directory";

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch the engine and keep the policy in force
    Run(SettingsArgs),
    /// Bring the host to what the policy says, once
    Apply(apply::ApplyArgs),
    /// Close Docker's networks before the engine starts, unless the rules stand
    Guard(guard::GuardArgs),
    /// Validate policy files: every fault, with its place, and what a reviewer would ask
    Check(check::Args),
    /// Explain a code of `check` or `audit`, with a wrong and a right example
    ExplainCode(explain_code::Args),
    /// Print the JSON Schema of policy files, for editors
    Schema(schema::Args),
    /// Run the policies' own tests, offline
    Test(test::Args),
    /// Show what a policy would change: edges, services, networks; on a host also containers and open connections
    Plan(plan::PlanArgs),
    /// Say which edge permits a connection, or which is missing and where it would be written
    Explain(explain::ExplainArgs),
    /// Watch who opens what to whom, and write the policy that permits just that, to be reviewed
    Learn(learn::LearnArgs),
    /// Try from inside the containers who reaches whom, and compare with the policy
    Verify(verify::VerifyArgs),
    /// Say what on this host voids or weakens segmentation, how grave it is and what mends it
    Audit(audit::AuditArgs),
    /// Check what this host has of what Cofferdam needs, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Draw which service may reach which: DOT, Mermaid or SVG
    Graph(graph::GraphArgs),
    /// Show what is in force: policy, services, endpoints, edges and their hits
    Status(status::StatusArgs),
    /// Show what was denied, audited or forged, by service and container
    Flows(flows::FlowsArgs),
    /// Watch edges, denied attempts and what happens, live in the terminal
    Top(top::TopArgs),
    /// Listen in front of the engine's socket, for the calls that Cofferdam makes and nothing else
    SocketFilter(socket_filter::SocketFilterArgs),
    /// Remove every trace: rules and networks
    Down(down::DownArgs),
}

/// Where settings come from.
#[derive(Debug, Args)]
struct SettingsArgs {
    /// Settings file [default: /etc/cofferdam/settings.yaml, where it exists]
    #[arg(long, env = "COFFERDAM_SETTINGS", value_name = "FILE")]
    settings: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

impl SettingsArgs {
    fn load(self) -> Result<Settings, Refusal> {
        Ok(Settings::load(self.overrides, self.settings.as_deref())?)
    }
}

/// How the daemon is asked.
#[derive(Debug, Args)]
struct ControlArgs {
    /// The daemon's control socket
    #[arg(
        long,
        env = "COFFERDAM_CONTROL_SOCKET",
        value_name = "PATH",
        default_value = "/run/cofferdam/control.sock"
    )]
    control_socket: PathBuf,
}

/// No daemon answers.
const NO_DAEMON: u8 = 3;

/// Says so.
fn no_daemon(socket: &Path, error: &io::Error) -> ExitCode {
    eprintln!(
        "cofferdam: no daemon answers at {} ({error}): rules that it left stand as they are",
        socket.display()
    );
    ExitCode::from(NO_DAEMON)
}

/// All commands with their arguments: man pages and completions are made from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    match cli.command {
        Command::Run(args) => concluded(run::run(args)),
        Command::Apply(args) => concluded(apply::run(args)),
        Command::Guard(args) => concluded(guard::run(args)),
        Command::Check(args) => check::run(&args),
        Command::ExplainCode(args) => explain_code::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Plan(args) => concluded(plan::run(args)),
        Command::Graph(args) => concluded(graph::run(args)),
        Command::Learn(args) => concluded(learn::run(args)),
        Command::Explain(args) => concluded(explain::run(args)),
        Command::Verify(args) => concluded(verify::run(args)),
        Command::Doctor(args) => concluded(doctor::run(args)),
        Command::Audit(args) => concluded(audit::run(args)),
        Command::Status(args) => concluded(status::run(&args)),
        Command::Flows(args) => concluded(flows::run(&args)),
        Command::Top(args) => concluded(top::run(&args)),
        Command::SocketFilter(args) => concluded(socket_filter::run(args)),
        Command::Down(args) => concluded(down::run(args)),
    }
}

/// Prints what clap says: help, the version, or what is wrong. `plan` and `learn` say by 2 that something differs; a mistyped
/// option in a pipeline must not look like that.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    // Where nobody reads it there is nobody left to tell.
    let _unread = error.print();
    let command = std::env::args_os().nth(1).unwrap_or_default();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if command == "plan" || command == "learn" => ExitCode::FAILURE,
        _ => ExitCode::from(2),
    }
}

/// The one place where a refusal is printed, with its causes.
fn concluded(result: Result<ExitCode, Refusal>) -> ExitCode {
    result.unwrap_or_else(|refusal| {
        let code = refusal.exit_code();
        eprintln!("cofferdam: {:#}", anyhow::Error::from(refusal));
        code
    })
}

/// A runtime for commands that talk to the engine and the kernel.
fn block_on<T>(future: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // A request about links holds its thread up until the kernel's lock over all of them is free: the watch and the steps on
        // bridges and ports may each have one under way, and what the engine answers is to be read all the same.
        .worker_threads(4)
        .enable_all()
        .build()
        .map_err(|error| Refusal::system("start the runtime", error))?;
    runtime.block_on(future)
}

/// Prints a value as JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<(), Refusal> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Refusal::system("write the answer as JSON", error))?;
    print_text(&format!("{text}\n"))
}

/// Prints on standard output. That whoever reads has gone away is no failure.
fn print_text(text: &str) -> Result<(), Refusal> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Refusal::system("print the answer", error))
        }
        _ => Ok(()),
    }
}

/// Colours for a terminal, unless `NO_COLOR` is set.
fn colour_of(stream: &impl IsTerminal) -> Colour {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if stream.is_terminal() && !refused {
        Colour::Coloured
    } else {
        Colour::Plain
    }
}

/// Every fault on standard error, and how many there are.
fn print_faults(faults: &Faults, files: &[SourceFile]) -> io::Result<()> {
    let mut stderr = io::stderr();
    let colour = colour_of(&stderr);
    write!(stderr, "{}", faults.render(files, colour))?;
    writeln!(stderr, "{}", faults.summary())
}

/// The exit code of a command that only writes; 2 where that failed.
fn written(outcome: io::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        // Whoever read the output has gone away: there is nobody left to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: cannot write the result: {error}");
            ExitCode::from(2)
        }
    }
}
