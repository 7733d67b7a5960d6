//! One attempt, with a socket that was made in the namespace it starts from.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockaddrStorage;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::verify::verdict::Evidence;

/// What was seen, or why it could not be tried; and from where it was tried.
pub(super) type Tried = (Result<Evidence, String>, Option<SocketAddr>);

pub(super) async fn connect(socket: OwnedFd, address: SocketAddr, patience: Duration) -> Tried {
    let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address));
    let stream = StdTcpStream::from(socket);
    // With the first packet the kernel has chosen both.
    let source = stream.local_addr().ok();
    match begun {
        Ok(()) => return (Ok(Evidence::Connected), source),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return (failure(errno), source),
    }
    let outcome = async {
        let stream = TcpStream::from_std(stream)?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => stream.peer_addr().map(drop),
        }
    };
    let result = match timeout(patience, outcome).await {
        Ok(Ok(())) => Ok(Evidence::Connected),
        Ok(Err(error)) => of_io(&error),
        Err(_) => Ok(Evidence::Silent),
    };
    (result, source)
}

pub(super) async fn send(socket: OwnedFd, address: SocketAddr, patience: Duration) -> Tried {
    if let Err(errno) = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        return (failure(errno), None);
    }
    let socket = StdUdpSocket::from(socket);
    let source = socket.local_addr().ok();
    let outcome = async {
        let socket = UdpSocket::from_std(socket)?;
        socket.send(&[]).await?;
        socket.recv(&mut [0; 1]).await
    };
    let result = match timeout(patience, outcome).await {
        Ok(Ok(_)) => Ok(Evidence::Answered),
        Ok(Err(error)) => of_io(&error),
        Err(_) => Ok(Evidence::Silent),
    };
    (result, source)
}

fn of_io(error: &io::Error) -> Result<Evidence, String> {
    match error.raw_os_error() {
        Some(number) => failure(Errno::from_raw(number)),
        None => Err(error.to_string()),
    }
}

/// What an error of the sender's network stack says of the connection.
fn failure(errno: Errno) -> Result<Evidence, String> {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Ok(Evidence::Refused),
        Errno::ETIMEDOUT => Ok(Evidence::Silent),
        Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES | Errno::EPERM | Errno::EHOSTDOWN => {
            Ok(Evidence::Unreachable(errno.desc().to_lowercase()))
        }
        other => Err(other.desc().to_lowercase()),
    }
}
