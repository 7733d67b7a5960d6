//! A DNS client of one question: a static C library cannot look names up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use crate::socket::Family;

/// How long one question may take; Docker's embedded server asks others for names it does not know.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The first nameserver of a resolv.conf.
pub(crate) fn nameserver(resolv_conf: &str) -> Result<IpAddr, String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next().and_then(|w| w.parse().ok()))
            .flatten()
    };
    let text = std::fs::read_to_string(resolv_conf)
        .map_err(|error| format!("cannot read {resolv_conf}: {error}"))?;
    text.lines()
        .find_map(line)
        .ok_or_else(|| format!("{resolv_conf} names no server"))
}

/// The addresses of a name in one family, or why it does not resolve.
pub(crate) fn lookup(name: &str, family: Family, server: IpAddr) -> Result<Vec<IpAddr>, String> {
    let ask = || -> io::Result<Result<Vec<IpAddr>, String>> {
        let socket = UdpSocket::bind((Family::of(server).wildcard(), 0))?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let question = encode(name, family);
        socket.send(&question)?;
        let mut answer = [0; 4096];
        loop {
            let length = socket.recv(&mut answer)?;
            if length >= 12 && answer[..2] == question[..2] {
                return Ok(decode(&answer[..length], family));
            }
        }
    };
    match ask() {
        Ok(outcome) => outcome,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(format!("{server} did not answer")),
        Err(error) => Err(format!("{server} could not be asked: {error}")),
    }
}

fn record_type(family: Family) -> u16 {
    match family {
        Family::V4 => 1,
        Family::V6 => 28,
    }
}

fn encode(name: &str, family: Family) -> Vec<u8> {
    let id = crate::flow::nonce();
    // Id, recursion desired, one question.
    let mut message = vec![id[14] ^ id[6], id[15] ^ id[7], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        message.push(label.len().min(63) as u8);
        message.extend(label.bytes().take(63));
    }
    message.push(0);
    message.extend(record_type(family).to_be_bytes());
    message.extend([0, 1]);
    message
}

fn decode(message: &[u8], family: Family) -> Result<Vec<IpAddr>, String> {
    match message[3] & 0x0f {
        0 => {}
        3 => return Err("no such name".to_owned()),
        code => return Err(format!("the server answered with code {code}")),
    }
    records(message, family).ok_or_else(|| "the answer is cut short".to_owned())
}

fn records(message: &[u8], family: Family) -> Option<Vec<IpAddr>> {
    let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let mut at = 12;
    for _ in 0..word(4)? {
        at = skip_name(message, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..word(6)? {
        at = skip_name(message, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == record_type(family) {
            let v4 = <[u8; 4]>::try_from(data).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
            let v6 = <[u8; 16]>::try_from(data).map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
            found.extend(v4.or(v6));
        }
        at += 10 + length;
    }
    Some(found)
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}
