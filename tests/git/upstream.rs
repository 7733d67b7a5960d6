//! A repository to push to, and servers for it on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A bare repository, and a work tree that pushes to it.
pub(crate) struct Upstream {
    folder: TempDir,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        let upstream = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        upstream.git("/", &["init", "--quiet", "--bare", "-b", "main", &upstream.url()]);
        upstream.git(
            "/",
            &["init", "--quiet", "-b", "main", upstream.work().to_str().unwrap()],
        );
        upstream
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub(crate) fn url(&self) -> String {
        self.path("policy.git").display().to_string()
    }

    fn command(&self, directory: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(directory)
            .env("HOME", self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ALLOW_PROTOCOL", "file:git:http");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ops");
            command.env(format!("GIT_{who}_EMAIL"), "ops@example.org");
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs git, which must succeed.
    pub(crate) fn git(&self, directory: impl AsRef<Path>, arguments: &[&str]) -> String {
        let output = self.command(directory, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file of the work tree.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.work().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits what the work tree holds and pushes it.
    pub(crate) fn push(&self, signing: &[&str]) -> String {
        self.git(self.work(), &["add", "--all"]);
        let sign: &[&str] = if signing.is_empty() { &[] } else { &["-S"] };
        let commit = ["commit", "--quiet", "--allow-empty", "-m", "policy"];
        self.git(self.work(), &[signing, &commit, sign].concat());
        self.git(
            self.work(),
            &["push", "--quiet", "--force", &self.url(), "HEAD:main"],
        );
        self.git(self.work(), &["rev-parse", "HEAD"])
    }

    /// A key to sign with; returns git's arguments for it and the line of allowed signers.
    pub(crate) fn key(&self, name: &str) -> (Vec<String>, String) {
        let path = self.path(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(&path)
            .status()
            .expect("ssh-keygen must be installed: the package openssh-client");
        assert!(made.success());
        let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        let sign = ["-c", "gpg.format=ssh", "-c"].map(str::to_owned);
        let key = format!("user.signingkey={}", path.display());
        (
            sign.into_iter().chain([key]).collect(),
            format!("ops@example.org namespaces=\"git\" {public}"),
        )
    }

    /// `git daemon` for the folder; its URL.
    pub(crate) fn serve_git(&self) -> (Server, String) {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let base = format!("--base-path={}", self.folder.path().display());
        let port_argument = format!("--port={port}");
        let arguments = [
            "daemon",
            "--export-all",
            "--listen=127.0.0.1",
            &port_argument,
            &base,
        ];
        let mut command = self.command("/", &arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // `git daemon` is a program of its own that git starts: they end together.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let server = Server(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "git daemon does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        (server, format!("git://127.0.0.1:{port}/policy.git"))
    }

    /// Git's own `http-backend` behind as much of HTTP as it needs, until the test ends; its URL.
    pub(crate) fn serve_http(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let root = self.folder.path().to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &root);
            }
        });
        format!("http://127.0.0.1:{port}/policy.git")
    }
}

/// A process group that ends with the test.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn answer(stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        head.iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .unwrap_or_default()
    };
    let mut words = head.first().map_or("", String::as_str).split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("HTTP_GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = backend.stdin.take() {
        stdin.write_all(&body)?;
    }
    let output = backend.wait_with_output()?;
    let mut stream = stream;
    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n")?;
    stream.write_all(&output.stdout)
}
