//! A hostile container claims to be another: by forged frames, by the other's addresses on its own interface, and by coming
//! right after it.
//!
//! Proves promise 2 (identity is proven): port, address and Ethernet address count only together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::engine::{Lab, output};
use crate::figure::Figure;
use crate::frame::{self, BROADCAST, MARK, Mac, hex};
use crate::shop::{Container, DECLARED, Leaks, POLICY, Shop, Spec, UNDECLARED, closed, flows};

const NETWORK: &str = "shop_default";
/// How often an address changes hands on a network of compose's kind, and on docker0.
const ROUNDS: usize = 60;
const ROUNDS_DOCKER0: usize = 40;
/// An address changes hands so many times side by side.
const LANES: usize = 6;

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open(lab, "identity", POLICY).await?;
    shop.network(NETWORK, 81).await?;
    let stage = Stage {
        server: shop.start(&Spec::service("server", "server").on(NETWORK)).await?,
        client: shop.start(&Spec::service("client", "client").on(NETWORK)).await?,
    };
    shop.converge().await?;
    let mut figures = Vec::new();
    for (kind, attacker) in [
        ("a managed container", Spec::service("stranger", "stranger")),
        ("an unmanaged container", Spec::plain("outsider")),
    ] {
        let attacker = shop.start(&attacker.on(NETWORK)).await?;
        shop.converge().await?;
        figures.push(forgeries(&shop, &stage, &attacker, kind).await?);
        figures.push(takes_addresses(&mut shop, &stage, &attacker, kind).await?);
        shop.remove(&attacker.id).await?;
    }
    figures.push(waits_for_its_victim(&mut shop, &stage).await?);
    figures.push(reuse(&shop, &stage, NETWORK).await?);
    shop.remove(&stage.client.id).await?;
    figures.push(reuse_docker0(&mut shop).await?);
    Ok(closed(shop, "identity", figures).await)
}

/// Those that are attacked: `client` may reach `server`.
struct Stage {
    server: Container,
    client: Container,
}

impl Stage {
    /// The declared flow of the client, and what nobody may do.
    fn watched(&self) -> anyhow::Result<Vec<String>> {
        let server = self.server.addresses(NETWORK)?;
        let mut watched = flows('+', &["tcp", "udp"], &server, DECLARED);
        watched.extend(flows('-', &["tcp"], &server[..1], UNDECLARED));
        Ok(watched)
    }
}

