//! How containers and the engine are set, for `cofferdam audit`. It only asks; what it cannot read is `None`, so that nobody takes
//! it for harmless.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::client::{Engine, EngineError};
use super::raw::understood;
use super::volumes::BoundVolumes;
use super::wire;
use crate::inventory::{Access, Capabilities, ContainerId, EnginePosture, HostNamespace, Posture, Security};

/// The engine writes its process id here unless told otherwise.
const PID_FILE: &str = "/var/run/docker.pid";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    host_config: HostConfig,
    config: Config,
    #[serde(default)]
    mounts: Option<Vec<Mount>>,
    #[serde(default)]
    image: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    privileged: bool,
    readonly_rootfs: bool,
    #[serde(default)]
    cap_add: Option<Vec<String>>,
    #[serde(default)]
    cap_drop: Option<Vec<String>>,
    #[serde(default)]
    pid_mode: Option<String>,
    #[serde(default)]
    ipc_mode: Option<String>,
    #[serde(default, rename = "UTSMode")]
    uts_mode: Option<String>,
    #[serde(default)]
    userns_mode: Option<String>,
    #[serde(default)]
    security_opt: Option<Vec<String>>,
    /// The client turns `systempaths=unconfined` into two empty lists.
    #[serde(default)]
    masked_paths: Option<Vec<String>>,
    #[serde(default)]
    devices: Option<Vec<Device>>,
    #[serde(default)]
    port_bindings: wire::Ports,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Device {
    path_on_host: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    source: Option<String>,
    #[serde(rename = "RW")]
    is_writable: bool,
}

/// `GET /info`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Information {
    live_restore_enabled: bool,
    security_options: Option<Vec<String>>,
    warnings: Option<Vec<String>>,
}

impl Engine {
    /// How a container is confined: `Ok(None)` where there is none of that id, and within that `None` where the answer cannot
    /// be understood.
    pub async fn posture(
        &self,
        id: &ContainerId,
        volumes: &BoundVolumes,
    ) -> Result<Option<Option<Posture>>, EngineError> {
        if !wire::is_id(&id.0) {
            return Ok(None);
        }
        let answer = self.get(&format!("/containers/{}/json", id.0)).await;
        let answer = answer.map_err(EngineError::request(format!("inspect container {id}")))?;
        Ok(answer.map(|answer| read(answer, volumes, &self.sockets())))
    }

    /// How the engine is set.
    pub async fn engine_posture(&self) -> Result<EnginePosture, EngineError> {
        let asked = self.get("/info").await;
        let asked = asked.map_err(EngineError::request("ask the engine for its settings"))?;
        let information: Information = understood(asked, "ask the engine for its settings")?;
        let bridge = self.get("/networks/bridge").await;
        let bridge = bridge.map_err(EngineError::request("read the default network"))?;
        let icc = bridge.as_ref().map(|bridge| {
            let option = bridge.pointer("/Options/com.docker.network.bridge.enable_icc");
            option.and_then(Value::as_str) != Some("false")
        });
        let process = self.process().await;
        let mut posture = EnginePosture {
            icc,
            userland_proxy: process.as_ref().and_then(|it| it.is_on("userland-proxy", true)),
            live_restore: information.live_restore_enabled,
            // Before 23.0 the engine does not tell.
            no_new_privileges: process
                .as_ref()
                .and_then(|it| it.is_on("no-new-privileges", false))
                .unwrap_or_default(),
            ..EnginePosture::default()
        };
        posture.take_security(&information.security_options.unwrap_or_default());
        posture.take_warnings(&information.warnings.unwrap_or_default());
        Ok(posture)
    }

    /// The engine's process, where it is one of this host that can be looked at.
    async fn process(&self) -> Option<Process> {
        let peer = UnixStream::connect(&self.socket)
            .await
            .ok()?
            .peer_cred()
            .ok()?
            .pid();
        // Behind a socket that systemd opened the peer is systemd.
        let written = fs::read_to_string(PID_FILE).ok();
        let written = written.and_then(|it| it.trim().parse().ok());
        [peer, written].into_iter().flatten().find_map(Process::read)
    }
}

