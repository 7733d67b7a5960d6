//! Endpoints outside Docker: network namespaces behind the host, and listeners on the host itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::case::{External, Listen};
use crate::engine::{Lab, output};
use crate::world::{HOST_V4, HOST_V6, listen_argument};

/// How the host's side of every such link is called.
const LINKS: &str = "cfx";

/// A namespace with one veth to the host; it ends with this value, and its interfaces with it.
#[derive(Debug)]
pub(crate) struct ExternalHost {
    _process: Child,
    pub(crate) pid: i64,
    pub(crate) addresses: Vec<IpAddr>,
    /// The host's side of the link.
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) names: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct HostListener {
    _process: Child,
}

async fn listening(mut command: Command) -> anyhow::Result<(Child, i64)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a listener")?;
    let pid = child.id().context("a listener without a process")?;
    let stdout = child.stdout.take().context("a listener without output")?;
    let mut lines = BufReader::new(stdout).lines();
    match lines.next_line().await? {
        Some(line) if line.starts_with("listening") => Ok((child, pid.into())),
        said => {
            let said = said.unwrap_or_default();
            let output = child.wait_with_output().await?;
            bail!(
                "a listener failed: {said} {}",
                String::from_utf8_lossy(&output.stderr)
            )
        }
    }
}

impl HostListener {
    pub(crate) async fn start(lab: &Lab, listen: &[Listen]) -> anyhow::Result<Self> {
        let mut command = Command::new(&lab.probe);
        command.args(["listen", &listen_argument(listen)?]);
        let (process, _) = listening(command).await?;
        Ok(Self { _process: process })
    }
}

impl ExternalHost {
    pub(crate) async fn start(lab: &Lab, external: &External, index: u8) -> anyhow::Result<Self> {
        // With --net alone, unshare becomes the probe: the child's PID is the namespace's.
        let mut command = Command::new("unshare");
        command
            .arg("--net")
            .arg(&lab.probe)
            .args(["listen", &listen_argument(&external.listen)?]);
        let (process, pid) = listening(command).await?;
        let addresses: Vec<IpAddr> = [Some(external.ip), external.ip6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .collect();
        let link = format!("{LINKS}{pid}");
        let (mut outside, mut inside) = (
            format!("link add {link} type veth peer name eth0 netns {pid}\nlink set {link} up\n"),
            "link set lo up\nlink set eth0 up\n".to_owned(),
        );
        let mut gateways = Vec::new();
        for address in &addresses {
            let (flag, length, gateway) = match address {
                IpAddr::V4(_) => ("-4", 32, IpAddr::from(Ipv4Addr::new(198, 18, 200, 100 + index))),
                IpAddr::V6(_) => {
                    let last = 0x100 + u16::from(index);
                    (
                        "-6",
                        128,
                        IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, last)),
                    )
                }
            };
            let once = if flag == "-6" { " nodad" } else { "" };
            outside += &format!(
                "addr add {gateway}/{length} dev {link}{once}\nroute replace {address}/{length} dev {link}\n"
            );
            inside += &format!(
                "addr add {address}/{length} dev eth0{once}\nroute add {gateway}/{length} dev eth0\n"
            );
            inside += &format!("route add default via {gateway} src {address}\n");
            gateways.push(gateway);
        }
        output("ip", &["-batch", "-"], &outside).await?;
        output(
            "nsenter",
            &["-t", &pid.to_string(), "-n", "ip", "-batch", "-"],
            &inside,
        )
        .await?;
        Ok(Self {
            _process: process,
            pid,
            addresses,
            gateways,
            names: external.names.clone(),
        })
    }
}

/// Removes the links of external hosts at once; the kernel takes its time after a namespace's last process.
pub(crate) async fn remove_links() -> anyhow::Result<()> {
    let links = output("ip", &["-o", "link", "show", "type", "veth"], "").await?;
    let names = links
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter_map(|w| w.split('@').next());
    for name in names.filter(|name| name.starts_with(LINKS)) {
        // It may have gone on its own meanwhile.
        output("ip", &["link", "delete", name.trim_end_matches(':')], "")
            .await
            .ok();
    }
    Ok(())
}

/// Gives the host an address of its own that is no bridge's; once for an engine.
pub(crate) async fn give_host_an_address() -> anyhow::Result<()> {
    if output("ip", &["-o", "link", "show", "cfuplink"], "")
        .await
        .is_ok()
    {
        return Ok(());
    }
    let batch = format!(
        "link add cfuplink type veth peer name cfuplink-peer\nlink set cfuplink up\nlink set cfuplink-peer up\n\
         addr add {HOST_V4}/32 dev cfuplink\naddr add {HOST_V6}/128 dev cfuplink nodad\n"
    );
    output("ip", &["-batch", "-"], &batch).await.map(drop)
}
