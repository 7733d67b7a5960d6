//! Patience, pace, and what an attempt says.

use std::net::UdpSocket as StdUdpSocket;

use super::*;
use crate::inventory::NetworkId;
use crate::verify::scene::Declared;

fn seen(evidence: Evidence, millis: u64) -> Option<Seen> {
    Some(Seen {
        evidence,
        trace: Trace::Missing,
        elapsed: Duration::from_millis(millis),
    })
}

#[test]
fn patience_follows_what_answered() {
    let second = Duration::from_secs(1);
    assert_eq!(
        patience_after(&[None, seen(Evidence::Silent, 1000)], second),
        second
    );
    let fast = [seen(Evidence::Connected, 1), seen(Evidence::Refused, 2)];
    assert_eq!(patience_after(&fast, second), LEAST_PATIENCE);
    assert_eq!(
        patience_after(&[seen(Evidence::Connected, 20)], second),
        Duration::from_millis(400)
    );
    assert_eq!(patience_after(&[seen(Evidence::Connected, 200)], second), second);
}

#[tokio::test]
async fn a_connection_an_answer_and_a_refusal_are_told_apart() {
    let make = |kind| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Inet, kind, flags, None).unwrap()
    };
    let patience = Duration::from_millis(500);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (result, source) = connect(make(SockType::Stream), address, patience).await;
    assert_eq!(result, Ok(Evidence::Connected));
    assert_eq!(source.unwrap(), listener.accept().unwrap().1);
    drop(listener);
    let (result, _) = connect(make(SockType::Stream), address, patience).await;
    assert_eq!(result, Ok(Evidence::Refused));
    let silent = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let (result, _) = send(make(SockType::Datagram), address, patience).await;
    assert_eq!(result, Ok(Evidence::Silent));
    assert_eq!(silent.recv(&mut [0; 9]).unwrap(), 0, "an empty datagram");
    drop(silent);
    let (result, _) = send(make(SockType::Datagram), address, patience).await;
    assert_eq!(result, Ok(Evidence::Refused));
}

#[test]
fn silence_is_trusted_only_where_what_passed_is_known() {
    let probe = |network: &str, address: &str| Probe {
        from: Spot::Container(0),
        to: Spot::Container(1),
        transport: Transport::Udp,
        port: 53,
        address: address.parse().unwrap(),
        way: Way::Network(NetworkId(network.into())),
        declared: Declared::Closed,
    };
    let probes = [
        probe("a", "10.0.0.2:53"),
        probe("a", "10.0.0.2:53"),
        probe("b", "10.0.1.2:53"),
        probe("a", "[fd00::2]:53"),
    ];
    let traces = |passing: Trace, rules| {
        let answers = [
            Evidence::Refused,
            Evidence::Silent,
            Evidence::Silent,
            Evidence::Silent,
        ];
        let mut all: Vec<Seen> = answers
            .into_iter()
            .filter_map(|evidence| seen(evidence, 1))
            .collect();
        all[0].trace = passing;
        distrust(&probes, &mut all, rules);
        [all[1].trace, all[2].trace, all[3].trace]
    };
    let (missing, unwatched) = (Trace::Missing, Trace::Unwatched);
    assert_eq!(traces(Trace::Passed, Rules::Stand), [missing; 3]);
    // Somebody else's rules have it track the one family.
    assert_eq!(traces(Trace::Passed, Rules::Gone), [missing, missing, unwatched]);
    assert_eq!(
        traces(Trace::Missing, Rules::Stand),
        [unwatched, unwatched, missing]
    );
    assert_eq!(traces(Trace::Missing, Rules::Gone), [unwatched; 3]);
    // A reset leaves nothing behind.
    let mut reset: Vec<Seen> = [Evidence::Refused, Evidence::Silent]
        .into_iter()
        .filter_map(|evidence| seen(evidence, 1))
        .collect();
    let tcp = Probe {
        transport: Transport::Tcp,
        ..probe("a", "10.0.0.2:80")
    };
    distrust(&[tcp, probe("a", "10.0.0.2:53")], &mut reset, Rules::Stand);
    assert_eq!(reset[1].trace, missing);
}

#[test]
fn a_datagram_is_asked_about_before_it_is_forgotten() {
    let bounds = |rate, parallel| Bounds {
        timeout: Duration::from_secs(1),
        rate,
        parallel,
    };
    assert_eq!(bounds(1000, 512).at_a_time(Duration::from_millis(250)), 2048);
    assert_eq!(bounds(10, 512).at_a_time(Duration::from_millis(250)), 50);
    assert_eq!(bounds(1000, 3).at_a_time(Duration::from_secs(1)), 15);
    assert_eq!(bounds(1000, 3).at_a_time(Duration::from_secs(15)), 3);
}

#[tokio::test]
async fn no_more_begin_in_a_second_than_may() {
    let (pace, begun) = (Pace::new(200), Instant::now());
    for _ in 0..=20 {
        pace.wait().await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(99));
}
