//! Network namespaces of other processes: something is made in one, and nothing else of it is entered. In: a process id.
//! Out: what a job returned that ran there, such as a socket, which stays in the namespace wherever it is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("could not open {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not start a thread for other network namespaces")]
    Thread(#[source] io::Error),
    #[error("could not enter a network namespace")]
    Enter(#[source] Errno),
    #[error("the thread for other network namespaces has ended")]
    Ended,
}

/// A network namespace. It lives as long as this.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
    inode: u64,
}

impl Namespace {
    /// That of a process.
    ///
    /// # Errors
    /// When the process is gone, or this one may not look.
    pub fn of_process(pid: u32) -> Result<Self, NamespaceError> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn own() -> Result<Self, NamespaceError> {
        Self::open("/proc/thread-self/ns/net".to_owned())
    }

    fn open(path: String) -> Result<Self, NamespaceError> {
        let opened = File::open(&path).and_then(|file| {
            let inode = file.metadata()?.ino();
            Ok(Self {
                file: Arc::new(file),
                inode,
            })
        });
        opened.map_err(|source| NamespaceError::Open {
            path: path.into(),
            source,
        })
    }

    /// Whether both are the same one.
    pub fn is(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that goes from namespace to namespace, so that no other one does. It ends with this.
#[derive(Debug)]
pub struct Visitor {
    jobs: mpsc::Sender<Job>,
}

impl Visitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start() -> Result<Self, NamespaceError> {
        let (jobs, received) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn(move || {
                while let Ok(job) = received.recv() {
                    job();
                }
            })
            .map_err(NamespaceError::Thread)?;
        Ok(Self { jobs })
    }

    /// Runs a short job in the namespace, one at a time.
    ///
    /// # Errors
    /// When the namespace cannot be entered: this needs `CAP_SYS_ADMIN` here and there.
    pub async fn within<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NamespaceError> {
        let (reply, answer) = oneshot::channel();
        let file = Arc::clone(&namespace.file);
        let visit = move || {
            let result = setns(&*file, CloneFlags::CLONE_NEWNET)
                .map_err(NamespaceError::Enter)
                .map(|()| job());
            // Whoever asked may have gone away.
            let _unheard = reply.send(result);
        };
        self.jobs
            .send(Box::new(visit))
            .map_err(|_| NamespaceError::Ended)?;
        answer.await.unwrap_or(Err(NamespaceError::Ended))
    }
}
