//! One netfilter netlink socket: dumps, acknowledged requests and atomic nftables batches.
//!
//! In: encoded messages. Out: the attributes of what the kernel answers, or its error number. The socket stays open,
//! because closing a netfilter socket waits for an RCU grace period (about 15 ms).
//!
//! Netfilter handles a request within the `send` call, so every answer is queued when `send` returns; the receive
//! timeout is only there so that nothing can ever hang.

mod wire;

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use self::wire::{NLMSG_DONE, append};

pub(super) use self::wire::{
    Received, attribute, attributes, messages, size, text, text_attribute, u32_attribute, u64_attribute,
};

/// `NFNL_SUBSYS_NFTABLES`
pub(in crate::kernel) const SUBSYSTEM_NFTABLES: u16 = 10;
/// A dump's datagram is at most 32 KiB; a notification's may be larger.
pub(in crate::kernel) const DATAGRAM: usize = 64 * 1024;
/// The most that one message batch may hold; also half the socket's send buffer. An element takes about 120 bytes.
pub(in crate::kernel) const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Enough for the error answers of a batch of many thousand changes (an answer occupies about 1 KiB).
const RECEIVE_BUFFER: usize = 32 * 1024 * 1024;
const RECEIVE_TIMEOUT_SECONDS: i64 = 5;
/// A dump that was interrupted by a change starts again this often.
const DUMP_ATTEMPTS: usize = 16;
/// Requests sent in one datagram when each is answered by itself.
const REQUESTS_AT_ONCE: usize = 128;

const NLM_F_DUMP_INTR: u16 = 0x10;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("could not open a netfilter netlink socket")]
    Open(#[source] io::Error),
    #[error("could not send to the kernel over netlink")]
    Send(#[source] io::Error),
    #[error("could not receive from the kernel over netlink")]
    Receive(#[source] io::Error),
    #[error("the kernel did not answer over netlink within {RECEIVE_TIMEOUT_SECONDS} s")]
    Timeout,
    #[error("the netlink socket's buffer overran and answers of the kernel were lost")]
    Overrun,
    #[error("the kernel refused the request")]
    Refused(#[source] Errno),
    #[error("the listing was changed while it was read, {DUMP_ATTEMPTS} times in a row")]
    Unsteady,
    #[error("the kernel's netlink answer cannot be read")]
    Malformed,
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(errno) => Some(*errno),
            _ => None,
        }
    }

    /// Whether the same request may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout | Self::Overrun | Self::Unsteady => true,
            Self::Refused(errno) => {
                matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::EBUSY | Errno::ENOMEM)
            }
            Self::Open(_) | Self::Send(_) | Self::Receive(_) | Self::Malformed => false,
        }
    }
}

/// Why a batch was not applied: nothing of it was.
#[derive(Debug)]
pub(in crate::kernel) struct BatchError {
    /// Which message the kernel named, if it named one.
    pub(in crate::kernel) index: Option<usize>,
    pub(in crate::kernel) source: NetlinkError,
}

impl BatchError {
    fn whole(source: NetlinkError) -> Self {
        Self { index: None, source }
    }
}

/// One message of a batch, with the flags beside `NLM_F_REQUEST`.
pub(in crate::kernel) type Request = (NetfilterMessage, u16);

/// A message for a family.
pub(in crate::kernel) fn message(
    family: NetfilterProtoFamily,
    inner: impl Into<NetfilterMessageInner>,
) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// The socket.
pub(in crate::kernel) struct Netfilter {
    socket: Socket,
    port: u32,
    sequence: u32,
    datagram: Vec<u8>,
}

