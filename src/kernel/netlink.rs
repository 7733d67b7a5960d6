//! One netfilter netlink socket: dumps, acknowledged requests and atomic nftables batches.
//!
//! In: encoded messages. Out: the attributes of what the kernel answers, or its error number. The socket stays open,
//! because closing a netfilter socket waits for an RCU grace period (about 15 ms).
//!
//! Netfilter handles a request within the `send` call, so every answer is queued when `send` returns; the receive
//! timeout is only there so that nothing can ever hang.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// `NFNL_SUBSYS_NFTABLES`
pub(crate) const SUBSYSTEM_NFTABLES: u16 = 10;
/// A dump's datagram is at most 32 KiB; a notification's may be larger.
pub(crate) const DATAGRAM: usize = 64 * 1024;
/// The most that one message batch may hold; also half the socket's send buffer. An element takes about 120 bytes.
pub(crate) const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Enough for the error answers of a batch of many thousand changes (an answer occupies about 1 KiB).
const RECEIVE_BUFFER: usize = 32 * 1024 * 1024;
const RECEIVE_TIMEOUT_SECONDS: i64 = 5;
/// A dump that was interrupted by a change starts again this often.
const DUMP_ATTEMPTS: usize = 16;
/// Requests sent in one datagram when each is answered by itself.
const REQUESTS_AT_ONCE: usize = 128;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

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
pub(crate) struct BatchError {
    /// Which message the kernel named, if it named one.
    pub(crate) index: Option<usize>,
    pub(crate) source: NetlinkError,
}

impl BatchError {
    fn whole(source: NetlinkError) -> Self {
        Self { index: None, source }
    }
}

/// One message of a batch, with the flags beside `NLM_F_REQUEST`.
pub(crate) type Request = (NetfilterMessage, u16);

/// A message for a family.
pub(crate) fn message(
    family: NetfilterProtoFamily,
    inner: impl Into<NetfilterMessageInner>,
) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// A netlink datagram's message: type, sequence number, flags and what follows the header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes after the netfilter header.
    pub(crate) fn attributes(&self) -> &'a [u8] {
        self.payload.get(NETFILTER_HEADER..).unwrap_or_default()
    }

    /// The answer's error number: `None` for anything but an answer, `Some(0)` for an acknowledgement.
    fn error(&self) -> Option<i32> {
        (self.kind == NLMSG_ERROR).then(|| {
            let code = self.payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
            code.saturating_neg()
        })
    }
}

/// The messages of a datagram; what is cut off at its end is left out.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = rest.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let received = Received {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// The attributes within a payload, by their number; a malformed rest is left out.
pub(crate) fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(payload)
        .map_while(Result::ok)
        .map(|attribute: NlaBuffer<&[u8]>| {
            let (kind, length) = (attribute.kind(), attribute.value_length());
            let value = attribute.into_inner().get(4..4 + length).unwrap_or_default();
            (kind, value)
        })
}

/// One attribute's value.
pub(crate) fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// An attribute that is a number in network byte order.
pub(crate) fn u32_attribute(payload: &[u8], wanted: u16) -> Option<u32> {
    attribute(payload, wanted)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)
}

/// As [`u32_attribute`], with 64 bits.
pub(crate) fn u64_attribute(payload: &[u8], wanted: u16) -> Option<u64> {
    attribute(payload, wanted)?
        .try_into()
        .ok()
        .map(u64::from_be_bytes)
}

/// An attribute that is text ended by a zero byte.
pub(crate) fn text_attribute(payload: &[u8], wanted: u16) -> Option<&str> {
    let bytes = attribute(payload, wanted)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(bytes.get(..end)?).ok()
}

/// The socket.
pub(crate) struct Netfilter {
    socket: Socket,
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
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let socket = open_socket().map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 1,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Everything that a dump returns, as `parse` sees it; `parse` passes over with `None`.
    pub(crate) fn dump<T>(
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
    pub(crate) fn get<T>(
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
            for received in messages(&self.datagram).filter(|received| received.sequence == sequence) {
                return match received.error() {
                    Some(errno) => Err(NetlinkError::Refused(Errno::from_raw(errno))),
                    None => parse(received.attributes()).ok_or(NetlinkError::Malformed),
                };
            }
        }
    }

    /// Requests that stand for themselves: each one's own error, in order; `None` for success.
    pub(crate) fn calls(
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
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Result<(), BatchError> {
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

fn open_socket() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
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
    Ok(socket)
}

/// Appends one message with its netlink header (length, type, flags, sequence number, port of the kernel's choice).
fn append(bytes: &mut Vec<u8>, request: &NetfilterMessage, flags: u16, sequence: u32) {
    let start = bytes.len();
    let length = HEADER + NetlinkSerializable::buffer_len(request);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(request.message_type().to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.resize(start + length.next_multiple_of(4), 0);
    if let Some(room) = bytes.get_mut(start + HEADER..start + length) {
        request.serialize(room);
    }
}

/// The bytes that a message takes in a batch.
pub(crate) fn size(request: &NetfilterMessage) -> usize {
    HEADER + NetlinkSerializable::buffer_len(request).next_multiple_of(4)
}
