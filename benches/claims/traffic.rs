//! What is sent from one network namespace to another, and how much of it was achieved in a second.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};

const DENIED_AFTER: Duration = Duration::from_millis(300);

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

    /// In the client's namespace, on a thread of its own.
    fn as_client<T: Send + 'static>(&self, body: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
        let (namespace, at) = (self.client.clone(), self.at);
        let thread = thread::spawn(move || {
            enter(&namespace);
            body(at)
        });
        thread.join().unwrap()
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

    /// One stream's MiB, as the receiver counts them.
    pub(crate) fn throughput(&self, time: Duration) -> Rate {
        let run = move |at| {
            let mut stream = TcpStream::connect(at).unwrap();
            let block = vec![b's'; 1 << 17];
            let begun = Instant::now();
            while begun.elapsed() < time {
                stream.write_all(&block).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
            let mut total = [0; 8];
            stream.read_exact(&mut total).unwrap();
            u64::from_be_bytes(total) as f64 / f64::from(1 << 20)
        };
        self.as_client(move |at| Rate::of(|| run(at)))
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

fn enter(namespace: &Path) {
    setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// One connection after the other: a thread for each would cost more than what is measured.
pub(crate) fn answer(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 17];
    stream.set_nodelay(true).unwrap();
    let Ok(1..) = stream.read(&mut buffer[..1]) else {
        return;
    };
    match buffer[0] {
        b'c' => {
            let _gone = stream.write_all(b"c");
        }
        b'p' => while stream.write_all(b"p").is_ok() && matches!(stream.read(&mut buffer[..1]), Ok(1..)) {},
        _ => {
            let mut total = 0_u64;
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                total += length as u64;
            }
            let _gone = stream.write_all(&total.to_be_bytes());
        }
    }
}
