//! Ends connections beside the loop. A listing of what the kernel tracks takes 20 ms and more, and much more on a busy
//! machine: a thread with a socket of its own makes one for all that waits.
//!
//! In: [`Ending`]s, in the order of their numbers. Out: [`Report`]s.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc as blocking;
use std::thread;

use rustix::process::setpriority_process;
use tokio::sync::mpsc;
use tracing::{debug, error};

use crate::fault;
use crate::kernel::conntrack::{Conntrack, ConntrackError, Flow};
use crate::net::{Traffic, Transport};
use crate::plan::flows::{Ending, OpenFlow, Sweep};

/// What the thread has to say.
#[derive(Debug)]
pub(super) enum Report {
    /// What the policy did not permit when the task was made. By now it may be a new container's: the loop answers with those
    /// that are to end.
    Suspects(Vec<Flow>, blocking::Sender<Vec<Flow>>),
    /// All endings up to this one are over.
    Over {
        through: u64,
        result: Result<Ended, ConntrackError>,
    },
}

/// What was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) flows: usize,
    /// Released addresses.
    pub(super) addresses: usize,
    /// Whether open connections were held against the policy.
    pub(super) swept: bool,
}

/// Hands endings to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Endings {
    sender: blocking::Sender<Ending>,
}

impl Endings {
    /// Starts the thread; its reports come out of the receiver.
    pub(super) fn start(conntrack: Conntrack) -> io::Result<(Self, mpsc::UnboundedReceiver<Report>)> {
        let (sender, endings) = blocking::channel();
        let (reports_sender, reports) = mpsc::unbounded_channel();
        thread::Builder::new().name("endings".to_owned()).spawn(move || {
            // Nobody waits for it: a walk over everything that is tracked is not worth the daemon's own priority.
            if let Err(error) = setpriority_process(None, 0) {
                debug!(%error, "connections are ended at the daemon's priority");
            }
            work(conntrack, &endings, &reports_sender);
        })?;
        Ok((Self { sender }, reports))
    }

    /// Has these connections ended. The report comes later.
    pub(super) fn end(&self, ending: Ending) {
        // The thread ends only with the daemon.
        let _ = self.sender.send(ending);
    }
}

fn work(
    mut conntrack: Conntrack,
    endings: &blocking::Receiver<Ending>,
    reports: &mpsc::UnboundedSender<Report>,
) {
    while let Ok(first) = endings.recv() {
        let ending = endings.try_iter().fold(first, together);
        let still = |suspects| {
            let (sender, answer) = blocking::channel();
            let _ = reports.send(Report::Suspects(suspects, sender));
            // Without an answer the daemon is ending: the rules stand, and the next start sweeps.
            answer.recv().unwrap_or_default()
        };
        let result = end(&mut conntrack, &ending, still);
        let over = Report::Over {
            through: ending.number,
            result,
        };
        if reports.send(over).is_err() {
            return;
        }
    }
}

/// Both as one: all addresses, and the later one's idea of what is permitted.
fn together(mut earlier: Ending, mut later: Ending) -> Ending {
    later.released.append(&mut earlier.released);
    later.sweep = later.sweep.or(earlier.sweep);
    later
}

/// Ends these connections with one listing. Of what the policy does not permit, those that `still` returns.
///
/// # Errors
/// When the connections cannot be listed, or one cannot be ended; the others are.
pub(super) fn end(
    conntrack: &mut Conntrack,
    ending: &Ending,
    still: impl FnOnce(Vec<Flow>) -> Vec<Flow>,
) -> Result<Ended, ConntrackError> {
    let flows = conntrack.flows()?.into_iter();
    let (mut ends, others): (Vec<Flow>, Vec<Flow>) = flows.partition(|flow| {
        flow.ends()
            .iter()
            .any(|address| ending.released.contains(address))
    });
    if let Some(sweep) = &ending.sweep {
        let suspects: Vec<Flow> = others.into_iter().filter(|flow| !permits(sweep, flow)).collect();
        if !suspects.is_empty() {
            ends.extend(still(suspects));
        }
    }
    let flows = conntrack.delete_all(&ends)?;
    if !ending.released.is_empty() {
        fault::point("released-ended");
    }
    Ok(Ended {
        flows,
        addresses: ending.released.len(),
        swept: ending.sweep.is_some(),
    })
}

/// Whether the policy permits the connection.
pub(super) fn permits(sweep: &Sweep, flow: &Flow) -> bool {
    sweep.permits(open_flow(flow))
}

/// A tracked flow by its true ends.
pub(super) fn open_flow(flow: &Flow) -> OpenFlow {
    let port = flow.server_port().unwrap_or_default();
    let traffic = match (flow.protocol, flow.icmp_type()) {
        (_, Some(kind)) => Traffic::Icmp(kind),
        (6, _) => Traffic::Port(Transport::Tcp, port),
        (17, _) => Traffic::Port(Transport::Udp, port),
        (132, _) => Traffic::Port(Transport::Sctp, port),
        (other, _) => Traffic::Other(other),
    };
    OpenFlow {
        client: flow.client(),
        server: flow.server(),
        traffic,
    }
}

/// The host's own addresses, all interfaces'.
pub fn host_addresses() -> BTreeSet<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            error!(%error, "the host's own addresses cannot be listed: its connections count as the world's");
            return BTreeSet::new();
        }
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    interfaces.filter_map(address).collect()
}
