//! Many exchanges in a row, for what must never succeed.

use std::io::BufRead;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::flow::{Outcome, Target, exchange};
use crate::number;

/// Short, because the next attempt follows: what matters is that none succeeds.
const ATTEMPT: Duration = Duration::from_millis(250);
const MOST_WORKERS: u32 = 64;

#[derive(Debug, Default)]
struct Tally {
    attempts: AtomicU64,
    successes: AtomicU64,
    unable: AtomicU64,
}

impl Tally {
    fn count(&self, target: Target, outcome: &Outcome) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Answered => {
                if self.successes.fetch_add(1, Ordering::Relaxed) < 5 {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    println!("success {} {target}", now.as_millis());
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

    fn print(&self) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "tally {} {} {}",
            get(&self.attempts),
            get(&self.successes),
            get(&self.unable)
        );
    }
}

/// `never-allowed RATE_HZ`: targets on stdin until an empty line; prints `success MS TARGET` at once and
/// `tally ATTEMPTS SUCCESSES UNABLE` when stdin ends.
pub(crate) fn never_allowed(rate: &str) -> Result<(), String> {
    let rate: f64 = number("the rate", rate)?;
    let rate = rate.clamp(0.1, 2000.0);
    let mut lines = std::io::stdin().lock().lines();
    let mut targets = Vec::new();
    for line in lines.by_ref() {
        let line = line.map_err(|error| format!("cannot read the targets: {error}"))?;
        if line.trim().is_empty() {
            break;
        }
        targets.push(target(&line.split_whitespace().collect::<Vec<_>>())?);
    }
    let workers = ((rate * ATTEMPT.as_secs_f64()).ceil() as u32).clamp(1, MOST_WORKERS);
    let pace = Duration::from_secs_f64(f64::from(workers) / rate);
    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for target in targets {
            for worker in 0..workers {
                let (tally, stop) = (&tally, &stop);
                scope.spawn(move || {
                    std::thread::sleep(pace / workers * worker);
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        tally.count(target, &exchange(target, ATTEMPT));
                        std::thread::sleep(pace.saturating_sub(begun.elapsed()));
                    }
                });
            }
        }
        println!("running");
        for line in lines {
            if line.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    tally.print();
    Ok(())
}

/// `hammer SECONDS PROTO ADDRESS PORT ...`: one tight loop for each target, then `tally ...`.
pub(crate) fn hammer(seconds: &str, words: &[&str]) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs_f64(number("the seconds", seconds)?);
    let targets: Vec<Target> = words.chunks(3).map(target).collect::<Result<_, _>>()?;
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for target in targets {
            let tally = &tally;
            // Several at a time: an attempt into the void must not hide the moment after it.
            for _ in 0..4 {
                scope.spawn(move || {
                    while Instant::now() < until {
                        let begun = Instant::now();
                        tally.count(target, &exchange(target, Duration::from_millis(25)));
                        std::thread::sleep(Duration::from_millis(1).saturating_sub(begun.elapsed()));
                    }
                });
            }
        }
    });
    tally.print();
    Ok(())
}

fn target(words: &[&str]) -> Result<Target, String> {
    let [proto, address, port] = words else {
        return Err(format!("not PROTO ADDRESS PORT: {words:?}"));
    };
    let address = address
        .parse()
        .map_err(|_| format!("not an address: {address:?}"))?;
    let port = if *port == "echo" {
        0
    } else {
        number("the port", port)?
    };
    Ok(Target {
        proto: proto.parse()?,
        address,
        port,
    })
}
