//! Packets that rules log arrive as what they are, and a group has one reader.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::net::UdpSocket;

use cofferdam::kernel::nflog::{Logged, LoggedBody, Nflog, NflogError};
use cofferdam::net::{Traffic, Transport};
use cofferdam::plan::ruleset::HookPoint;
use netns::{run, sh};

mod netns;

/// Everything until a batch is empty.
fn received(nflog: &mut Nflog) -> (Vec<Logged>, u64) {
    let (mut packets, mut lost) = (Vec::new(), 0);
    loop {
        let batch = nflog.receive().unwrap();
        if batch.packets.is_empty() {
            return (packets, lost);
        }
        packets.extend(batch.packets);
        lost += batch.lost;
    }
}

#[test]
fn packets_arrive_and_a_group_has_one_reader() {
    run("packets_arrive_and_a_group_has_one_reader", || {
        let mut nflog = Nflog::open(64).unwrap();
        assert!(matches!(Nflog::open(64), Err(NflogError::Taken(64))));
        // Another group is free.
        Nflog::open(65).unwrap();
        sh("nft add table inet t; \
            nft add chain inet t c '{ type filter hook output priority 0; }'; \
            nft add rule inet t c udp dport 4000-4999 log prefix '\"cofferdam denied\"' group 64 snaplen 128 drop");
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        for to in ["[::1]:4001", "[::ffff:127.0.0.1]:4002"] {
            // The rule's drop is an error of the sender.
            let _ = socket.send_to(b"x", to);
        }
        let (packets, lost) = received(&mut nflog);
        assert_eq!((packets.len(), lost), (2, 0), "{packets:?}");
        for (logged, address, number) in [(&packets[0], "::1", 4001), (&packets[1], "127.0.0.1", 4002)] {
            assert_eq!(
                (logged.prefix.as_str(), logged.hook),
                ("cofferdam denied", HookPoint::Output)
            );
            let address = address.parse().unwrap();
            let body = LoggedBody::Ip {
                source: address,
                destination: address,
                traffic: Traffic::Port(Transport::Udp, number),
                source_port: port,
                sequence: None,
            };
            assert_eq!(logged.body, body);
        }
        // The reader goes: the group is free again.
        drop(nflog);
        Nflog::open(64).unwrap();
    });
}

#[test]
fn what_is_not_read_in_time_is_counted() {
    run("what_is_not_read_in_time_is_counted", || {
        let mut nflog = Nflog::open(64).unwrap();
        sh("nft add table inet t; \
            nft add chain inet t c '{ type filter hook output priority 0; }'; \
            nft add rule inet t c udp dport 4000 log group 64 snaplen 128");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sink = UdpSocket::bind("127.0.0.1:4000").unwrap();
        // More than the socket's buffer takes while nobody reads.
        const SENT: u64 = 400_000;
        for _ in 0..SENT {
            socket.send_to(&[0; 100], sink.local_addr().unwrap()).unwrap();
        }
        let (mut packets, mut lost) = received(&mut nflog);
        // A loss shows in the number of the next one that comes.
        socket.send_to(b"x", sink.local_addr().unwrap()).unwrap();
        let (more, more_lost) = received(&mut nflog);
        packets.extend(more);
        lost += more_lost;
        assert!(lost > 0, "{} packets and no loss", packets.len());
        assert_eq!(u64::try_from(packets.len()).unwrap() + lost, SENT + 1);
    });
}
