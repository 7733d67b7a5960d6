//! What is sent from one network namespace to another, and how much of it was achieved in a second.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

const DENIED_AFTER: Duration = Duration::from_millis(300);
/// How long iperf3 may take to listen: at first, and after each measurement.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// Two network namespaces, each by its file.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    pub(crate) client: PathBuf,
    pub(crate) server: PathBuf,
    /// Where the server is found, and the port that everything is sent to.
    pub(crate) at: SocketAddr,
}

/// What was achieved in a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) on_the_wall: f64,
    pub(crate) of_processor_time: f64,
}

impl Rate {
    /// Runs on the client's thread while the server's are there.
    fn of(run: impl FnOnce() -> f64) -> Self {
        let (begun, before) = (Instant::now(), processor_time());
        let achieved = run();
        Self {
            on_the_wall: achieved / begun.elapsed().as_secs_f64(),
            of_processor_time: achieved / (processor_time() - before),
        }
    }

    /// In MiB, as the receiver counts them.
    fn told_by_iperf3(report: &[u8]) -> Self {
        let report: Value = serde_json::from_slice(report).unwrap();
        let number = |of: &str, what: &str| report["end"][of][what].as_f64().unwrap();
        let on_the_wall = number("sum_received", "bits_per_second") / 8.0 / f64::from(1 << 20);
        let percent = |end: &str| number("cpu_utilization_percent", end);
        let processors = (percent("host_total") + percent("remote_total")) / 100.0;
        Self {
            on_the_wall,
            of_processor_time: on_the_wall / processors,
        }
    }
}

/// A server of iperf3, until it is dropped.
#[derive(Debug)]
pub(crate) struct Iperf3(Child);

impl Drop for Iperf3 {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// Seconds that the threads of this process have run so far.
fn processor_time() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}

impl Ends {
    /// Answers at these ports by what the first byte asks for; the server ends with the process.
    pub(crate) fn serve(&self, ports: &[u16]) {
        for port in ports.iter().copied() {
            let namespace = self.server.clone();
            let (ready, is_ready) = std::sync::mpsc::channel();
            thread::spawn(move || {
                enter(&namespace);
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                ready.send(()).unwrap();
                for stream in listener.incoming().map_while(Result::ok) {
                    answer(stream);
                }
            });
            is_ready.recv().unwrap();
        }
    }

    pub(crate) fn serve_iperf3(&self, port: u16) -> Iperf3 {
        within(&self.server, move || {
            let server = Command::new("iperf3")
                .args(["-s", "-p", &port.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            Iperf3(server.expect("iperf3 can be run: `make bench` installs it"))
        })
    }

    /// In the client's namespace.
    fn as_client<T: Send + 'static>(&self, body: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
        let at = self.at;
        within(&self.client, move || body(at))
    }

    pub(crate) fn passes(&self, port: u16) -> bool {
        self.as_client(move |at| {
            TcpStream::connect_timeout(&SocketAddr::new(at.ip(), port), DENIED_AFTER).is_ok()
        })
    }

    /// Connect, request, response, close.
    pub(crate) fn connections(&self, time: Duration) -> Rate {
        let reset = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let run = move |at| {
            let begun = Instant::now();
            let mut count = 0.0;
            while begun.elapsed() < time {
                let mut stream = TcpStream::connect(at).unwrap();
                stream.write_all(b"c").unwrap();
                stream.read_exact(&mut [0]).unwrap();
                // No port waits for late packets, whatever the number of connections.
                setsockopt(&stream, sockopt::Linger, &reset).unwrap();
                count += 1.0;
            }
            count
        };
        self.as_client(move |at| Rate::of(|| run(at)))
    }

    /// The MiB of one stream that sends so many bytes to iperf3's server at this port.
    pub(crate) fn throughput(&self, port: u16, bytes: &'static str) -> Rate {
        self.as_client(move |at| {
            let mut client = Command::new("iperf3");
            client
                .args(["-c", &at.ip().to_string(), "-p", &port.to_string()])
                .args(["-n", bytes, "-J", "--connect-timeout", "1000"])
                .stdin(Stdio::null());
            let begun = Instant::now();
            loop {
                let output = client.output().unwrap();
                if output.status.success() {
                    return Rate::told_by_iperf3(&output.stdout);
                }
                assert!(begun.elapsed() < LISTENS_WITHIN, "{client:?}: {output:?}");
                thread::sleep(Duration::from_millis(10));
            }
        })
    }

    /// A byte there and a byte back on one connection.
    pub(crate) fn round_trips(&self, time: Duration) -> Rate {
        let run = move |at| {
            let mut stream = TcpStream::connect(at).unwrap();
            stream.set_nodelay(true).unwrap();
            let begun = Instant::now();
            let mut count = 0.0;
            while begun.elapsed() < time {
                stream.write_all(b"p").unwrap();
                stream.read_exact(&mut [0]).unwrap();
                count += 1.0;
            }
            count
        };
        self.as_client(move |at| Rate::of(|| run(at)))
    }
}

/// On a thread of its own in this namespace.
fn within<T: Send + 'static>(namespace: &Path, body: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.to_owned();
    let thread = thread::spawn(move || {
        enter(&namespace);
        body()
    });
    thread.join().unwrap()
}

fn enter(namespace: &Path) {
    setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// One connection after the other: a thread for each would cost more than what is measured.
pub(crate) fn answer(mut stream: TcpStream) {
    let mut asked = [0];
    stream.set_nodelay(true).unwrap();
    let Ok(1..) = stream.read(&mut asked) else {
        return;
    };
    match &asked {
        b"p" => while stream.write_all(b"p").is_ok() && matches!(stream.read(&mut asked), Ok(1..)) {},
        _ => {
            let _gone = stream.write_all(b"c");
        }
    }
}
