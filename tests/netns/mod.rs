//! Runs a test's body in a network namespace of its own, which is gone when the body ends.
//!
//! The test executable starts itself again for the one test, under `unshare`, with its own `/sys` and `/run`, so that
//! nothing of the host is seen or changed. Whoever is not root gets a failure with the reason.
#![allow(dead_code, reason = "each test executable uses its part")]

use std::env;
use std::future::Future;
use std::process::{Child, Command, Output, Stdio};

const INSIDE: &str = "COFFERDAM_TEST_INSIDE_NAMESPACE";
const SECONDS: &str = "90";

/// Runs the body of the test called `name` in a new network and mount namespace.
pub(crate) fn run(name: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        body();
        return;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "{name} changes the kernel's network settings in a namespace of its own and must run as root"
    );
    let script = "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && ip link set lo up && \
                  exec \"$0\" --exact \"$1\" --nocapture --test-threads=1";
    let output = Command::new("timeout")
        .args([SECONDS, "unshare", "--net", "--mount", "sh", "-c", script])
        .arg(env::current_exe().unwrap())
        .arg(name)
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{name} inside its namespace: {}\n{stdout}\n{stderr}",
        output.status
    );
    assert!(
        stdout.contains("1 passed"),
        "{name} did not run inside its namespace:\n{stdout}\n{stderr}"
    );
}

/// As [`run`], for an asynchronous body.
pub(crate) fn run_async<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    run(name, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
    });
}

/// Runs a command line, which must succeed; returns its standard output.
pub(crate) fn sh(script: &str) -> String {
    let output = try_sh(script);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command line that may fail.
pub(crate) fn try_sh(script: &str) -> Output {
    Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A process that ends with the test.
pub(crate) struct Background(pub(crate) Child);

impl Background {
    /// Starts a command line whose standard output can be read.
    pub(crate) fn start(script: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("exec {script}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}