fn read(answer: Value, volumes: &BoundVolumes, sockets: &[PathBuf]) -> Option<Posture> {
    if !is_shaped(&answer) {
        return None;
    }
    let answer: Inspected = serde_json::from_value(answer).ok()?;
    let host = answer.host_config;
    let mut posture = Posture {
        is_privileged: host.privileged,
        capabilities: Capabilities::new(
            &host.cap_add.unwrap_or_default(),
            &host.cap_drop.unwrap_or_default(),
        ),
        user: answer.config.user.unwrap_or_default(),
        keeps_host_users: is_host(&host.userns_mode),
        has_writable_root: !host.readonly_rootfs,
        host_namespaces: [
            (HostNamespace::Pid, is_host(&host.pid_mode)),
            (HostNamespace::Ipc, is_host(&host.ipc_mode)),
            (HostNamespace::Uts, is_host(&host.uts_mode)),
        ]
        .into_iter()
        .filter_map(|(namespace, holds)| holds.then_some(namespace))
        .collect(),
        security: Security::new(&host.security_opt.unwrap_or_default()),
        devices: host
            .devices
            .into_iter()
            .flatten()
            .map(|device| device.path_on_host)
            .collect(),
        image: answer.image.unwrap_or_default(),
        ports: wire::inspected_ports(host.port_bindings),
        ..Posture::default()
    };
    posture.security.system_paths_open |= host.masked_paths.is_some_and(|paths| paths.is_empty());
    for mount in answer.mounts.into_iter().flatten() {
        let path = match mount.r#type.as_deref() {
            Some("volume") => mount.name.and_then(|name| volumes.get(&name).cloned()),
            Some("tmpfs") => None,
            _ => mount.source.filter(|source| !source.is_empty()),
        };
        let Some(path) = path else { continue };
        if wire::holds_a_socket(&path, sockets) {
            posture.sockets.insert(path.clone());
        }
        let access = if mount.is_writable {
            Access::Write
        } else {
            Access::Read
        };
        let kept = posture.paths.entry(path).or_insert(access);
        *kept = access.max(*kept);
    }
    Some(posture)
}

/// Whether objects are objects: serde would read their fields from a list, too.
fn is_shaped(answer: &Value) -> bool {
    let all_objects = |path: &str| match answer.pointer(path) {
        Some(Value::Array(items)) => items.iter().all(Value::is_object),
        _ => true,
    };
    answer.is_object()
        && ["/HostConfig", "/Config"]
            .into_iter()
            .all(|path| answer.pointer(path).is_some_and(Value::is_object))
        && ["/Mounts", "/HostConfig/Devices"].into_iter().all(all_objects)
}

fn is_host(mode: &Option<String>) -> bool {
    mode.as_deref() == Some("host")
}

/// The settings that a process of the engine was started with: its arguments win, and it does not start where a file says
/// the same setting again.
#[derive(Debug)]
struct Process {
    arguments: Vec<String>,
    /// `None`: it cannot be read.
    file: Option<Value>,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let arguments = fs::read(proc.join("cmdline")).ok()?;
        let mut arguments = arguments
            .split(|byte| *byte == 0)
            .map(|it| String::from_utf8_lossy(it).into_owned());
        let program = arguments.next()?;
        if Path::new(&program).file_name()? != "dockerd" {
            return None;
        }
        let arguments: Vec<String> = arguments.collect();
        let named = argument(&arguments, "config-file").map(str::to_owned);
        let path = named.unwrap_or_else(|| "/etc/docker/daemon.json".to_owned());
        let path = proc.join("root").join(path.trim_start_matches('/'));
        let file = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Value::Null),
            // Whoever has given up its powers is not let into another's root.
            Err(_) => None,
        };
        Some(Self { arguments, file })
    }

    fn is_on(&self, setting: &str, default: bool) -> Option<bool> {
        let flag = format!("--{setting}");
        if self.arguments.contains(&flag) {
            return Some(true);
        }
        match argument(&self.arguments, setting) {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => return Some(true),
            Some(_) => return Some(false),
            None => {}
        }
        match self.file.as_ref()?.get(setting) {
            None => Some(default),
            Some(value) => value.as_bool(),
        }
    }
}

/// `--name=value`, or `--name value`.
fn argument<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let flag = format!("--{name}");
    let mut found = None;
    for (position, word) in arguments.iter().enumerate() {
        let Some(rest) = word.strip_prefix(&flag) else {
            continue;
        };
        found = match rest.strip_prefix('=') {
            Some(value) => Some(value),
            None if rest.is_empty() => arguments.get(position + 1).map(String::as_str),
            None => found,
        };
    }
    found
}

#[cfg(test)]
mod tests;
