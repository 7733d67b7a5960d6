//! Echo servers, and the duties of PID 1.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::Builder;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::number;
use crate::socket::{Family, Proto, listen_datagram, listen_stream};

const STACK: usize = 128 * 1024;
/// Longer than any case holds a silent connection.
const IDLE: Duration = Duration::from_secs(300);

/// `listen PROTO/PORT,...`
pub(crate) fn listen(ports: &str) -> Result<(), String> {
    // Before the threads, which inherit the mask: only `wait` takes the signals.
    block_signals()?;
    for entry in ports.split(',').filter(|entry| !entry.is_empty()) {
        let (proto, port) = entry
            .split_once('/')
            .ok_or_else(|| format!("not PROTO/PORT: {entry:?}"))?;
        let (proto, port) = (proto.parse()?, number("the port", port)?);
        for family in [Family::V4, Family::V6] {
            match serve(proto, family, port) {
                Err(error) if family == Family::V6 && lacks_family(&error) => {}
                outcome => outcome.map_err(|error| format!("cannot listen on {entry}: {error}"))?,
            }
        }
    }
    println!("listening {ports}");
    wait()
}

/// `sleep`
pub(crate) fn wait_as_init() -> Result<(), String> {
    block_signals()?;
    wait()
}

fn lacks_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]
        .into_iter()
        .collect()
}

fn block_signals() -> Result<(), String> {
    signals()
        .thread_block()
        .map_err(|errno| format!("cannot block signals: {errno}"))
}

/// PID 1 has no default for SIGTERM, and inherits orphans.
fn wait() -> Result<(), String> {
    loop {
        match signals().wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                }
            }
            Ok(_) => return Ok(()),
            Err(errno) => return Err(format!("cannot wait for signals: {errno}")),
        }
    }
}

fn serve(proto: Proto, family: Family, port: u16) -> io::Result<()> {
    match proto {
        Proto::Tcp | Proto::Sctp => {
            let listener = listen_stream(proto, family, port)?;
            Builder::new()
                .stack_size(STACK)
                .spawn(move || accept(&listener))
                .map(drop)
        }
        Proto::Udp => {
            let socket = listen_datagram(family, port)?;
            Builder::new()
                .stack_size(STACK)
                .spawn(move || datagrams(&socket, family))
                .map(drop)
        }
        // The kernel answers echo requests.
        Proto::Icmp => Ok(()),
    }
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let started = Builder::new().stack_size(STACK).spawn(move || echo(stream));
                if let Err(error) = started {
                    eprintln!("cofferdam-probe: cannot serve a connection: {error}");
                }
            }
            Err(error) => {
                eprintln!("cofferdam-probe: cannot accept: {error}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    if stream.set_read_timeout(Some(IDLE)).is_err() {
        return;
    }
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Answers from the address that was asked: a container with several networks would else choose another.
fn datagrams(socket: &UdpSocket, family: Family) {
    loop {
        if let Err(errno) = one_datagram(socket, family) {
            eprintln!("cofferdam-probe: a datagram got no answer: {errno}");
        }
    }
}

fn one_datagram(socket: &UdpSocket, family: Family) -> nix::Result<()> {
    let mut buffer = [0; 4096];
    let mut space = match family {
        Family::V4 => nix::cmsg_space!(nix::libc::in_pktinfo),
        Family::V6 => nix::cmsg_space!(nix::libc::in6_pktinfo),
    };
    let (length, from, asked) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        (message.bytes, message.address, message.cmsgs()?.next())
    };
    let parts = [IoSlice::new(&buffer[..length])];
    let send = |control: &[ControlMessage<'_>]| {
        sendmsg(
            socket.as_raw_fd(),
            &parts,
            control,
            MsgFlags::empty(),
            from.as_ref(),
        )
        .map(drop)
    };
    match asked {
        Some(ControlMessageOwned::Ipv4PacketInfo(mut info)) => {
            info.ipi_spec_dst = info.ipi_addr;
            info.ipi_ifindex = 0;
            send(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => send(&[ControlMessage::Ipv6PacketInfo(&info)]),
        _ => send(&[]),
    }
}
