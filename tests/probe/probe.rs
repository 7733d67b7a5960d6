//! The program inside the conformance cases' containers, and the one that probes from their network namespaces.
//!
//! One static binary without an async runtime or a C library's name service, so an image needs nothing else. Every
//! subcommand prints one fact a line; a probe that cannot run says `error` or exits with 2, never `deny`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms of the library ban clocks, files and sockets"
)]

mod check;
mod dns;
mod flow;
mod forge;
mod hold;
mod knock;
mod leak;
mod repeat;
mod serve;
mod socket;

use std::process::ExitCode;

const USAGE: &str = "usage: cofferdam-probe COMMAND
  listen PROTO/PORT,...                       echo servers on every address; as PID 1 it reaps
  sleep                                       nothing, until SIGTERM
  check TIMEOUT_MS RETRIES [NAMESERVER]       flows on stdin: ID PROTO ADDRESS|name:NAME PORT|echo [4|6]
  resolve NAME 4|6 [NAMESERVER]               the addresses of a name
  never-allowed RATE_HZ                       targets on stdin until an empty line; runs until stdin ends
  hold PROTO ADDRESS PORT INTERVAL_MS         one connection; each line on stdin asks for a report
  hammer SECONDS PROTO ADDRESS PORT ...       connects in a tight loop from the first instruction
  leak SECONDS|stdin (+|-)PROTO/ADDRESS/PORT ...  declared and undeclared flows at a high rate, from the first instruction
  knock PROTO ADDRESS FIRST LAST TIMES        one packet for each port, so often
  watch PROTO 4|6                             every packet of the protocol that reaches this namespace
  spoof PROTO SOURCE DESTINATION PORT COUNT   packets with a forged source
  icmp-error KIND SOURCE DESTINATION PROTO INNER_SOURCE:PORT INNER_DESTINATION:PORT
  frames INTERFACE                            sends whole frames: hex on stdin, one a line
  sniff MARK                                  frames with this text that reach this namespace, until stdin ends
  can PROTO                                   whether such sockets can be opened";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["listen", ports] => serve::listen(ports),
        ["sleep"] => serve::wait_as_init(),
        ["check", timeout, retries, nameserver @ ..] => {
            check::run(timeout, retries, nameserver.first().copied())
        }
        ["resolve", name, family, nameserver @ ..] => {
            check::resolve(name, family, nameserver.first().copied())
        }
        ["never-allowed", rate] => repeat::never_allowed(rate),
        ["hold", proto, address, port, interval] => hold::run(proto, address, port, interval),
        ["hammer", seconds, targets @ ..] => repeat::hammer(seconds, targets),
        ["leak", until, flows @ ..] => leak::run(until, flows),
        ["knock", proto, address, first, last, times] => knock::run(proto, address, first, last, times),
        ["watch", proto, family] => forge::watch(proto, family),
        ["spoof", proto, source, destination, port, count] => {
            forge::spoof(proto, source, destination, port, count)
        }
        [
            "icmp-error",
            kind,
            source,
            destination,
            proto,
            inner_source,
            inner_destination,
        ] => forge::icmp_error(kind, source, destination, proto, inner_source, inner_destination),
        ["frames", interface] => forge::frames(interface),
        ["sniff", mark] => forge::sniff(mark),
        ["can", proto] => socket::can_open(proto),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cofferdam-probe: {message}");
            ExitCode::from(2)
        }
    }
}

/// A number from the command line, named in the error.
fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{what} is not a number: {text:?}"))
}
