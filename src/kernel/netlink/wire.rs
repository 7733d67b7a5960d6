//! The bytes of netlink: messages out, messages and their attributes in.
//!
//! The attributes are walked where they lie: decoding a large listing into owned trees takes a hundred times as long.

use netlink_packet_core::{NetlinkSerializable, NlaBuffer, NlasIterator};
use netlink_packet_netfilter::NetfilterMessage;

const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// A netlink datagram's message: type, sequence number, flags and what follows the header.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) struct Received<'a> {
    pub(in crate::kernel) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The socket that asked for it, or whose transaction is announced.
    pub(in crate::kernel) port: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The netfilter header's family.
    pub(in crate::kernel) fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }

    /// The attributes after the netfilter header.
    pub(in crate::kernel) fn attributes(&self) -> &'a [u8] {
        self.payload.get(NETFILTER_HEADER..).unwrap_or_default()
    }

    /// The answer's error number: `None` for anything but an answer, `Some(0)` for an acknowledgement.
    pub(super) fn error(&self) -> Option<i32> {
        (self.kind == NLMSG_ERROR).then(|| {
            let code = self.payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
            code.saturating_neg()
        })
    }
}

/// The messages of a datagram; what is cut off at its end is left out.
pub(in crate::kernel) fn messages(datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = rest.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let received = Received {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// The attributes within a payload, by their number; a malformed rest is left out.
pub(in crate::kernel) fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(payload)
        .map_while(Result::ok)
        .map(|attribute: NlaBuffer<&[u8]>| {
            let (kind, length) = (attribute.kind(), attribute.value_length());
            let value = attribute.into_inner().get(4..4 + length).unwrap_or_default();
            (kind, value)
        })
}

/// One attribute's value.
pub(in crate::kernel) fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// An attribute that is a number in network byte order.
pub(in crate::kernel) fn u32_attribute(payload: &[u8], wanted: u16) -> Option<u32> {
    attribute(payload, wanted)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)
}

/// As [`u32_attribute`], with 64 bits.
pub(in crate::kernel) fn u64_attribute(payload: &[u8], wanted: u16) -> Option<u64> {
    attribute(payload, wanted)?
        .try_into()
        .ok()
        .map(u64::from_be_bytes)
}

/// An attribute that is text ended by a zero byte.
pub(in crate::kernel) fn text_attribute(payload: &[u8], wanted: u16) -> Option<&str> {
    text(attribute(payload, wanted)?)
}

/// Text up to its zero byte.
pub(in crate::kernel) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(bytes.get(..end)?).ok()
}

/// Appends one message with its netlink header (length, type, flags, sequence number, port of the kernel's choice).
pub(super) fn append(bytes: &mut Vec<u8>, request: &NetfilterMessage, flags: u16, sequence: u32) {
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
pub(in crate::kernel) fn size(request: &NetfilterMessage) -> usize {
    HEADER + NetlinkSerializable::buffer_len(request).next_multiple_of(4)
}
