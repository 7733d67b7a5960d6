//! A batch of flows from stdin, all at once: `ID PROTO ADDRESS|name:NAME PORT|echo [4|6]`.
//!
//! Prints `ID ADDRESS allow|deny|error REASON` for every address tried, `ID - deny REASON` for a name without one.

use std::collections::VecDeque;
use std::io::BufRead;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use crate::dns;
use crate::flow::{Outcome, Target, exchange};
use crate::number;
use crate::socket::{Family, Proto};

/// Threads at a time; a denied flow costs its whole timeout. The runner counts on this number.
const AT_ONCE: usize = 64;
const BEFORE_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Place {
    Address(IpAddr),
    Name(String, Family),
}

#[derive(Debug)]
struct Flow {
    id: String,
    proto: Proto,
    place: Place,
    port: u16,
}

impl std::str::FromStr for Flow {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (id, proto, place, port, family) = match words.as_slice() {
            [id, proto, place, port] => (id, proto, place, port, "4"),
            [id, proto, place, port, family] => (id, proto, place, port, *family),
            _ => return Err(format!("not a flow: {line:?}")),
        };
        let place = match place.strip_prefix("name:") {
            Some(name) => Place::Name(name.to_owned(), family.parse()?),
            None => Place::Address(place.parse().map_err(|_| format!("not an address: {place:?}"))?),
        };
        let port = if *port == "echo" {
            0
        } else {
            number("the port", port)?
        };
        Ok(Self {
            id: (*id).to_owned(),
            proto: proto.parse()?,
            place,
            port,
        })
    }
}

/// `check TIMEOUT_MS RETRIES [NAMESERVER]`
pub(crate) fn run(timeout: &str, retries: &str, nameserver: Option<&str>) -> Result<(), String> {
    let timeout = Duration::from_millis(number("the timeout", timeout)?);
    let retries: u32 = number("the number of retries", retries)?;
    let mut flows = VecDeque::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("cannot read the flows: {error}"))?;
        if !line.trim().is_empty() {
            flows.push_back(line.parse::<Flow>()?);
        }
    }
    let threads = flows.len().min(AT_ONCE);
    let queue = Mutex::new(flows);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
                while let Some(flow) = next() {
                    one(&flow, timeout, retries, nameserver);
                }
            });
        }
    });
    Ok(())
}

fn one(flow: &Flow, timeout: Duration, retries: u32, nameserver: Option<&str>) {
    let addresses = match &flow.place {
        Place::Address(address) => vec![*address],
        Place::Name(name, family) => match ask(name, *family, nameserver) {
            Ok(addresses) if addresses.is_empty() => {
                println!("{} - deny the name has no address", flow.id);
                return;
            }
            Ok(addresses) => addresses,
            Err(reason) => {
                println!("{} - deny {name} does not resolve: {reason}", flow.id);
                return;
            }
        },
    };
    std::thread::scope(|scope| {
        for address in addresses {
            scope.spawn(move || {
                let target = Target {
                    proto: flow.proto,
                    address,
                    port: flow.port,
                };
                let mut outcome = exchange(target, timeout);
                for _ in 0..retries {
                    if matches!(outcome, Outcome::Answered) {
                        break;
                    }
                    std::thread::sleep(BEFORE_RETRY);
                    outcome = exchange(target, timeout);
                }
                let (verdict, reason) = match outcome {
                    Outcome::Answered => ("allow", "answered".to_owned()),
                    Outcome::Denied(reason) => ("deny", reason),
                    Outcome::Unable(reason) => ("error", reason),
                };
                println!("{} {address} {verdict} {reason}", flow.id);
            });
        }
    });
}

fn ask(name: &str, family: Family, nameserver: Option<&str>) -> Result<Vec<IpAddr>, String> {
    let server = match nameserver {
        Some(text) => text.parse().map_err(|_| format!("not an address: {text:?}"))?,
        None => dns::nameserver("/etc/resolv.conf")?,
    };
    dns::lookup(name, family, server)
}

/// `resolve NAME 4|6 [NAMESERVER]`: one address a line; exit 2 with the reason when there is none.
pub(crate) fn resolve(name: &str, family: &str, nameserver: Option<&str>) -> Result<(), String> {
    let addresses = ask(name, family.parse()?, nameserver)?;
    for address in &addresses {
        println!("{address}");
    }
    if addresses.is_empty() {
        Err(format!("{name} has no address of that family"))
    } else {
        Ok(())
    }
}
