//! Declared and undeclared flows from the first instruction on, and every success with its time.
//!
//! Of each flow one attempt is patient: a connect or a datagram that waits to the end, so that a late opening is seen,
//! too. Connecting at the first SYN shows in the time: a SYN (or the ARP request before it) that is lost is sent again
//! after 1 s, so a connection that took less than [`FIRST_SYN`] lost none.

use std::io::{BufRead, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::flow::{Outcome, Target, exchange, nonce};
use crate::number;
use crate::socket::{ConnectError, Proto, connect_stream};

/// The kernel sends a SYN again after 1 s (`TCP_TIMEOUT_INIT`), and an ARP request after 1 s (`retrans_time_ms`).
const FIRST_SYN: Duration = Duration::from_millis(900);
const ATTEMPT: Duration = Duration::from_millis(100);
/// Side by side for each undeclared flow.
const WORKERS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(3600);
/// Between two exchanges of a flow.
const PACE: Duration = Duration::from_millis(5);
/// Between two exchanges of a declared flow of a probe that runs for a given time: many of them start at once then, and what
/// counts is the first connect. At the other pace 50 probes make 10,000 connections a second.
const SLOW_PACE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Tally {
    attempts: AtomicU64,
    successes: AtomicU64,
    unable: AtomicU64,
    /// Moments of successes, and the longest time between two.
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    last: Instant,
    longest: Duration,
}

impl Tally {
    fn count(&self, target: Target, sign: char, outcome: &Outcome) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Answered => {
                let now = Instant::now();
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                let seen = seen.get_or_insert(Seen {
                    first: now,
                    last: now,
                    longest: Duration::ZERO,
                });
                seen.longest = seen.longest.max(now.saturating_duration_since(seen.last));
                seen.last = now;
                if self.successes.fetch_add(1, Ordering::Relaxed) < 5 && sign == '-' {
                    println!("success {} {target}", epoch_ms());
                }
            }
            Outcome::Denied(_) => {}
            Outcome::Unable(reason) => {
                if self.unable.fetch_add(1, Ordering::Relaxed) < 5 {
                    println!("unable {target} {reason}");
                }
            }
        }
    }
}

#[derive(Debug)]
struct Flow {
    declared: bool,
    target: Target,
    tally: Tally,
    /// How long the patient first connect took.
    connected: Mutex<Option<Duration>>,
}

fn epoch_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}

/// `leak SECONDS|stdin (+|-)PROTO/ADDRESS/PORT ...`: `+` is declared, `-` undeclared. Prints `begun EPOCH_MS`, each
/// undeclared success at once, and at the end, for each flow,
/// `flow SIGN PROTO ADDRESS PORT ATTEMPTS SUCCESSES UNABLE FIRST_MS|- LONGEST_GAP_MS|- CONNECTED_MS|- first-syn|late|-`.
/// The last two are of the first TCP connect; it had an answer too.
pub(crate) fn run(until: &str, words: &[&str]) -> Result<(), String> {
    let begun = Instant::now();
    let limit = match until {
        "stdin" => None,
        seconds => Some(Duration::from_secs_f64(number("the seconds", seconds)?)),
    };
    let flows: Vec<Flow> = words.iter().map(|word| flow(word)).collect::<Result<_, _>>()?;
    println!("begun {}", epoch_ms());
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for flow in &flows {
            // A connect cannot be interrupted: the process does not wait for it.
            let target = flow.target;
            let (sender, receiver) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let _ = sender.send(patient(target, limit.unwrap_or(PATIENCE)));
            });
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((outcome, connected)) = receiver.recv_timeout(Duration::from_millis(20)) {
                        flow.tally.count(flow.target, flow.sign(), &outcome);
                        *flow.connected.lock().unwrap_or_else(PoisonError::into_inner) = connected;
                        return;
                    }
                }
            });
            let workers = if flow.declared { 1 } else { WORKERS };
            let pace = if flow.declared && limit.is_some() {
                SLOW_PACE
            } else {
                PACE
            };
            for worker in 0..workers {
                scope.spawn(move || {
                    std::thread::sleep(ATTEMPT / workers * worker);
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        flow.tally
                            .count(flow.target, flow.sign(), &exchange(flow.target, ATTEMPT));
                        std::thread::sleep(pace.saturating_sub(begun.elapsed()));
                    }
                });
            }
        }
        match limit {
            Some(limit) => std::thread::sleep(limit.saturating_sub(begun.elapsed())),
            None => drop(std::io::stdin().lock().lines().map_while(Result::ok).count()),
        }
        stop.store(true, Ordering::Relaxed);
    });
    for flow in &flows {
        flow.print(begun);
    }
    Ok(())
}

impl Flow {
    fn sign(&self) -> char {
        if self.declared { '+' } else { '-' }
    }

    fn print(&self, begun: Instant) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let or_dash = |time: Option<Duration>| time.map_or("-".to_owned(), |it| it.as_millis().to_string());
        let seen = *self.tally.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = *self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        // A gap that has not ended counts as well.
        let longest = seen.map(|seen| seen.longest.max(seen.last.elapsed()));
        println!(
            "flow {} {} {} {} {} {} {} {}",
            self.sign(),
            self.target,
            get(&self.tally.attempts),
            get(&self.tally.successes),
            get(&self.tally.unable),
            or_dash(seen.map(|seen| seen.first.saturating_duration_since(begun))),
            or_dash(longest),
            match connected {
                Some(time) if time < FIRST_SYN => format!("{} first-syn", time.as_millis()),
                Some(time) => format!("{} late", time.as_millis()),
                None => "- -".to_owned(),
            }
        );
    }
}

fn flow(word: &str) -> Result<Flow, String> {
    let wrong = || format!("not (+|-)PROTO/ADDRESS/PORT: {word:?}");
    let declared = match word.chars().next() {
        Some('+') => true,
        Some('-') => false,
        _ => return Err(wrong()),
    };
    let [proto, address, port] = word[1..].split('/').collect::<Vec<_>>()[..] else {
        return Err(wrong());
    };
    let port = if port == "echo" {
        0
    } else {
        number("the port", port)?
    };
    Ok(Flow {
        declared,
        target: Target {
            proto: proto.parse()?,
            address: address.parse().map_err(|_| wrong())?,
            port,
        },
        tally: Tally::default(),
        connected: Mutex::default(),
    })
}

/// One attempt that waits, and how long its connect took where it had one.
fn patient(target: Target, patience: Duration) -> (Outcome, Option<Duration>) {
    if target.proto != Proto::Tcp {
        return (exchange(target, patience), None);
    }
    let begun = Instant::now();
    let to = SocketAddr::new(target.address, target.port);
    let mut stream = match connect_stream(Proto::Tcp, to, patience) {
        Ok(stream) => stream,
        Err(ConnectError::Denied(error)) => return (Outcome::Denied(error.to_string()), None),
        Err(ConnectError::Unable(error)) => return (Outcome::Unable(error.to_string()), None),
    };
    let connected = begun.elapsed();
    let request = nonce();
    let mut answer = [0; 16];
    let outcome = stream
        .write_all(&request)
        .and_then(|()| stream.read_exact(&mut answer));
    match outcome {
        Ok(()) if answer == request => (Outcome::Answered, Some(connected)),
        Ok(()) => (Outcome::Denied("another answer".to_owned()), None),
        Err(error) => (Outcome::Denied(error.to_string()), None),
    }
}
