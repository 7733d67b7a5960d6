//! A real Chromium, driven over WebDriver, in a PID namespace of its own that ends with the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::wd::Capabilities;
use fantoccini::{Client, ClientBuilder};
use serde_json::{Value, json};

const PORT: u16 = 9515;
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Browser {
    pub(crate) page: Client,
    driver: Child,
}

impl Browser {
    /// A window of this size, which keeps all of its own in the folder.
    pub(crate) async fn open(folder: &Path, size: (u32, u32), scheme: &str) -> Self {
        for program in ["chromium", "chromedriver"] {
            let found = Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(
                found.is_ok_and(|it| it.success()),
                "{program} is missing: install the packages chromium and chromium-driver (`make setup` does)"
            );
        }
        let driver = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "chromedriver"])
            .arg(format!("--port={PORT}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env("HOME", folder)
            .spawn()
            .unwrap();
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!(
                "--blink-settings=preferredColorScheme={}",
                if scheme == "dark" { 0 } else { 1 }
            ),
            format!("--window-size={},{}", size.0, size.1),
            format!("--user-data-dir={}", folder.join("profile").display()),
            format!("--log-net-log={}", folder.join("net.json").display()),
        ];
        let mut capabilities = Capabilities::new();
        let mut options = json!({ "args": arguments, "binary": "/usr/bin/chromium" });
        if size.0 < 500 {
            // A window cannot be so narrow: a phone it is.
            let metrics = json!({ "width": size.0, "height": size.1, "pixelRatio": 2.0, "touch": true });
            options["mobileEmulation"] = json!({ "deviceMetrics": metrics });
        }
        capabilities.insert("goog:chromeOptions".to_owned(), options);
        let begun = Instant::now();
        loop {
            let connected = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
                .capabilities(capabilities.clone())
                .connect(&format!("http://127.0.0.1:{PORT}"))
                .await;
            match connected {
                Ok(page) => return Self { page, driver },
                Err(error) => assert!(begun.elapsed() < PATIENCE, "no browser: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a script returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.page.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until a script returns something true; returns it, and how long that took.
    pub(crate) async fn until(&self, script: &str) -> (Value, Duration) {
        let begun = Instant::now();
        loop {
            let value = self.run(script).await;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return (value, begun.elapsed());
            }
            if begun.elapsed() > PATIENCE {
                let text = self.run("return document.body.innerText").await;
                panic!("never true: {script}\nthe page says: {text}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it in peace, so that its log is whole.
    pub(crate) async fn close(mut self) {
        self.page.clone().close().await.unwrap();
        let _gone = self.driver.kill();
        let _gone = self.driver.wait();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // With it goes its PID namespace, and every process of the browser.
        let _gone = self.driver.kill();
        let _gone = self.driver.wait();
    }
}
