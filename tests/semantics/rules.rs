//! Two services on the stage and the rules for them: `c0` belongs to `one/a`, `c1` to `one/b`, on a guarded network; `c2` beside them and
//! `c3` on another network are unmanaged.
#![allow(dead_code, reason = "each test executable uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use cofferdam::daemon::executor::Kernel;
use cofferdam::inventory::{ContainerId, Listing, Published};
use cofferdam::model::{Rights, Unmanaged};
use cofferdam::net::Transport;
use cofferdam::plan::Planner;
use cofferdam::policy::{self, SourceFile};

use super::draft::{self, At, Draft};
use super::netns;
use super::socket::{self, Family, Proto};
use super::stage::{self, within};

pub(crate) const PATIENCE: Duration = Duration::from_millis(400);

/// The containers, with what a test changes of them, and the rules for them.
pub(crate) struct Stage {
    pub(crate) kernel: Kernel,
    pub(crate) planner: Planner,
}

impl Stage {
    pub(crate) async fn open(allow: &str, change: impl FnOnce(&mut Listing)) -> Self {
        build();
        Self::rules(allow, change).await
    }

    /// The rules on a stage that stands.
    pub(crate) async fn rules(allow: &str, change: impl FnOnce(&mut Listing)) -> Self {
        let services: [&[usize]; 4] = [&[0], &[1], &[], &[]];
        let containers: Vec<Draft> = services
            .into_iter()
            .zip(stage::PLACES)
            .map(|(services, network)| (services.iter().copied().collect(), BTreeSet::from([network])))
            .collect();
        let kernel = Kernel::open().unwrap();
        let links = kernel.links().list().await.unwrap();
        let mut planner = draft::planner(policy(allow), &containers, Unmanaged::Allow);
        stage::tell_links(&mut planner, &links);
        let mut listing = draft::listing(&containers);
        change(&mut listing);
        let now = planner.moment();
        planner.reset(listing, now);
        let mut stage = Self { kernel, planner };
        stage.carry_out().await;
        stage
    }

    /// Puts another policy in force.
    pub(crate) async fn allow(&mut self, allow: &str) {
        self.change(|rights| rights.policy = policy(allow)).await;
    }

    pub(crate) async fn change(&mut self, change: impl FnOnce(&mut Rights)) {
        let mut rights = self.planner.rights().clone();
        change(&mut rights);
        self.planner.set_rights(rights);
        self.carry_out().await;
    }

    pub(crate) async fn carry_out(&mut self) {
        let plan = self.planner.plan();
        self.kernel.carry_out(&plan, &mut self.planner).await.unwrap();
    }
}

/// A policy with these edges.
fn policy(allow: &str) -> policy::Policy {
    let text = format!(
        "cofferdam: 1
segment: one
services:
  a: {{ select: {{ labels: {{ one-a: \"yes\" }} }} }}
  b: {{ select: {{ labels: {{ one-b: \"yes\" }} }} }}
allow: {allow}
"
    );
    let file = SourceFile {
        path: "one.yaml".to_owned(),
        bytes: text.into_bytes(),
    };
    policy::load(&[file]).unwrap().policy
}

/// The stage alone.
pub(crate) fn build() {
    stage::build();
    // Addresses and routes settle.
    thread::sleep(Duration::from_millis(300));
}

/// Runs a test with a stage of its own.
pub(crate) fn run<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    netns::run(name, || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
    });
}

/// Echo on every address of a family, until the test ends.
pub(crate) fn serve(at: At, port: u16) {
    for family in [Family::V4, Family::V6] {
        let listener = within(at, || socket::listen_stream(Proto::Tcp, family, port).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let _gone = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                });
            }
        });
    }
}

/// Whether a server answers.
pub(crate) fn answers(from: At, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    within(from, || {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else {
            return false;
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 4];
        stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok()
    })
}

pub(crate) fn publish(
    listing: &mut Listing,
    container: usize,
    address: &str,
    host_port: u16,
    container_port: u16,
) {
    let id = ContainerId(format!("container{container}").into());
    let container = listing.containers.iter_mut().find(|it| it.id == id).unwrap();
    container.published.insert(Published {
        address: address.parse().unwrap(),
        transport: Transport::Tcp,
        host_port,
        container_port,
    });
}
