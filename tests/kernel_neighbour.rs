//! Neighbour advertisements on a real bridge: only the proven owner of a guarded address may advertise it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::io::{BufRead, BufReader, Read};

use cofferdam::kernel::elements::Elements;
use cofferdam::kernel::neighbour::{Advertisements, insert_advertisement_rules};
use cofferdam::kernel::nft::Nft;
use cofferdam::plan::ruleset::*;
use netns::{Background, run_async, sh};

mod netns;

use TableFamily::Bridge;

/// A bridge with two ports, each the end of a namespace's only interface.
const TOPOLOGY: &str = "
    ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up
    for side in a b; do
        ip netns add $side
        ip link add v$side type veth peer name eth0 netns $side
        ip link set v$side master br0 up
        ip -n $side link set eth0 up
    done
    ip -n a link set eth0 address 02:42:0a:d5:05:0a
    sysctl -qw net.ipv6.conf.all.disable_ipv6=1";

/// Sends an advertisement for each target as raw frames.
const SEND: &str = r#"
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
mac = bytes.fromhex(sys.argv[1].replace(':', ''))
for target in sys.argv[2:]:
    t = socket.inet_pton(socket.AF_INET6, target)
    dst = socket.inet_pton(socket.AF_INET6, 'ff02::1')
    body = struct.pack('!BBHI', 136, 0, 0, 0x20000000) + t + b'\x02\x01' + mac
    pseudo = t + dst + struct.pack('!II', len(body), 58)
    body = body[:2] + struct.pack('!H', checksum(pseudo + body)) + body[4:]
    ip = struct.pack('!IHBB', 0x60000000, len(body), 58, 255) + t + dst
    s.send(b'\x33\x33\x00\x00\x00\x01' + mac + b'\x86\xdd' + ip + body)
"#;

/// Prints the target of each advertisement that arrives, up to a second of silence.
const RECEIVE: &str = r#"
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86dd))
s.bind(('eth0', 0x86dd)); s.settimeout(1)
print('ready', flush=True)
try:
    while True:
        frame = s.recv(2048)
        if frame[54] == 136:
            print(socket.inet_ntop(socket.AF_INET6, frame[62:78]), flush=True)
except TimeoutError:
    pass
"#;

fn structure() -> Vec<Step> {
    let set = |name: &str, key| {
        let spec = SetSpec {
            key,
            kind: SetKind::Plain,
            size: None,
        };
        Step::AddSet(
            SetRef {
                table: Bridge,
                set: name.into(),
            },
            spec,
        )
    };
    let chain = |name: &str, hook| Step::AddChain(Bridge, name.into(), hook);
    let rule = |chain: &str, statements| {
        Step::AddRule(
            Bridge,
            chain.into(),
            Rule {
                statements,
                comment: None,
            },
        )
    };
    let hook = Hook {
        point: HookPoint::Prerouting,
        priority: -300,
    };
    vec![
        Step::ResetTables,
        set("bound6", KeyType::Binding6),
        set("guarded6", KeyType::Ipv6Nets),
        chain("other", None),
        chain("forged", None),
        rule("forged", vec![Statement::Drop]),
        chain("advert", None),
        rule("advert", vec![Statement::Drop]),
        chain("identity", Some(hook)),
        rule(
            "identity",
            vec![
                Statement::Icmp(cofferdam::net::Family::V6, Some([136].into())),
                Statement::Goto("advert".into()),
            ],
        ),
    ]
}

fn guard(elements: &mut Elements) {
    let index: u32 = sh("cat /sys/class/net/va/ifindex").trim().parse().unwrap();
    let change = |set: &str, key| ElementChange {
        set: SetRef {
            table: Bridge,
            set: set.into(),
        },
        key,
        action: ElementAction::Add(None),
    };
    let mac = "02:42:0a:d5:05:0a".parse().unwrap();
    elements
        .commit(&[
            change("guarded6", Key::Net("fd00:5::/64".parse().unwrap())),
            change("bound6", Key::Binding6(index, mac, "fd00:5::a".parse().unwrap())),
        ])
        .unwrap();
}