impl std::fmt::Debug for Netfilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netfilter")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Netfilter {
    /// Opens the socket in the network namespace of the calling thread.
    pub(in crate::kernel) fn open() -> Result<Self, NetlinkError> {
        let (socket, port) = open_socket().map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            port,
            sequence: 1,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// The number under which the kernel announces this socket's transactions.
    pub(in crate::kernel) fn port(&self) -> u32 {
        self.port
    }

    /// Everything that a dump returns, as `parse` sees it; `parse` passes over with `None`.
    pub(in crate::kernel) fn dump<T>(
        &mut self,
        request: &NetfilterMessage,
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(listed) = self.dump_once(request, &mut parse)? {
                return Ok(listed);
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// `None`: a change came between two parts of the dump.
    fn dump_once<T>(
        &mut self,
        request: &NetfilterMessage,
        parse: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let sequence = self.next_sequence(1);
        let mut bytes = Vec::new();
        append(&mut bytes, request, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.send(&bytes)?;
        let (mut listed, mut steady) = (Vec::new(), true);
        loop {
            self.receive(0)?;
            for received in messages(&self.datagram).filter(|received| received.sequence == sequence) {
                steady &= received.flags & NLM_F_DUMP_INTR == 0;
                match (received.kind, received.error()) {
                    (_, Some(0)) => return Err(NetlinkError::Malformed),
                    (_, Some(errno)) => return refused_dump(errno),
                    (NLMSG_DONE, None) => {
                        let code = received
                            .payload
                            .first_chunk()
                            .copied()
                            .map_or(0, i32::from_ne_bytes);
                        if code < 0 {
                            return refused_dump(code.saturating_neg());
                        }
                        return Ok(steady.then_some(listed));
                    }
                    (_, None) => listed.extend(parse(received.attributes())),
                }
            }
        }
    }

    /// The answer to one request for one object.
    pub(in crate::kernel) fn get<T>(
        &mut self,
        request: &NetfilterMessage,
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        let sequence = self.next_sequence(1);
        let mut bytes = Vec::new();
        append(&mut bytes, request, NLM_F_REQUEST, sequence);
        self.send(&bytes)?;
        loop {
            self.receive(0)?;
            let answer = messages(&self.datagram).find(|received| received.sequence == sequence);
            let Some(received) = answer else {
                continue;
            };
            return match received.error() {
                Some(errno) => Err(NetlinkError::Refused(Errno::from_raw(errno))),
                None => parse(received.attributes()).ok_or(NetlinkError::Malformed),
            };
        }
    }

    /// Requests that stand for themselves: each one's own error, in order; `None` for success.
    pub(in crate::kernel) fn calls(
        &mut self,
        requests: &[NetfilterMessage],
    ) -> Result<Vec<Option<Errno>>, NetlinkError> {
        let mut results = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(REQUESTS_AT_ONCE) {
            let base = self.next_sequence(chunk.len());
            let mut bytes = Vec::new();
            for (sequence, request) in (base..).zip(chunk) {
                append(&mut bytes, request, NLM_F_REQUEST | NLM_F_ACK, sequence);
            }
            self.send(&bytes)?;
            let mut answers: Vec<Option<i32>> = vec![None; chunk.len()];
            while answers.iter().any(Option::is_none) {
                self.receive(0)?;
                for received in messages(&self.datagram) {
                    let index = usize::try_from(received.sequence.wrapping_sub(base)).unwrap_or(usize::MAX);
                    if let (Some(errno), Some(answer)) = (received.error(), answers.get_mut(index)) {
                        *answer = Some(errno);
                    }
                }
            }
            results.extend(
                answers
                    .into_iter()
                    .map(|answer| answer.filter(|errno| *errno != 0).map(Errno::from_raw)),
            );
        }
        Ok(results)
    }

    /// One nftables transaction: all of it or nothing.
    pub(in crate::kernel) fn batch(&mut self, requests: &[Request]) -> Result<(), BatchError> {
        let Some(last) = requests.len().checked_sub(1) else {
            return Ok(());
        };
        let base = self.next_sequence(requests.len() + 2);
        let control = |inner| {
            NetfilterMessage::new(
                NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES),
                NetfilterMessageInner::None(inner),
            )
        };
        let mut bytes = Vec::new();
        append(
            &mut bytes,
            &control(ControlMessage::BatchBegin),
            NLM_F_REQUEST,
            base,
        );
        let mut sequence = base;
        for (index, (request, flags)) in requests.iter().enumerate() {
            sequence = sequence.wrapping_add(1);
            // Errors are always answered; one acknowledgement says that the kernel got to the end.
            let ack = if index == last { NLM_F_ACK } else { 0 };
            append(&mut bytes, request, NLM_F_REQUEST | flags | ack, sequence);
        }
        let end = sequence.wrapping_add(1);
        append(&mut bytes, &control(ControlMessage::BatchEnd), NLM_F_REQUEST, end);
        self.send(&bytes).map_err(BatchError::whole)?;
        self.batch_answers(base, requests.len())
    }

    fn batch_answers(&mut self, base: u32, count: usize) -> Result<(), BatchError> {
        let (mut acknowledged, mut failure): (bool, Option<BatchError>) = (false, None);
        let mut overrun = false;
        loop {
            let waiting = !acknowledged && failure.is_none() && !overrun;
            match self.receive(if waiting { 0 } else { nix::libc::MSG_DONTWAIT }) {
                Ok(()) => {}
                Err(NetlinkError::Timeout) if !waiting => break,
                Err(NetlinkError::Overrun) => overrun = true,
                Err(error) => return Err(BatchError::whole(error)),
            }
            for received in messages(&self.datagram) {
                let position = usize::try_from(received.sequence.wrapping_sub(base)).unwrap_or(usize::MAX);
                let (Some(code), true) = (received.error(), position <= count + 1) else {
                    continue;
                };
                let index = position.checked_sub(1).filter(|index| *index < count);
                if code == 0 {
                    acknowledged |= index == count.checked_sub(1);
                } else {
                    // The first message that the kernel names is the best explanation.
                    let better = failure
                        .as_ref()
                        .is_none_or(|known| known.index.is_none() && index.is_some());
                    if better {
                        let source = NetlinkError::Refused(Errno::from_raw(code));
                        failure = Some(BatchError { index, source });
                    }
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if overrun => Err(BatchError::whole(NetlinkError::Overrun)),
            None => Ok(()),
        }
    }

    /// How long an answer or a notification is waited for.
    pub(in crate::kernel) fn set_patience(&self, patience: Duration) -> Result<(), NetlinkError> {
        let milliseconds = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
        setsockopt(
            &self.socket,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(milliseconds),
        )
        .map_err(|errno| NetlinkError::Open(errno.into()))
    }

    /// Waits for a datagram that nobody asked for.
    pub(in crate::kernel) fn notification(&mut self) -> Result<&[u8], NetlinkError> {
        self.receive(0)?;
        Ok(&self.datagram)
    }

    fn next_sequence(&mut self, count: usize) -> u32 {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // Zero is the sequence number of notifications.
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 1;
        }
        let first = self.sequence;
        self.sequence = self.sequence.saturating_add(count);
        first
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.socket.send(bytes, 0).map(drop).map_err(NetlinkError::Send)
    }

    fn receive(&mut self, flags: i32) -> Result<(), NetlinkError> {
        loop {
            self.datagram.clear();
            match self.socket.recv(&mut self.datagram, flags) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(NetlinkError::Timeout),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    return Err(NetlinkError::Overrun);
                }
                Err(error) => return Err(NetlinkError::Receive(error)),
            }
        }
    }
}

fn refused_dump<T>(errno: i32) -> Result<Option<T>, NetlinkError> {
    match Errno::from_raw(errno) {
        Errno::EINTR => Ok(None),
        errno => Err(NetlinkError::Refused(errno)),
    }
}

fn open_socket() -> io::Result<(Socket, u32)> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let port = socket.bind_auto()?.port_number();
    // Without this option an error's answer would carry the whole request back.
    socket.set_cap_ack(true)?;
    // The forced sizes pass net.core.{w,r}mem_max; they are bounds, not allocations.
    setsockopt(&socket, sockopt::SndBufForce, &(2 * BATCH_BYTES))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(RECEIVE_TIMEOUT_SECONDS),
    )?;
    Ok((socket, port))
}
