//! `socket-filter` in front of a real engine: what Cofferdam calls passes, everything else of the engine's API is refused and has no
//! effect, however it is written; and the daemon enforces through it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

mod host;
#[path = "socket_filter/daemon.rs"]
mod through;
#[path = "socket_filter/wire.rs"]
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use cofferdam::docker::{Attachment, NetworkError, NetworkRequest};
use cofferdam::inventory::{ContainerId, Inventory, NetworkId, Power, SERVICE_LABEL};
use host::{Engine, wait_until};
use serde_json::{Value, json};
use wire::{Answer, call, raw};

/// Listed in the file above, with what is sent and whether it has an effect.
const ENDPOINTS: &str = include_str!("socket_filter/endpoints.txt");

/// What Cofferdam calls.
const ALLOWED: [&str; 14] = [
    "GET /_ping",
    "GET /version",
    "GET /info",
    "GET /events",
    "GET /volumes",
    "GET /volumes/{x}",
    "GET /networks",
    "GET /networks/{x}",
    "GET /containers/json",
    "GET /containers/{x}/json",
    "POST /containers/{x}/stop",
    "POST /networks/create",
    "POST /networks/{x}/connect",
    "POST /networks/{x}/disconnect",
];

/// A filter that ends with the test.
struct Filter {
    process: Child,
    socket: PathBuf,
}