/// The targets whose advertisements came from `a` to `b`.
fn arrived(mac: &str, targets: &[&str]) -> Vec<String> {
    std::fs::write("/run/send.py", SEND).unwrap();
    std::fs::write("/run/receive.py", RECEIVE).unwrap();
    let mut receiver = Background::start("ip netns exec b python3 /run/receive.py");
    let mut output = BufReader::new(receiver.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    sh(&format!(
        "ip netns exec a python3 /run/send.py {mac} {}",
        targets.join(" ")
    ));
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    rest.lines().map(str::to_owned).collect()
}

fn rules() -> Vec<String> {
    let listing = sh("nft list chain bridge cofferdam advert");
    let rules = listing.lines().filter(|line| line.starts_with("\t\t"));
    rules.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn only_the_proven_owner_advertises_a_guarded_address() {
    run_async("only_the_proven_owner_advertises_a_guarded_address", || async {
        sh(TOPOLOGY);
        let own = "02:42:0a:d5:05:0a";
        let targets = ["fd00:5::a", "fd00:5::b", "2001:db8::1"];
        assert_eq!(arrived(own, &targets), targets, "without rules, all arrive");
        Nft::find().unwrap().apply(&structure()).await.unwrap();
        let mut elements = Elements::open().unwrap();
        guard(&mut elements);
        assert!(
            arrived(own, &targets).is_empty(),
            "without the three rules, none arrives"
        );
        assert!(insert_advertisement_rules(&mut elements, &Advertisements::default()).unwrap());
        assert_eq!(arrived(own, &targets), ["fd00:5::a", "2001:db8::1"]);
        assert_eq!(
            arrived("02:42:0a:d5:05:0b", &targets),
            ["2001:db8::1"],
            "from another Ethernet address"
        );
    });
}

#[test]
fn the_rules_are_put_at_the_head_once_and_repaired() {
    run_async("the_rules_are_put_at_the_head_once_and_repaired", || async {
        Nft::find().unwrap().apply(&structure()).await.unwrap();
        let mut elements = Elements::open().unwrap();
        let names = Advertisements::default();
        assert!(insert_advertisement_rules(&mut elements, &names).unwrap());
        let whole = rules();
        assert_eq!(whole.len(), 4, "{whole:#?}");
        let begin = [
            "iif . ether saddr . @th,64,128 @bound6 accept",
            "@th,64,128 @guarded6 goto forged",
            "goto other",
            "drop",
        ];
        for (rule, begin) in whole.iter().zip(begin) {
            assert!(
                rule.trim_start_matches("meta ").starts_with(begin),
                "{rule} is not {begin}"
            );
        }
        assert!(
            !insert_advertisement_rules(&mut elements, &names).unwrap(),
            "nothing to do"
        );
        let handle = sh("nft -a list chain bridge cofferdam advert | sed -n 's/.*guarded6.*handle //p'");
        sh(&format!(
            "nft delete rule bridge cofferdam advert handle {handle}"
        ));
        assert_eq!(rules().len(), 3);
        assert!(insert_advertisement_rules(&mut elements, &names).unwrap());
        assert_eq!(rules(), whole);
        sh("nft insert rule bridge cofferdam advert accept");
        assert!(
            insert_advertisement_rules(&mut elements, &names).unwrap(),
            "ours go before a foreign rule"
        );
        assert_eq!(rules().len(), 5);
        assert_eq!(rules()[..3], whole[..3]);
        // The document of nft itself holds these rules, so that others can still list the ruleset.
        sh("nft -j list ruleset");
        sh("nft flush chain bridge cofferdam advert; nft delete set bridge cofferdam guarded6");
        let error = insert_advertisement_rules(&mut elements, &names).unwrap_err();
        assert!(error.to_string().contains("advert"), "{error}");
        assert!(rules().is_empty(), "all or nothing");
    });
}
