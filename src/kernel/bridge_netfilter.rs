//! Bridge netfilter: without it, traffic within a bridge never meets the `inet` table.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// There once the module is loaded (or built in).
const SETTINGS: &str = "/proc/sys/net/bridge";
const MODULE: &str = "br_netfilter";
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Why bridge netfilter is not there.
#[derive(Debug, thiserror::Error)]
pub enum BridgeNetfilterError {
    #[error(
        "could not load the kernel module {MODULE}: load it on this host (modprobe {MODULE}) or install the \
         kernel's module package; without it nothing between containers of one network can be permitted"
    )]
    Load(#[source] LoadError),
}

/// What `modprobe` said.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not run modprobe")]
    Run(#[source] io::Error),
    #[error("modprobe did not finish within {} s", LOAD_TIMEOUT.as_secs())]
    Timeout,
    #[error("modprobe failed: {0}")]
    Refused(String),
    #[error("modprobe succeeded, yet {SETTINGS} is missing")]
    WithoutEffect,
}

/// Makes sure that bridge netfilter is there, loading its module where needed.
pub async fn ensure() -> Result<(), BridgeNetfilterError> {
    ensure_at(Path::new(SETTINGS), "modprobe")
        .await
        .map_err(BridgeNetfilterError::Load)
}

async fn ensure_at(settings: &Path, modprobe: &str) -> Result<(), LoadError> {
    if settings.is_dir() {
        return Ok(());
    }
    let run = Command::new(modprobe)
        .arg(MODULE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = timeout(LOAD_TIMEOUT, run)
        .await
        .map_err(|_| LoadError::Timeout)?
        .map_err(LoadError::Run)?;
    if !output.status.success() {
        return Err(LoadError::Refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    if settings.is_dir() {
        Ok(())
    } else {
        Err(LoadError::WithoutEffect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_needs_no_loading() {
        assert!(
            ensure_at(Path::new("/proc/sys/net"), "/nonexistent/modprobe")
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn each_failure_is_told_apart() {
        let nowhere = Path::new("/proc/sys/net/nowhere");
        assert!(matches!(
            ensure_at(nowhere, "/nonexistent/modprobe").await,
            Err(LoadError::Run(_))
        ));
        assert!(matches!(
            ensure_at(nowhere, "false").await,
            Err(LoadError::Refused(_))
        ));
        assert!(matches!(
            ensure_at(nowhere, "true").await,
            Err(LoadError::WithoutEffect)
        ));
        let text = BridgeNetfilterError::Load(LoadError::WithoutEffect).to_string();
        assert!(text.contains("br_netfilter"), "{text}");
    }
}