impl Filter {
    fn start(engine: &Engine, name: &str, arguments: &[&str]) -> Self {
        let socket = engine.0.join(format!("{name}/docker.sock"));
        let process = Command::new(env!("CARGO_BIN_EXE_cofferdam"))
            .args(["socket-filter", "--listen"])
            .arg(&socket)
            .arg("--engine")
            .arg(engine.0.join("docker.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(engine.0.join(format!("{name}.log"))).unwrap())
            .spawn()
            .unwrap();
        let filter = Self { process, socket };
        wait_until(
            "the filter listens",
            Some(&engine.0.join(format!("{name}.log"))),
            || std::os::unix::net::UnixStream::connect(&filter.socket).is_ok(),
        );
        filter
    }

    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// What there is on the engine to be harmed.
struct Victims {
    engine: Engine,
    words: BTreeMap<&'static str, String>,
}

impl Victims {
    fn up(name: &str) -> Self {
        let engine = Engine::up(name, &["probe:1", "--tools", "sh", "sleep"]);
        engine.docker(&["network", "create", "foreign"]);
        engine.docker(&["volume", "create", "precious"]);
        let run = [
            "run",
            "-d",
            "--name",
            "victim",
            "--network",
            "foreign",
            "--memory",
            "64m",
        ];
        let more = ["-e", "PASSWORD=hunter2", "probe:1", "/bin/sleep", "600"];
        let container = engine.docker(&[&run[..], &more].concat());
        let network = engine.docker(&["network", "inspect", "-f", "{{.Id}}", "foreign"]);
        let exec = call(
            &engine.0.join("docker.sock"),
            "POST",
            &format!("/containers/{container}/exec"),
            Some(&json!({ "Cmd": ["/bin/sleep", "1"] })),
        );
        let words = BTreeMap::from([
            ("{c}", container),
            ("{n}", network),
            ("{e}", exec.json()["Id"].as_str().unwrap().to_owned()),
            ("{i}", "probe:1".to_owned()),
            ("{v}", "precious".to_owned()),
            ("{x}", "something".to_owned()),
        ]);
        Self { engine, words }
    }

    fn own(&self) -> PathBuf {
        self.engine.0.join("docker.sock")
    }

    fn filled(&self, target: &str) -> String {
        let fill = |text: String, (word, value): (&&str, &String)| text.replace(*word, value);
        self.words.iter().fold(target.to_owned(), fill)
    }

    /// Everything that could have changed.
    fn state(&self) -> Value {
        let get = |target: &str| call(&self.own(), "GET", target, None).json();
        let container = get(&self.filled("/containers/{c}/json"));
        let ids = |list: &Value, key: &str| -> BTreeSet<String> {
            list.as_array()
                .unwrap()
                .iter()
                .map(|it| it[key].to_string())
                .collect()
        };
        let networks = get("/networks");
        let attached: Vec<Value> = ids(&networks, "Id")
            .iter()
            .map(|id| get(&format!("/networks/{}", id.trim_matches('"')))["Containers"].clone())
            .collect();
        json!({
            "containers": ids(&get("/containers/json?all=1"), "Id"),
            "name": container["Name"],
            "state": container["State"],
            "restarts": container["RestartCount"],
            "memory": container["HostConfig"]["Memory"],
            "execs": container["ExecIDs"],
            "files": call(&self.own(), "GET", &self.filled("/containers/{c}/changes"), None).body,
            "images": ids(&get("/images/json?all=1"), "RepoTags"),
            "volumes": ids(&get("/volumes")["Volumes"], "Name"),
            "networks": ids(&networks, "Id"),
            "attached": attached,
            "swarm": get("/info")["Swarm"]["LocalNodeState"],
            "plugins": get("/plugins"),
        })
    }
}

/// What would make each request do something.
fn body(target: &str) -> Option<Value> {
    let target = target.split('?').next().unwrap();
    let last = target.rsplit('/').next().unwrap();
    Some(match (target, last) {
        ("/containers/create", _) => json!({
            "Image": "probe:1", "Cmd": ["/bin/sleep", "60"], "HostConfig": { "Binds": ["/:/host"], "Privileged": true },
        }),
        ("/volumes/create", _) => json!({ "Name": "evil" }),
        ("/networks/create", _) => json!({ "Name": "evil" }),
        ("/swarm/init", _) => json!({ "ListenAddr": "127.0.0.1:2377", "AdvertiseAddr": "127.0.0.1" }),
        (_, "exec") => json!({ "Cmd": ["/bin/sleep", "1"], "Privileged": true }),
        (_, "update") => json!({ "Memory": 33_554_432, "MemorySwap": 67_108_864 }),
        (_, "connect") => json!({ "Container": "idle" }),
        (_, "disconnect") => json!({ "Container": "idle", "Force": true }),
        _ => json!({}),
    })
}

struct Endpoint {
    has_effect: bool,
    method: &'static str,
    target: &'static str,
}

fn endpoints() -> Vec<Endpoint> {
    let lines = ENDPOINTS.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (has_effect, rest) = match line.strip_prefix("! ") {
                Some(rest) => (true, rest),
                None => (false, line),
            };
            let (method, target) = rest.split_once(' ').unwrap();
            Endpoint {
                has_effect,
                method,
                target,
            }
        })
        .collect()
}

fn refused(answer: &Answer, called: &str) {
    assert_eq!(answer.status, 403, "{called}: {answer:?}");
    if !called.starts_with("HEAD ") {
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        let named: String = called.chars().take(100).collect();
        assert!(message.contains(&named), "{called}: {message}");
    }
}

#[test]
fn everything_else_is_refused_and_has_no_effect() {
    let victims = Victims::up("filter-all");
    victims
        .engine
        .docker(&["run", "-d", "--name", "idle", "probe:1", "/bin/sleep", "600"]);
    // Also where containers may be stopped: only as Cofferdam does it.
    let filter = Filter::start(&victims.engine, "filter", &["--allow-stop"]);
    let before = victims.state();
    let mut tried = 0;
    for endpoint in endpoints() {
        for api in ["", "/v1.41", "/v1.48"] {
            let target = format!("{api}{}", victims.filled(endpoint.target));
            let body = body(endpoint.target).filter(|_| matches!(endpoint.method, "POST" | "PUT"));
            let answer = call(&filter.socket, endpoint.method, &target, body.as_ref());
            refused(&answer, &format!("{} {target}", endpoint.method));
            tried += 1;
        }
    }
    assert_eq!(victims.state(), before);
    println!("{tried} requests refused, without effect");

    // The same requests, made of the engine itself.
    let mut last = before;
    let mut effective = 0;
    for endpoint in endpoints().iter().filter(|it| it.has_effect) {
        let target = victims.filled(endpoint.target);
        let answer = call(
            &victims.own(),
            endpoint.method,
            &target,
            body(endpoint.target).as_ref(),
        );
        assert!(answer.status < 400, "{target}: {answer:?}");
        effective += 1;
        // What is looked at is gone with it.
        if endpoint.method == "DELETE" && endpoint.target.starts_with("/containers/") {
            break;
        }
        let now = victims.state();
        assert_ne!(now, last, "{target} had no effect on the engine itself, either");
        last = now;
    }
    println!("{effective} of them have an effect on the engine itself");
}

/// The engine says in its log which routes it has.
#[test]
fn no_route_of_the_engine_is_forgotten() {
    let engine = Engine::up("filter-routes", &["probe:1", "--tools", "sh", "sleep"]);
    engine.script("stop", &[]);
    let started = Command::new(host::script())
        .arg("start")
        .arg(&engine.0)
        .env("ENGINE_FLAGS", "-D --experimental")
        .status()
        .unwrap();
    assert!(started.success());
    let log = std::fs::read_to_string(engine.0.join("dockerd.log")).unwrap();
    let shape = |method: &str, path: &str| {
        let path = path.split('?').next().unwrap();
        let segments = path
            .split('/')
            .map(|it| if it.starts_with('{') { "{x}" } else { it });
        format!("{method} {}", segments.collect::<Vec<_>>().join("/"))
    };
    let known: BTreeSet<String> = endpoints()
        .iter()
        .map(|it| shape(it.method, it.target))
        .chain(ALLOWED.map(str::to_owned))
        .chain(["DELETE /networks/{x}".to_owned()])
        .collect();
    let routes: BTreeSet<String> = log
        .lines()
        .filter_map(|line| line.split_once("Registering ")?.1.strip_suffix('"'))
        .filter_map(|route| route.split_once(", "))
        .map(|(method, path)| shape(method, path))
        .collect();
    println!("{} routes", routes.len());
    assert!(routes.len() > 90, "{routes:?}");
    let forgotten: Vec<&String> = routes.difference(&known).collect();
    assert_eq!(forgotten, Vec::<&String>::new());
}

#[test]
fn however_it_is_written() {
    let victims = Victims::up("filter-wire");
    let filter = Filter::start(&victims.engine, "filter", &[]);
    let before = victims.state();
    let kill =
        victims.filled("POST /containers/{c}/kill HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n");
    let ping = "GET /_ping HTTP/1.1\r\nHost: docker\r\n";
    let works = |answer: &str| answer.starts_with("HTTP/1.1 200");
    assert!(works(&raw(&filter.socket, format!("{ping}\r\n").as_bytes())));

    // A second request behind the first, in its body, or between two ways to measure that.
    for hidden in [
        format!("{ping}\r\n{kill}"),
        format!("{ping}Content-Length: 0\r\n\r\n{kill}"),
        format!("{ping}Content-Length: {}\r\n\r\n{kill}", kill.len()),
        format!(
            "{ping}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{kill}",
            kill.len()
        ),
        format!("{ping}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{kill}"),
        format!("{ping}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{kill}"),
        format!("{ping}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{kill}"),
        format!("{ping}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{kill}"),
        format!("{ping}Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n{kill}"),
        format!("{ping}X: y\n\r\n\r\n{kill}"),
        format!("{ping}X: y\r\n Content-Length: 9\r\n\r\n{kill}"),
        format!("{ping}Connection: keep-alive\r\n\r\n{kill}"),
        format!("{ping}Expect: 100-continue\r\n\r\n{kill}"),
    ] {
        let answer = raw(&filter.socket, hidden.as_bytes());
        let answers = answer.matches("HTTP/1.1 ").count() - answer.matches("HTTP/1.1 100").count();
        assert!(answers <= 1, "{hidden}\n{answer}");
    }
    assert_eq!(victims.state(), before);

    // Other targets, methods and protocols: none has any answer of the engine's.
    let id = &victims.words["{c}"];
    for (head, more) in [
        ("GET http://docker/v1.41/info HTTP/1.1".to_owned(), ""),
        ("GET //v1.41/info HTTP/1.1".to_owned(), ""),
        ("GET /v1.41/./info HTTP/1.1".to_owned(), ""),
        ("GET /v1.41/x/../info HTTP/1.1".to_owned(), ""),
        ("GET /v1.41/%69nfo HTTP/1.1".to_owned(), ""),
        ("GET /v1.41/INFO HTTP/1.1".to_owned(), ""),
        ("get /v1.41/info HTTP/1.1".to_owned(), ""),
        ("GET /v1.41/info\0 HTTP/1.1".to_owned(), ""),
        ("GET /v1.41/info HTTP/2.0".to_owned(), ""),
        ("GET /v1.41/info".to_owned(), ""),
        ("CONNECT docker:80 HTTP/1.1".to_owned(), ""),
        ("OPTIONS * HTTP/1.1".to_owned(), ""),
        ("HEAD /_ping HTTP/1.1".to_owned(), ""),
        (
            "GET /v1.41/info HTTP/1.1".to_owned(),
            "Connection: Upgrade\r\nUpgrade: tcp\r\n",
        ),
        ("GET /v1.41/info HTTP/1.1".to_owned(), "Upgrade: h2c\r\n"),
        (
            "POST /session HTTP/1.1".to_owned(),
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        ),
        (
            "POST /grpc HTTP/1.1".to_owned(),
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        ),
        (
            format!("POST /containers/{id}/attach?stream=1&stdin=1 HTTP/1.1"),
            "Connection: Upgrade\r\nUpgrade: tcp\r\n",
        ),
        (
            "POST /v1.41/networks/create HTTP/1.1".to_owned(),
            "Content-Length: 1000000000\r\n",
        ),
    ] {
        let answer = raw(
            &filter.socket,
            format!("{head}\r\nHost: docker\r\n{more}\r\n").as_bytes(),
        );
        let status = answer.split(' ').nth(1).unwrap_or("none");
        assert!(
            matches!(status, "403" | "400" | "none"),
            "{head} {more}: {answer}"
        );
    }
    // HTTP/2 with prior knowledge.
    let answer = raw(
        &filter.socket,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    );
    assert!(!answer.contains(" 200 "), "{answer}");
    // Heads and bodies without end.
    let long = format!("{ping}X: {}\r\n\r\n", "x".repeat(100_000));
    assert!(!works(&raw(&filter.socket, long.as_bytes())));
    let many = format!("{ping}{}\r\n", "X: x\r\n".repeat(100));
    assert!(!works(&raw(&filter.socket, many.as_bytes())));
    let huge = "x".repeat(100_000);
    let body = format!(
        "POST /networks/create HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n\r\n{huge}",
        huge.len()
    );
    let answer = raw(&filter.socket, body.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(victims.state(), before);
    // Nobody was harmed: neither the filter.
    assert!(works(&raw(&filter.socket, format!("{ping}\r\n").as_bytes())));

    let answer = raw(&victims.own(), kill.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_ne!(victims.state(), before);
}

fn request(bridge: &str) -> NetworkRequest {
    NetworkRequest {
        name: "cofferdam-shop-db".to_owned(),
        bridge: bridge.parse().unwrap(),
        ipv4: "10.213.7.0/24".parse().unwrap(),
        ipv6: Some("fd63:6f66:6665:7::/64".parse().unwrap()),
        labels: BTreeMap::from([(SERVICE_LABEL.to_owned(), "shop/db".to_owned())]),
    }
}

#[tokio::test]
async fn what_cofferdam_calls_passes_and_changes_only_what_is_ours() {
    let victims = Victims::up("filter-ours");
    let filter = Filter::start(&victims.engine, "filter", &["--mode", "660", "--group", "daemon"]);
    let metadata = std::fs::metadata(&filter.socket).unwrap();
    use std::os::unix::fs::MetadataExt;
    let daemon = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    assert_eq!(
        (metadata.mode() & 0o777, metadata.gid()),
        (0o660, daemon.gid.as_raw())
    );

    let through = cofferdam::docker::Engine::connect(&filter.socket).await.unwrap();
    let directly = cofferdam::docker::Engine::connect(&victims.own()).await.unwrap();
    assert_eq!(through.info(), directly.info());
    let inventory = async |engine: &cofferdam::docker::Engine| {
        let mut inventory = Inventory::new();
        inventory.reset(engine.list().await.unwrap());
        (inventory.containers().clone(), inventory.networks().clone())
    };
    assert_eq!(inventory(&through).await, inventory(&directly).await);
    let victim = ContainerId(victims.words["{c}"].as_str().into());
    let foreign = NetworkId(victims.words["{n}"].as_str().into());
    assert_eq!(
        through.container(&victim).await.unwrap(),
        directly.container(&victim).await.unwrap()
    );
    assert_eq!(
        through.glance(&victim).await.unwrap(),
        directly.glance(&victim).await.unwrap()
    );
    assert_eq!(
        through.network(&foreign).await.unwrap(),
        directly.network(&foreign).await.unwrap()
    );
    assert_eq!(
        through.pid(&victim).await.unwrap(),
        directly.pid(&victim).await.unwrap()
    );
    let bound = through.bound_volumes().await.unwrap();
    assert_eq!(
        through.posture(&victim, &bound).await.unwrap(),
        directly.posture(&victim, &bound).await.unwrap()
    );
    let icc = |posture: cofferdam::inventory::EnginePosture| (posture.icc, posture.live_restore);
    assert_eq!(
        icc(through.engine_posture().await.unwrap()),
        icc(directly.engine_posture().await.unwrap())
    );

    // Passwords stay behind.
    let inspect = victims.filled("/containers/{c}/json");
    assert!(
        call(&victims.own(), "GET", &inspect, None)
            .body
            .contains("hunter2")
    );
    let narrowed = call(&filter.socket, "GET", &inspect, None);
    assert!(
        narrowed.status == 200 && !narrowed.body.contains("hunter2"),
        "{narrowed:?}"
    );

    // A network of ours, from its creation to its end.
    let bridge = cofferdam::model::bridge_name(&cofferdam::policy::ScopedName {
        segment: "shop".parse().unwrap(),
        name: "db".parse().unwrap(),
    });
    let bridge = bridge.unwrap().to_string();
    let ours = through.create_network(&request(&bridge)).await.unwrap();
    let wish = Attachment {
        ipv4: "10.213.7.9".parse().unwrap(),
        ipv6: Some("fd63:6f66:6665:7::9".parse().unwrap()),
        aliases: vec!["db".to_owned()],
    };
    through.connect_container(&ours, &victim, &wish).await.unwrap();
    assert_eq!(
        victims.engine.address("victim", "cofferdam-shop-db"),
        "10.213.7.9"
    );
    through.disconnect_container(&ours, &victim).await.unwrap();
    assert_eq!(through.network(&ours).await.unwrap().unwrap().endpoints.len(), 0);
    // One that is gone, by its name; and by its id, as an engine would say it.
    through.connect_container(&ours, &victim, &wish).await.unwrap();
    victims.engine.docker(&["stop", "-t", "0", "victim"]);
    through.remove_network(&ours).await.unwrap();
    through
        .forget_network("cofferdam-shop-db", &victim)
        .await
        .unwrap();
    victims.engine.docker(&["start", "victim"]);
    let error = through
        .connect_container(&ours, &victim, &wish)
        .await
        .unwrap_err();
    assert!(matches!(error, NetworkError::NetworkGone { .. }), "{error:?}");

    // The same calls on a network that is not ours, by id and under a name such as ours.
    let before = victims.state();
    let refused = |error: NetworkError| {
        let NetworkError::Other { source, .. } = error else {
            panic!("{error:?}")
        };
        let text = source.to_string();
        assert!(text.contains("not one of Cofferdam's"), "{text}");
    };
    refused(
        through
            .connect_container(&foreign, &victim, &wish)
            .await
            .unwrap_err(),
    );
    refused(through.disconnect_container(&foreign, &victim).await.unwrap_err());
    refused(through.remove_network(&foreign).await.unwrap_err());
    assert_eq!(victims.state(), before);
    victims
        .engine
        .docker(&["network", "create", "cofferdam-looks-like-ours"]);
    victims
        .engine
        .docker(&["network", "connect", "cofferdam-looks-like-ours", "victim"]);
    let before = victims.state();
    refused(
        through
            .forget_network("cofferdam-looks-like-ours", &victim)
            .await
            .unwrap_err(),
    );
    assert_eq!(victims.state(), before);
    directly
        .forget_network("cofferdam-looks-like-ours", &victim)
        .await
        .unwrap();
    assert_ne!(victims.state(), before);
}

#[tokio::test]
async fn containers_are_stopped_only_where_that_is_allowed() {
    let victims = Victims::up("filter-stop");
    let strict = Filter::start(&victims.engine, "strict", &[]);
    let stopping = Filter::start(&victims.engine, "stopping", &["--allow-stop"]);
    let victim = ContainerId(victims.words["{c}"].as_str().into());
    let before = victims.state();
    let engine = cofferdam::docker::Engine::connect(&strict.socket).await.unwrap();
    let error = engine.stop_container(&victim).await.unwrap_err();
    assert!(format!("{error:?}").contains("--allow-stop"), "{error:?}");
    assert_eq!(victims.state(), before);
    let engine = cofferdam::docker::Engine::connect(&stopping.socket)
        .await
        .unwrap();
    engine.stop_container(&victim).await.unwrap();
    assert_eq!(victims.state()["state"]["Running"], false);
}

/// A container with the engine's own socket is found although the daemon knows another one.
#[tokio::test]
async fn the_engines_own_socket_is_known_behind_the_filter() {
    let victims = Victims::up("filter-behind");
    let filter = Filter::start(&victims.engine, "filter", &[]);
    let own = victims.own().display().to_string();
    let mount = format!("{own}:/sock");
    let id = victims
        .engine
        .docker(&["run", "-d", "-v", &mount, "probe:1", "/bin/sleep", "600"]);
    let power = Power::EngineSocket { mount: own };
    for socket in [&filter.socket, &victims.own()] {
        let engine = cofferdam::docker::Engine::connect(socket).await.unwrap();
        let found = engine
            .container(&ContainerId(id.as_str().into()))
            .await
            .unwrap()
            .unwrap();
        let powers = found.facts.powers.unwrap();
        assert!(powers.contains(&power), "{powers:?}");
    }
}

#[test]
fn it_keeps_no_power() {
    let victims = Victims::up("filter-powers");
    let status = |arguments: &[&str]| {
        let filter = Filter::start(&victims.engine, "filter", arguments);
        assert_eq!(call(&filter.socket, "GET", "/_ping", None).status, 200);
        std::fs::read_to_string(format!("/proc/{}/status", filter.process.id())).unwrap()
    };
    for line in [
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        let found = status(&[]);
        assert!(found.contains(line), "{line}: {found}");
    }
    let loose = status(&["--seccomp", "false", "--landlock", "false"]);
    assert!(loose.contains("Seccomp:\t0"), "{loose}");
}

#[test]
fn it_takes_nobodys_socket() {
    let victims = Victims::up("filter-place");
    let filter = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cofferdam"));
        command.arg("socket-filter").args(arguments).output().unwrap()
    };
    let own = victims.own();
    let output = filter(&[
        "--listen",
        own.to_str().unwrap(),
        "--engine",
        own.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(18), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process listens there"));
    assert_eq!(call(&own, "GET", "/_ping", None).status, 200);
    for wrong in [["--mode", "1777"], ["--mode", "rw"], ["--group", "no-such-group"]] {
        let output = filter(&[&["--listen", "/tmp/x/docker.sock"][..], &wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
