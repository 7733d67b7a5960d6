//! What the daemon needs of the host, for [`crate::confine`].

use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use caps::Capability;

use super::lock::RUNTIME_DIRECTORY;
use crate::confine::{Connections, Needs, Sockets};
use crate::kernel::nft::Nft;
use crate::settings::Settings;

/// What programs are loaded with, and what they look up at their start.
const LIBRARIES: [&str; 16] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
];
/// The kernel's own word on this process, and on the network.
const KERNEL: [&str; 2] = ["/proc", "/sys"];
const NOTHING: &str = "/dev/null";
/// As far as a program's header is read for what loads it.
const HEADER: u64 = 4096;

/// What [`super::run`] needs with these settings. Makes its directories where they are missing, since only what is there can be
/// named.
pub fn needs(settings: &Settings) -> Needs {
    let mut capabilities = vec![Capability::CAP_NET_ADMIN];
    let listen = settings.http.as_ref().map(|http| http.listen.port());
    if listen.is_some_and(|port| (1..1024).contains(&port)) {
        capabilities.push(Capability::CAP_NET_BIND_SERVICE);
    }
    let control = settings.control_socket.parent().map(Path::to_owned);
    let own = [
        Some(settings.state_directory.clone()),
        Some(RUNTIME_DIRECTORY.into()),
        control,
    ];
    let mut write: Vec<PathBuf> = own.into_iter().flatten().collect();
    for directory in &write {
        // What comes of it is told where the directory is used.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    }
    write.push(NOTHING.into());
    let mut read: Vec<PathBuf> = LIBRARIES.iter().chain(&KERNEL).map(PathBuf::from).collect();
    read.extend(around(&settings.policies));
    read.extend(settings.audit_baseline.iter().flat_map(|file| around(file)));
    let mut needs = Needs {
        capabilities,
        read,
        write,
        run: Vec::new(),
        listen,
        connections: Connections::None,
        sockets: Sockets::Network,
    };
    if settings.git.is_some() {
        // It runs ssh, gpg and programs of its own, from wherever they are, and verifies signatures in temporary files.
        needs.run.push("/".into());
        needs.connections = Connections::All;
        let temporary = std::env::temp_dir();
        needs
            .write
            .extend([temporary, "/dev/tty".into(), "/dev/urandom".into()]);
    } else {
        needs.run.extend(programs());
    }
    needs
}

/// nft, and what loads it. Where it is a script, nobody knows what that runs.
fn programs() -> Vec<PathBuf> {
    let Ok(program) = Nft::find().map(|nft| nft.program().to_owned()) else {
        return Vec::new();
    };
    let mut header = Vec::new();
    let read = fs::File::open(&program).and_then(|file| file.take(HEADER).read_to_end(&mut header));
    if read.is_err() || header.starts_with(b"#!") {
        return vec!["/".into()];
    }
    [program].into_iter().chain(loader(&header)).collect()
}

/// `PT_INTERP` of a program: the first text in its header that is a file's path. What stands before it, such as the build's id, need
/// not end with a zero. None for a program that needs no libraries.
fn loader(header: &[u8]) -> Option<PathBuf> {
    let starts = (0..header.len()).filter(|at| header.get(*at) == Some(&b'/'));
    let texts = starts.filter_map(|at| header.get(at..)?.split(|byte| *byte == 0).next());
    let mut paths = texts.filter_map(|text| std::str::from_utf8(text).ok());
    paths.find(|path| Path::new(path).is_file()).map(PathBuf::from)
}

/// Where the policies, or the baseline, are: what is above them, too, so that another directory can be put in their place, and as far
/// up as there is something.
fn around(place: &Path) -> Vec<PathBuf> {
    let above = |path: &Path| {
        let above = path.ancestors().skip(1).map(|it| {
            if it.as_os_str().is_empty() {
                Path::new(".")
            } else {
                it
            }
        });
        above.into_iter().find(|it| it.is_dir()).map(Path::to_owned)
    };
    // A link leads to where another one may stand next to it.
    let target = fs::canonicalize(place).ok();
    [above(place), target.as_deref().and_then(above)]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_loader_is_found_in_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("ld.so");
        fs::write(&there, "").unwrap();
        let header = format!("\u{7f}ELF\0\0/nonexistent/ld.so\0{}\0more", there.display());
        assert_eq!(loader(header.as_bytes()).as_ref(), Some(&there));
        assert_eq!(loader(b"\x7fELF\0\xff/\0"), None);
        // As of Debian 13's programs: the build's id ends where the path begins.
        let header = [
            b"\x7fELF\0GNU\0\x12/\xfe\xc3",
            there.as_os_str().as_encoded_bytes(),
            b"\0more",
        ]
        .concat();
        assert_eq!(loader(&header), Some(there));
        // As every program of this machine, this test among them, or none.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        if let Some(path) = loader(&own[..4096]) {
            assert!(path.is_file());
        }
    }

    #[test]
    fn what_is_above_the_policies_is_read_and_nothing_else_of_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        assert_eq!(around(&root.join("a/b/policies")), std::slice::from_ref(&root));
        fs::create_dir_all(root.join("releases/1")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        std::os::unix::fs::symlink(root.join("releases/1"), root.join("etc/policies")).unwrap();
        assert_eq!(
            around(&root.join("etc/policies")),
            [root.join("etc"), root.join("releases")]
        );
        assert_eq!(around(Path::new("policies")).first().unwrap(), Path::new("."));
    }
}
