//! What the kernel announces to whoever listens, with the time at which it was heard: elements of sets that came and went,
//! transactions of nftables, and ports behind which a container's namespace appeared. It is heard after it happened, never before.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::thread;

use jiff::Timestamp;
use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::setpriority_process;

/// `RTNLGRP_LINK`
const LINKS: u32 = 1;
/// `NFNLGRP_NFTABLES`
const NFTABLES: u32 = 7;
/// `NFT_MSG_NEWSETELEM`, `NFT_MSG_DELSETELEM` and `NFT_MSG_NEWGEN` of the subsystem of nftables.
const NEW_ELEMENT: u16 = (10 << 8) | 12;
const DELETED_ELEMENT: u16 = (10 << 8) | 14;
const NEW_GENERATION: u16 = (10 << 8) | 15;
/// Begins the names of the sets of who is behind which port.
const BINDINGS: &[u8] = b"bound";
const BUFFER: usize = 16 * 1024 * 1024;
const DATAGRAM: usize = 64 * 1024;
/// What is heard late counts against what is measured.
const NICENESS: i32 = -15;

#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at: Timestamp,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// An element came or went: who is behind which port, or what an address may do.
    Element {
        came: bool,
        binds: bool,
        /// As the kernel announced it; its key is in there.
        bytes: Vec<u8>,
    },
    /// A transaction of nftables is over.
    Transaction,
    /// For the first time there is a carrier and another network namespace behind this port.
    Port { bridge: u32 },
}

/// Listens until the process ends.
#[derive(Debug, Clone)]
pub(crate) struct Witness(Arc<Mutex<Vec<Heard>>>);

impl Witness {
    /// In the network namespace of the calling thread.
    pub(crate) fn listen() -> Self {
        let witness = Self(Arc::default());
        let mut known = BTreeSet::new();
        witness.follow(NETLINK_ROUTE, LINKS, move |message| port(message, &mut known));
        witness.follow(NETLINK_NETFILTER, NFTABLES, nftables);
        witness
    }

    /// What was heard since it was last taken.
    pub(crate) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn follow(
        &self,
        protocol: isize,
        group: u32,
        mut what: impl FnMut(&NetlinkBuffer<&[u8]>) -> Option<What> + Send + 'static,
    ) {
        let mut socket = Socket::new(protocol).unwrap();
        socket.bind_auto().unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).unwrap();
        socket.add_membership(group).unwrap();
        let heard = Arc::clone(&self.0);
        thread::spawn(move || {
            setpriority_process(None, NICENESS).unwrap();
            let mut datagram = Vec::with_capacity(DATAGRAM);
            loop {
                datagram.clear();
                let received: io::Result<usize> = socket.recv(&mut datagram, 0);
                let at = Timestamp::now();
                received.expect("no announcement is lost");
                let mut rest = datagram.as_slice();
                while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                    if let Some(what) = what(&message) {
                        heard.lock().unwrap().push(Heard { at, what });
                    }
                    let length = usize::try_from(message.length()).unwrap();
                    rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
            }
        });
    }
}

fn nftables(message: &NetlinkBuffer<&[u8]>) -> Option<What> {
    match message.message_type() {
        kind @ (NEW_ELEMENT | DELETED_ELEMENT) => Some(What::Element {
            came: kind == NEW_ELEMENT,
            binds: holds(message.payload(), BINDINGS),
            bytes: message.payload().to_vec(),
        }),
        NEW_GENERATION => Some(What::Transaction),
        _ => None,
    }
}

fn port(message: &NetlinkBuffer<&[u8]>, known: &mut BTreeSet<u32>) -> Option<What> {
    let bytes = message.clone().into_inner();
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            let bridge = bridge(&link)?;
            (leads_elsewhere(&link) && known.insert(link.header.index)).then_some(What::Port { bridge })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            known.remove(&link.header.index);
            None
        }
        _ => None,
    }
}

fn leads_elsewhere(link: &LinkMessage) -> bool {
    let is_number = |it: &LinkAttribute| matches!(it, LinkAttribute::LinkNetNsId(_));
    link.header.flags.contains(LinkFlags::LowerUp) && link.attributes.iter().any(is_number)
}

fn bridge(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|it| match it {
        LinkAttribute::Controller(bridge) => Some(*bridge),
        _ => None,
    })
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|it| it == part)
}

/// The elements of these addresses, as they came. What is announced again while it is there, because its whole table is put in
/// place again in one transaction, did not come then.
pub(crate) fn came<'a>(heard: &'a [Heard], of: &[IpAddr]) -> Vec<&'a Heard> {
    let (mut there, mut new) = (BTreeSet::new(), Vec::new());
    for it in heard {
        match &it.what {
            What::Element {
                came: true, bytes, ..
            } if it.is_of(of, true) && there.insert(bytes) => new.push(it),
            What::Element {
                came: false, bytes, ..
            } => {
                there.remove(bytes);
            }
            _ => {}
        }
    }
    new
}

impl Heard {
    /// Whether an element with one of these addresses in its key came (or else went).
    pub(crate) fn is_of(&self, addresses: &[IpAddr], wanted: bool) -> bool {
        let What::Element { came, bytes, .. } = &self.what else {
            return false;
        };
        *came == wanted
            && addresses.iter().any(|address| match address {
                IpAddr::V4(address) => holds(bytes, &address.octets()),
                IpAddr::V6(address) => holds(bytes, &address.octets()),
            })
    }

    pub(crate) fn binds(&self) -> bool {
        matches!(self.what, What::Element { binds: true, .. })
    }
}
