//! What runs in the containers of the real engine: this very program. Each writes down when it began, by the clock that all
//! containers share with the host.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use crate::harness::{Sample, between};
use crate::traffic;

/// The directory where the containers tell.
pub(crate) const TOLD: &str = "told";
/// One attempt; another follows at once.
const ATTEMPT: Duration = Duration::from_millis(50);

/// The first argument of this program in a container.
pub(crate) const RESIDENT: &str = "--resident";

/// The first argument of this program where it is only to print its clock.
pub(crate) const CLOCK: &str = "--clock";

/// What one of them told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// When its program began.
    pub(crate) began: Timestamp,
    /// When it had a connection, where it was to make one, and in which attempt.
    pub(crate) connected: Option<(Timestamp, u32)>,
}

/// What a container does once it has told that it began.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    Stay,
    /// Connects, over and over until it can, and tells when that was.
    Dial(SocketAddr),
    Serve(u16),
}

impl Role {
    /// The arguments of the program.
    pub(crate) fn words(&self, name: &str) -> Vec<String> {
        let (role, what) = match self {
            Self::Stay => ("stay", String::new()),
            Self::Dial(server) => ("dial", server.to_string()),
            Self::Serve(port) => ("serve", port.to_string()),
        };
        [RESIDENT, name, role, &what].map(str::to_owned).to_vec()
    }
}

/// In a container. `began` is when `main` did.
pub(crate) fn run(words: &[String], began: Timestamp) -> ! {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [name, "stay", _] => tell(name, &[began.as_nanosecond()]),
        [name, "dial", server] => {
            let server: SocketAddr = server.parse().unwrap();
            let attempts = (1_u32..).find(|_| TcpStream::connect_timeout(&server, ATTEMPT).is_ok());
            let connected = Timestamp::now().as_nanosecond();
            tell(
                name,
                &[began.as_nanosecond(), connected, attempts.unwrap().into()],
            );
        }
        [name, "serve", port] => {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.parse().unwrap())).unwrap();
            tell(name, &[began.as_nanosecond()]);
            for stream in listener.incoming().map_while(Result::ok) {
                traffic::answer(stream);
            }
        }
        other => panic!("a container has no such role: {other:?}"),
    }
    loop {
        thread::park();
    }
}

fn tell(name: &str, numbers: &[i128]) {
    let words: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let told = Path::new("/").join(TOLD);
    std::fs::write(told.join(format!(".{name}")), words.join(" ")).unwrap();
    std::fs::rename(told.join(format!(".{name}")), told.join(name)).unwrap();
}

/// The ms from before this program's process is made to its reading of the clock. What a container tells is later than its first
/// instruction by less than this.
pub(crate) fn from_fork_to_clock(runs: usize) -> Sample {
    let run = || {
        let begun = Timestamp::now();
        let output = Command::new(std::env::current_exe().unwrap()).arg(CLOCK).output();
        let clock = String::from_utf8(output.unwrap().stdout).unwrap();
        between(
            begun,
            Timestamp::from_nanosecond(clock.trim().parse().unwrap()).unwrap(),
        )
    };
    Sample::new((0..runs).map(|_| run()).collect())
}

impl Told {
    /// Takes what the container called `name` told, if it did by now.
    pub(crate) fn take(directory: &Path, name: &str) -> Option<Self> {
        let text = std::fs::read_to_string(directory.join(name)).ok()?;
        std::fs::remove_file(directory.join(name)).unwrap();
        let numbers: Vec<i128> = text.split(' ').map(|it| it.parse().unwrap()).collect();
        let at = |number: i128| Timestamp::from_nanosecond(number).unwrap();
        Some(Self {
            began: at(numbers[0]),
            connected: numbers
                .get(1)
                .map(|it| (at(*it), u32::try_from(numbers[2]).unwrap())),
        })
    }
}