struct Party {
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Party {
    fn of(container: &Container) -> anyhow::Result<Self> {
        let endpoint = container.on(NETWORK)?;
        Ok(Self {
            mac: frame::mac(&endpoint.mac)?,
            v4: endpoint.v4.context("no IPv4 address")?,
            v6: endpoint.v6.context("no IPv6 address")?,
        })
    }
}

/// Every attack by its name: the frames that are sent.
fn attacks(me: &Party, client: &Party, server: &Party, gateway: &Party) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let honest = (server.mac, me.mac);
    let as_client = (server.mac, client.mac);
    let ip = |address: Ipv4Addr| IpAddr::V4(address);
    let ip6 = |address: Ipv6Addr| IpAddr::V6(address);
    let all4 = Ipv4Addr::new(224, 0, 0, 1);
    let all6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let group4 = (frame::group(ip(all4)), me.mac);
    let group6 = (frame::group(ip6(all6)), me.mac);
    let world = Ipv4Addr::new(203, 0, 113, 5);
    let subnet = Ipv4Addr::from(u32::from(server.v4) | 0xff);
    let own_local = frame::link_local(me.mac);
    let mine = frame::datagram(honest, ip(me.v4), ip(server.v4), DECLARED);
    let theirs = frame::datagram(as_client, ip(client.v4), ip(server.v4), DECLARED);
    let mut attacks = vec![
        (
            "nothing forged",
            vec![
                mine.clone(),
                frame::datagram(honest, ip6(me.v6), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "source address",
            vec![
                frame::datagram(honest, ip(client.v4), ip(server.v4), DECLARED),
                frame::datagram(honest, ip6(client.v6), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "Ethernet address",
            vec![
                frame::datagram(as_client, ip(me.v4), ip(server.v4), DECLARED),
                frame::datagram(as_client, ip6(me.v6), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "both",
            vec![
                theirs.clone(),
                frame::datagram(as_client, ip6(client.v6), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "an address of the world, the gateway, nobody",
            vec![
                frame::datagram(honest, ip(world), ip(server.v4), DECLARED),
                frame::datagram(honest, ip(gateway.v4), ip(server.v4), DECLARED),
                frame::datagram(honest, ip(Ipv4Addr::UNSPECIFIED), ip(server.v4), DECLARED),
                frame::datagram((server.mac, gateway.mac), ip(gateway.v4), ip(server.v4), DECLARED),
                frame::datagram(honest, ip6(gateway.v6), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "by way of the gateway",
            vec![
                frame::datagram((gateway.mac, me.mac), ip(me.v4), ip(server.v4), DECLARED),
                frame::datagram((gateway.mac, me.mac), ip(client.v4), ip(server.v4), DECLARED),
                frame::datagram((gateway.mac, client.mac), ip(client.v4), ip(server.v4), DECLARED),
                frame::datagram((gateway.mac, me.mac), ip6(client.v6), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "ARP reply",
            vec![
                frame::arp(honest, 2, me.mac, client.v4, server.mac, server.v4),
                frame::arp((client.mac, me.mac), 2, me.mac, server.v4, client.mac, client.v4),
                frame::arp((client.mac, me.mac), 2, me.mac, gateway.v4, client.mac, client.v4),
                frame::arp(as_client, 2, client.mac, client.v4, server.mac, server.v4),
                // The frame's sender is true, the message's is not; and the other way round.
                frame::arp(honest, 2, client.mac, client.v4, server.mac, server.v4),
                frame::arp(as_client, 2, me.mac, me.v4, server.mac, server.v4),
            ],
        ),
        (
            "gratuitous ARP",
            vec![
                frame::arp((BROADCAST, me.mac), 1, me.mac, client.v4, [0; 6], client.v4),
                frame::arp((BROADCAST, me.mac), 2, me.mac, server.v4, BROADCAST, server.v4),
                frame::arp((BROADCAST, me.mac), 2, me.mac, gateway.v4, BROADCAST, gateway.v4),
                frame::arp(
                    (BROADCAST, client.mac),
                    1,
                    client.mac,
                    client.v4,
                    [0; 6],
                    client.v4,
                ),
            ],
        ),
        (
            "ND advertisement",
            vec![
                frame::advertisement(honest, me.v6, server.v6, client.v6, me.mac),
                frame::advertisement(group6, own_local, all6, client.v6, me.mac),
                frame::advertisement(group6, own_local, all6, gateway.v6, me.mac),
                frame::advertisement(group6, client.v6, all6, client.v6, me.mac),
                frame::advertisement(
                    (server.mac, client.mac),
                    client.v6,
                    server.v6,
                    client.v6,
                    client.mac,
                ),
            ],
        ),
        (
            "router advertisement and redirect",
            vec![
                frame::router_advertisement(group6, own_local, all6),
                frame::router_advertisement((server.mac, me.mac), own_local, server.v6),
                frame::icmp6(
                    (server.mac, me.mac),
                    own_local,
                    server.v6,
                    137,
                    &[[0; 4].as_slice(), &me.v6.octets(), &client.v6.octets()].concat(),
                ),
            ],
        ),
        (
            "VLAN tags",
            vec![
                frame::tagged(0x8100, 0, &mine),
                frame::tagged(0x8100, 0, &theirs),
                frame::tagged(0x8100, 1, &mine),
                frame::tagged(0x8100, 1, &theirs),
                frame::tagged(0x8100, 7, &theirs),
                frame::tagged(0x88a8, 0, &mine),
                frame::tagged(0x88a8, 1, &frame::tagged(0x8100, 0, &theirs)),
                frame::tagged(
                    0x8100,
                    0,
                    &frame::datagram(honest, ip6(me.v6), ip6(server.v6), DECLARED),
                ),
            ],
        ),
        (
            "IPv6 link-local",
            vec![
                frame::datagram(
                    honest,
                    ip6(own_local),
                    ip6(frame::link_local(server.mac)),
                    DECLARED,
                ),
                frame::datagram(
                    as_client,
                    ip6(frame::link_local(client.mac)),
                    ip6(frame::link_local(server.mac)),
                    DECLARED,
                ),
                frame::datagram(honest, ip6(own_local), ip6(server.v6), DECLARED),
            ],
        ),
        (
            "source routing and options",
            vec![
                frame::source_routed(honest, me.v4, client.v4, server.v4, DECLARED),
                frame::source_routed((client.mac, me.mac), me.v4, client.v4, server.v4, DECLARED),
                frame::source_routed((gateway.mac, me.mac), me.v4, gateway.v4, server.v4, DECLARED),
                frame::extended(honest, me.v6, server.v6, 0, DECLARED),
                frame::extended(honest, me.v6, server.v6, 43, DECLARED),
                frame::extended((client.mac, me.mac), me.v6, client.v6, 43, DECLARED),
                frame::extended(honest, me.v6, server.v6, 60, DECLARED),
            ],
        ),
        (
            "multicast and broadcast",
            vec![
                frame::datagram(group4, ip(me.v4), ip(all4), DECLARED),
                frame::datagram(group4, ip(client.v4), ip(all4), DECLARED),
                frame::datagram(group6, ip6(me.v6), ip6(all6), DECLARED),
                frame::datagram(group6, ip6(own_local), ip6(all6), DECLARED),
                frame::datagram((BROADCAST, me.mac), ip(me.v4), ip(Ipv4Addr::BROADCAST), DECLARED),
                frame::datagram((BROADCAST, me.mac), ip(me.v4), ip(subnet), DECLARED),
                frame::datagram((BROADCAST, me.mac), ip(me.v4), ip(server.v4), DECLARED),
                frame::datagram(group4, ip(me.v4), ip(server.v4), DECLARED),
            ],
        ),
        (
            "IGMP and MLD",
            vec![
                frame::igmp(me.mac, me.v4, 0x11, Ipv4Addr::UNSPECIFIED),
                frame::igmp(me.mac, me.v4, 0x16, Ipv4Addr::new(239, 1, 1, 1)),
                frame::icmp6(group6, own_local, all6, 130, &[0; 20]),
                frame::icmp6(group6, own_local, all6, 131, &[0; 20]),
                frame::icmp6(group6, own_local, all6, 143, &[0; 4]),
            ],
        ),
        (
            "other protocols",
            vec![
                frame::ethernet(server.mac, me.mac, 0x88b5, MARK.as_bytes()),
                frame::ethernet(BROADCAST, me.mac, 0x88b5, MARK.as_bytes()),
                // 802.3 with a length instead of a type, PPPoE, MPLS, LLDP.
                frame::ethernet(server.mac, me.mac, 7, MARK.as_bytes()),
                frame::ethernet(server.mac, me.mac, 0x8864, MARK.as_bytes()),
                frame::ethernet(server.mac, me.mac, 0x8847, MARK.as_bytes()),
                frame::ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], me.mac, 0x88cc, MARK.as_bytes()),
                // IPv4 that says it is IPv6, and the other way round.
                [&mine[..12], &[0x86, 0xdd], &mine[14..]].concat(),
                [&mine[..12], &[0x08, 0x06], &mine[14..]].concat(),
            ],
        ),
    ];
    for (name, from, ether) in [
        ("fragments", ip(me.v4), honest),
        ("fragments with the victim's addresses", ip(client.v4), as_client),
    ] {
        attacks.push((name, frame::fragments(ether, from, ip(server.v4), DECLARED)));
    }
    attacks.push((
        "IPv6 fragments",
        frame::fragments(honest, ip6(me.v6), ip6(server.v6), DECLARED),
    ));
    attacks
}

async fn forgeries(shop: &Shop, stage: &Stage, attacker: &Container, kind: &str) -> anyhow::Result<Figure> {
    let mut figure = Figure {
        name: format!("identity: frames forged by {kind}"),
        ..Figure::default()
    };
    let (me, client, server) = (
        Party::of(attacker)?,
        Party::of(&stage.client)?,
        Party::of(&stage.server)?,
    );
    let endpoint = attacker.on(NETWORK)?;
    let gateway = Party {
        mac: gateway_mac(endpoint.gateway.context("no gateway")?).await?,
        v4: endpoint.gateway.context("no gateway")?,
        v6: endpoint.gateway6.context("no gateway")?,
    };
    // The positive twin: what the client sends in the same way arrives.
    let honest = frame::datagram(
        (server.mac, client.mac),
        client.v4.into(),
        server.v4.into(),
        DECLARED,
    );
    if send_and_watch(shop, stage.client.pid, &stage.client, &[honest], &[&stage.server]).await? == 0 {
        bail!("the client's own frame does not arrive: the watch sees nothing");
    }
    let declared = shop.leak_probe(Some(stage.client.pid), &stage.watched()?)?;
    let mut arrived = Vec::new();
    for (name, frames) in attacks(&me, &client, &server, &gateway) {
        figure.tried += frames.len() as u64;
        let seen = send_and_watch(
            shop,
            attacker.pid,
            attacker,
            &frames,
            &[&stage.server, &stage.client],
        )
        .await?;
        if seen > 0 {
            figure.leaks += seen;
            arrived.push(name);
        }
    }
    let report = declared.finish().await?;
    figure.leaks += report.leaked();
    figure.longest_gap_ms = report.longest_gap_ms();
    figure.failed = report.missing().or(neighbours(stage, &gateway).await?);
    if !arrived.is_empty() {
        figure.note = Some(format!("arrived: {}", arrived.join(", ")));
    }
    Ok(figure)
}

async fn gateway_mac(address: Ipv4Addr) -> anyhow::Result<Mac> {
    let said = output("ip", &["-br", "-4", "addr"], "").await?;
    let bridge = said
        .lines()
        .find(|line| line.contains(&format!(" {address}/")))
        .and_then(|line| line.split_whitespace().next())
        .context("no interface has the gateway's address")?;
    let path = format!("/sys/class/net/{bridge}/address");
    frame::mac(std::fs::read_to_string(path)?.trim())
}

/// The interface of a container that has its address on the network.
async fn interface(container: &Container) -> anyhow::Result<String> {
    let said = ip(container.pid, "-br -4 addr").await?;
    let address = container.v4(NETWORK)?;
    let line = said.lines().find(|line| line.contains(&format!(" {address}/")));
    let name = line.and_then(|line| line.split_whitespace().next());
    let name = name.and_then(|name| name.split('@').next());
    name.map(str::to_owned)
        .with_context(|| format!("no interface of {} has its address", container.name))
}

/// `ip` in a container's network namespace.
async fn ip(pid: i64, words: &str) -> anyhow::Result<String> {
    let pid = pid.to_string();
    let mut arguments = vec!["-t", &pid, "-n", "ip"];
    arguments.extend(words.split_whitespace());
    output("nsenter", &arguments, "").await
}

/// Sends frames, and counts those that reach the watched.
async fn send_and_watch(
    shop: &Shop,
    pid: i64,
    sender: &Container,
    frames: &[Vec<u8>],
    watched: &[&Container],
) -> anyhow::Result<u64> {
    let mut watches = Vec::new();
    for container in watched {
        let mut child = shop
            .probe(Some(container.pid))
            .args(["sniff", MARK])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("a watch without output")?).lines();
        if lines.next_line().await?.as_deref() != Some("watching") {
            bail!("the watch does not begin");
        }
        watches.push((child, lines));
    }
    let interface = interface(sender).await?;
    let mut child = shop
        .probe(Some(pid))
        .args(["frames", &interface])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a probe without input")?;
    for frame in frames {
        stdin.write_all(format!("{}\n", hex(frame)).as_bytes()).await?;
    }
    drop(stdin);
    if !child.wait().await?.success() {
        bail!("the frames could not be sent");
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut seen = 0;
    for (mut child, mut lines) in watches {
        drop(child.stdin.take());
        while let Some(line) = lines.next_line().await? {
            eprintln!("identity: {line}");
            seen += 1;
        }
        child.wait().await?;
    }
    Ok(seen)
}

/// What is wrong with the neighbours that the attacked know, if anything.
async fn neighbours(stage: &Stage, gateway: &Party) -> anyhow::Result<Option<String>> {
    let (client, server) = (Party::of(&stage.client)?, Party::of(&stage.server)?);
    let text = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    for container in [&stage.client, &stage.server] {
        let interface = interface(container).await?;
        let known = ip(container.pid, &format!("neigh show dev {interface}")).await?;
        for line in known.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(address), Some(at)) = (words.first(), words.iter().position(|it| *it == "lladdr"))
            else {
                continue;
            };
            let Some(found) = words.get(at + 1) else { continue };
            let truth = [&client, &server, gateway]
                .into_iter()
                .find(|party| *address == party.v4.to_string() || *address == party.v6.to_string());
            if truth.is_some_and(|party| text(party.mac) != **found) {
                return Ok(Some(format!("{} believes {line}", container.name)));
            }
        }
        let addresses = ip(container.pid, "-6 addr").await?;
        if addresses.contains("2001:db8:bad") {
            return Ok(Some(format!("{} took a forged prefix", container.name)));
        }
    }
    Ok(None)
}

/// With `CAP_NET_ADMIN`: the client's addresses on an interface of the attacker's own.
async fn takes_addresses(
    shop: &mut Shop,
    stage: &Stage,
    attacker: &Container,
    kind: &str,
) -> anyhow::Result<Figure> {
    let mut figure = Figure {
        name: format!("identity: the client's addresses taken by {kind}"),
        ..Figure::default()
    };
    let client = stage.client.on(NETWORK)?;
    let (v4, v6) = (client.v4.context("no IPv4")?, client.v6.context("no IPv6")?);
    let server = stage.server.addresses(NETWORK)?;
    let mut wanted = flows('-', &["tcp", "udp", "icmp"], &server, DECLARED);
    wanted.extend(flows('-', &["tcp"], &server, UNDECLARED));
    let declared = shop.leak_probe(Some(stage.client.pid), &stage.watched()?)?;
    let interface = interface(attacker).await?;
    let steps = [
        vec![
            format!("addr add {v4}/24 dev {interface}"),
            format!("-6 addr add {v6}/64 dev {interface} nodad"),
            format!("route replace {}/32 dev {interface} src {v4}", server[0]),
            format!("-6 route replace {}/128 dev {interface} src {v6}", server[1]),
        ],
        // Down and up, so that the daemon looks at the port again, and the routes once more.
        vec![
            format!("link set {interface} down"),
            format!("link set {interface} address {}", client.mac),
            format!("link set {interface} up"),
            format!("route replace {}/32 dev {interface} src {v4}", server[0]),
            format!("-6 addr replace {v6}/64 dev {interface} nodad"),
            format!("-6 route replace {}/128 dev {interface} src {v6}", server[1]),
        ],
    ];
    for commands in steps {
        for command in commands {
            ip(attacker.pid, &command).await?;
        }
        let report = shop
            .leaks_for(Some(attacker.pid), &wanted, Duration::from_secs(3))
            .await?;
        figure.tried += report.tried();
        figure.leaks += report.leaked();
    }
    let report = declared.finish().await?;
    figure.tried += report.tried();
    figure.leaks += report.leaked();
    figure.longest_gap_ms = report.longest_gap_ms();
    // The victim keeps its address, its binding and its rights.
    figure.failed = report.missing();
    if report.longest_gap_ms().is_none_or(|gap| gap > 1000) {
        figure.failed = Some("the client lost its declared flow for more than a second".to_owned());
    }
    shop.converge().await?;
    Ok(figure)
}

/// With `CAP_NET_ADMIN`: the addresses of a container that does not run yet, so that the attacker is there first.
async fn waits_for_its_victim(shop: &mut Shop, stage: &Stage) -> anyhow::Result<Figure> {
    let mut figure = Figure {
        name: "identity: addresses taken before their owner starts".to_owned(),
        ..Figure::default()
    };
    let server = stage.server.addresses(NETWORK)?;
    let wanted = flows('-', &["tcp", "udp", "icmp"], &server[..1], DECLARED);
    for round in 0..5_u8 {
        let victim = Ipv4Addr::new(10, 81, 0, 200 + round);
        // As the engine makes it of the address.
        let mac = format!("02:42:0a:51:00:{:02x}", 200 + round);
        let attacker = shop
            .start(&Spec::service("stranger", &format!("early-{round}")).on(NETWORK))
            .await?;
        shop.converge().await?;
        let interface = interface(&attacker).await?;
        for command in [
            format!("addr flush dev {interface}"),
            format!("link set {interface} down"),
            format!("link set {interface} address {mac}"),
            format!("link set {interface} up"),
            format!("addr add {victim}/24 dev {interface}"),
        ] {
            ip(attacker.pid, &command).await?;
        }
        let probe = shop.leak_probe(Some(attacker.pid), &wanted)?;
        let spec = Spec::service("client", &format!("victim-{round}"))
            .at(NETWORK, victim)
            .mac(&mac);
        let owner = shop.start(&spec).await?;
        let flow = format!("tcp/{}/{DECLARED}", server[0]);
        let opened = shop
            .until_reached(Some(owner.pid), &flow, Duration::from_secs(5))
            .await;
        if let Err(error) = opened {
            figure.failed = Some(format!("the owner itself: {error:#}"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let report = probe.finish().await?;
        figure.tried += report.tried();
        figure.leaks += report.leaked();
        shop.remove(&attacker.id).await?;
        shop.remove(&owner.id).await?;
    }
    Ok(figure)
}

/// What became of an address that changed hands.
#[derive(Default)]
struct Hands {
    tried: u64,
    inherited: u64,
    stale: u64,
}

/// The permitted client goes, an undeclared container gets its addresses at once, and the other way round.
async fn reuse(shop: &Shop, stage: &Stage, network: &str) -> anyhow::Result<Figure> {
    let server = stage.server.v4(network)?;
    let lanes: Vec<Hands> = stream::iter(0..LANES)
        .map(|lane| async move {
            let mut hands = Hands::default();
            for round in 0..ROUNDS / LANES {
                let last = 100 + lane as u8;
                let spec = |service: &str| {
                    Spec::service(service, &format!("{service}-{lane}-{round}"))
                        .at(network, Ipv4Addr::new(10, 81, 0, last))
                        .mac(&format!("02:42:0a:51:00:{last:02x}"))
                };
                change_hands(shop, &spec, server, &mut hands).await?;
            }
            Ok::<_, anyhow::Error>(hands)
        })
        .buffer_unordered(LANES)
        .try_collect()
        .await?;
    Ok(hands_figure(
        "identity: an address changes hands on a network",
        ROUNDS,
        &lanes,
    ))
}

/// The same on docker0, where the engine gives the lowest free address, and makes the Ethernet address of it.
async fn reuse_docker0(shop: &mut Shop) -> anyhow::Result<Figure> {
    let server = shop
        .start(&Spec::service("server", "server-0").on("bridge"))
        .await?;
    shop.converge().await?;
    let address = server.v4("bridge")?;
    let mut hands = Hands::default();
    for round in 0..ROUNDS_DOCKER0 {
        let spec = |service: &str| Spec::service(service, &format!("{service}-docker0-{round}")).on("bridge");
        change_hands(shop, &spec, address, &mut hands).await?;
    }
    Ok(hands_figure(
        "identity: an address changes hands on docker0",
        ROUNDS_DOCKER0,
        &[hands],
    ))
}

async fn change_hands(
    shop: &Shop,
    spec: &impl Fn(&str) -> Spec,
    server: IpAddr,
    hands: &mut Hands,
) -> anyhow::Result<()> {
    let client = shop.start(&spec("client")).await?;
    let opened = shop
        .until_reached(
            Some(client.pid),
            &format!("tcp/{server}/{DECLARED}"),
            Duration::from_secs(4),
        )
        .await;
    if opened.is_err() {
        hands.stale += 1;
    }
    shop.remove(&client.id).await?;
    let mut words = vec!["leak".to_owned(), "1".to_owned()];
    words.extend(flows('-', &["tcp", "udp"], &[server], DECLARED));
    words.extend(flows('-', &["tcp"], &[server], UNDECLARED));
    let stranger = shop.create(&spec("stranger").command(&words)).await?;
    shop.lab.docker.start_container(&stranger, None).await?;
    let report = Leaks::parse(&shop.printed(&stranger, Duration::from_secs(30)).await?)?;
    hands.tried += report.tried();
    hands.inherited += report.leaked();
    shop.remove(&stranger).await
}

fn hands_figure(name: &str, rounds: usize, lanes: &[Hands]) -> Figure {
    let stale: u64 = lanes.iter().map(|lane| lane.stale).sum();
    Figure {
        name: name.to_owned(),
        tried: lanes.iter().map(|lane| lane.tried).sum(),
        leaks: lanes.iter().map(|lane| lane.inherited).sum(),
        note: Some(format!("{rounds} rounds, {stale} stale denials")),
        failed: (stale > 0).then(|| format!("{stale} permitted clients were denied")),
        ..Figure::default()
    }
}
