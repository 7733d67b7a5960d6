//! One connection that is kept busy, and what became of it.
//!
//! Prints `open LOCAL PEER` or `failed REASON`; then, for each line on stdin,
//! `report ANSWERS MS_SINCE_LAST LONGEST_GAP_MS BROKEN_REASON|-`. Ends with stdin.

use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::flow::nonce;
use crate::number;
use crate::socket::{self, ConnectError, Family, Proto};

/// For the opening: what is held must be open before the case goes on.
const OPENING: Duration = Duration::from_millis(2000);

#[derive(Debug)]
struct Record {
    answers: u64,
    last: Instant,
    longest: Duration,
    broken: Option<String>,
}

type Shared = Arc<Mutex<Record>>;

fn note(shared: &Shared, change: impl FnOnce(&mut Record)) {
    change(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
}

fn answered(shared: &Shared) {
    note(shared, |record| {
        record.longest = record.longest.max(record.last.elapsed());
        record.last = Instant::now();
        record.answers += 1;
    });
}

fn broken(shared: &Shared, reason: String) {
    note(shared, |record| record.broken = Some(reason));
}

/// `hold PROTO ADDRESS PORT INTERVAL_MS`
pub(crate) fn run(proto: &str, address: &str, port: &str, interval: &str) -> Result<(), String> {
    let proto: Proto = proto.parse()?;
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("not an address: {address:?}"))?;
    let to = SocketAddr::new(address, number("the port", port)?);
    let interval = Duration::from_millis(number("the interval", interval)?);
    let shared = Arc::new(Mutex::new(Record {
        answers: 0,
        last: Instant::now(),
        longest: Duration::ZERO,
        broken: None,
    }));
    let local = match proto {
        Proto::Tcp | Proto::Sctp => hold_stream(proto, to, interval, &shared),
        Proto::Udp => hold_datagrams(to, interval, &shared),
        Proto::Icmp => return Err("ICMP has no connection to hold".to_owned()),
    };
    match local {
        Ok(local) => println!("open {local} {to}"),
        Err(reason) => {
            println!("failed {reason}");
            return Ok(());
        }
    }
    for line in io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        note(&shared, |record| {
            let since = record.last.elapsed();
            let reason = record.broken.as_deref().unwrap_or("-");
            let longest = record.longest.max(since);
            println!(
                "report {} {} {} {reason}",
                record.answers,
                since.as_millis(),
                longest.as_millis()
            );
        });
    }
    Ok(())
}

fn hold_stream(
    proto: Proto,
    to: SocketAddr,
    interval: Duration,
    shared: &Shared,
) -> Result<SocketAddr, String> {
    let connected = socket::connect_stream(proto, to, OPENING);
    let mut stream = connected.map_err(|error| match error {
        ConnectError::Denied(error) | ConnectError::Unable(error) => error.to_string(),
    })?;
    let local = stream.local_addr().map_err(|error| error.to_string())?;
    stream
        .set_read_timeout(Some(OPENING))
        .map_err(|error| error.to_string())?;
    request(&mut stream).map_err(|error| format!("connected, then {error}"))?;
    stream.set_read_timeout(None).map_err(|error| error.to_string())?;
    answered(shared);
    note(shared, |record| record.longest = Duration::ZERO);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(interval);
            match request(&mut stream) {
                Ok(()) => answered(&shared),
                Err(error) => return broken(&shared, error.to_string()),
            }
        }
    });
    Ok(local)
}

fn request(stream: &mut TcpStream) -> io::Result<()> {
    let sent = nonce();
    let mut back = [0; 16];
    stream.write_all(&sent)?;
    stream.read_exact(&mut back)?;
    if back == sent {
        Ok(())
    } else {
        Err(io::Error::other("another answer than the request's echo"))
    }
}

fn hold_datagrams(to: SocketAddr, interval: Duration, shared: &Shared) -> Result<SocketAddr, String> {
    let open = || -> io::Result<(UdpSocket, SocketAddr)> {
        let socket = UdpSocket::bind((Family::of(to.ip()).wildcard(), 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(interval))?;
        let local = socket.local_addr()?;
        Ok((socket, local))
    };
    let (socket, local) = open().map_err(|error| error.to_string())?;
    let turn = move || {
        let begun = Instant::now();
        let mut buffer = [0; 64];
        let back = socket
            .send(&nonce())
            .and_then(|_| socket.recv(&mut buffer))
            .is_ok();
        std::thread::sleep(interval.saturating_sub(begun.elapsed()));
        back
    };
    let deadline = Instant::now() + OPENING;
    while !turn() {
        if Instant::now() > deadline {
            return Err("no answer".to_owned());
        }
    }
    answered(shared);
    note(shared, |record| record.longest = Duration::ZERO);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        loop {
            if turn() {
                answered(&shared);
            }
        }
    });
    Ok(local)
}
