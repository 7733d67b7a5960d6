//! What is left to a process that gave up what the daemon does not need, and was taken over: each attempt succeeds before, and fails
//! after. What the daemon does need still works.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

mod netns;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam::confine::{Means, confine};
use cofferdam::daemon::confine::needs;
use cofferdam::daemon::lock::Lock;
use cofferdam::kernel::conntrack::Conntrack;
use cofferdam::kernel::elements::Elements;
use cofferdam::kernel::generation::GenerationWatch;
use cofferdam::kernel::links::{LinkWatch, Links};
use cofferdam::kernel::nft::Nft;
use cofferdam::plan::ruleset::Step;
use cofferdam::settings::{Overrides, Settings};
use netns::{Background, sh};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Everything that a file system of this test's own needs: what is written to `/etc` is seen by nobody else.
fn home() -> Settings {
    sh("cp -a /etc /run/etc && mount --bind /run/etc /etc");
    fs::create_dir_all("/run/home/policies").unwrap();
    fs::write("/run/home/policies/shop.yaml", "cofferdam: 1\nsegment: shop\n").unwrap();
    let overrides = Overrides {
        policies: Some("/run/home/policies".into()),
        state_directory: Some("/run/home/state".into()),
        control_socket: Some("/run/home/control/control.sock".into()),
        ..Overrides::default()
    };
    Settings::merge(overrides, Overrides::default()).unwrap()
}

type Attempt<'a> = Box<dyn Fn() -> io::Result<()> + 'a>;

fn ended(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

fn opened(family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<()> {
    Ok(socket(family, kind, SockFlag::empty(), protocol).map(drop)?)
}

/// What somebody who has taken the process over would try next.
fn attempts<'a>(outsider: Pid, listener: &'a TcpListener) -> Vec<(&'static str, Attempt<'a>)> {
    let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let loader = loader.into_iter().find(|it| Path::new(it).exists()).unwrap();
    let dropped = "/run/home/state/dropped";
    vec![
        (
            "write below /etc",
            Box::new(|| fs::write("/etc/cron.d-evil", "x")),
        ),
        (
            "change a policy",
            Box::new(|| fs::write("/run/home/policies/shop.yaml", "cofferdam: 1\nsegment: shop\n")),
        ),
        ("write below /run", Box::new(|| fs::write("/run/evil", "x"))),
        ("read /etc/shadow", Box::new(|| fs::read("/etc/shadow").map(drop))),
        ("read a key", Box::new(|| fs::read("/run/key").map(drop))),
        ("list /root", Box::new(|| fs::read_dir("/root").map(drop))),
        (
            "run a shell",
            Box::new(|| ended(Command::new("/bin/sh").args(["-c", "true"]))),
        ),
        (
            "run a program by the loader",
            Box::new(move || ended(Command::new(loader).arg("/bin/true"))),
        ),
        (
            "run what it wrote",
            Box::new(move || {
                fs::write(dropped, fs::read("/usr/share/evil")?)?;
                fs::set_permissions(dropped, fs::Permissions::from_mode(0o755))?;
                ended(&mut Command::new(dropped))
            }),
        ),
        (
            "open a raw socket",
            Box::new(|| opened(AddressFamily::Packet, SockType::Raw, None)),
        ),
        (
            "open a raw IP socket",
            Box::new(|| opened(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp))),
        ),
        (
            "open a socket of generic netlink",
            Box::new(|| {
                opened(
                    AddressFamily::Netlink,
                    SockType::Raw,
                    Some(SockProtocol::NetlinkGeneric),
                )
            }),
        ),
        (
            "open a socket of the audit",
            Box::new(|| {
                opened(
                    AddressFamily::Netlink,
                    SockType::Raw,
                    Some(SockProtocol::NetlinkAudit),
                )
            }),
        ),
        (
            "open a socket to hypervisors",
            Box::new(|| opened(AddressFamily::Vsock, SockType::Stream, None)),
        ),
        (
            "dial",
            Box::new(|| TcpStream::connect(listener.local_addr()?).map(drop)),
        ),
        ("listen", Box::new(|| TcpListener::bind("127.0.0.1:0").map(drop))),
        (
            "send a signal to another",
            Box::new(move || Ok(kill(outsider, None)?)),
        ),
        (
            "make a namespace",
            Box::new(|| Ok(unshare(CloneFlags::CLONE_NEWUTS)?)),
        ),
        (
            "enter a namespace",
            Box::new(move || {
                Ok(nix::sched::setns(
                    fs::File::open(format!("/proc/{outsider}/ns/uts"))?,
                    CloneFlags::CLONE_NEWUTS,
                )?)
            }),
        ),
        (
            "read another's environment",
            Box::new(move || fs::read(format!("/proc/{outsider}/environ")).map(drop)),
        ),
        (
            "change an owner",
            Box::new(|| std::os::unix::fs::chown("/run/home/state", Some(0), Some(1))),
        ),
    ]
}

#[test]
fn a_process_that_is_taken_over_has_little_left() {
    netns::run("a_process_that_is_taken_over_has_little_left", || {
        let settings = home();
        fs::write("/run/key", "secret").unwrap();
        sh("mkdir -p /run/lib && cp /bin/true /run/lib/evil && mount --bind /run/lib /usr/share");
        let outsider = Background::start("setpriv --pdeathsig KILL sleep 60");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let needs = needs(&settings);
        let attempts = attempts(Pid::from_raw(outsider.0.id().try_into().unwrap()), &listener);
        // It ends with this thread, which soon may send it no signal.
        std::mem::forget(outsider);
        for (what, attempt) in &attempts {
            if let Err(error) = attempt() {
                panic!("{what}: not possible before, either: {error}");
            }
        }
        let lacks = confine(&needs, Means::default()).unwrap();
        assert_eq!(lacks, Vec::<String>::new(), "this kernel has not all of it");
        for (what, attempt) in &attempts {
            let error = attempt().expect_err(what);
            println!("{what}: {error}");
            let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
            assert!(
                refused || error.to_string().contains("cannot open shared object file"),
                "{what}: {error}"
            );
        }
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for line in [
            "CapPrm:\t0000000000001000",
            "CapEff:\t0000000000001000",
            "CapBnd:\t0000000000001000",
            "CapAmb:\t0000000000001000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
        what_is_needed_works();
    });
}

/// The kernel's rules by nft and by netlink, links, connections; policies; the state directory; the control socket.
fn what_is_needed_works() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        Nft::find().unwrap().apply(&[Step::ResetTables]).await.unwrap();
        Elements::open().unwrap().base_chains().unwrap();
        Conntrack::open().unwrap().flows().unwrap();
        Links::open().unwrap().list().await.unwrap();
        LinkWatch::open().unwrap();
        GenerationWatch::open().unwrap();
        let read = cofferdam::daemon::source::read(&["/run/home/policies"]).unwrap();
        assert!(read.load().is_ok());
        // Another directory in its place.
        fs::read_dir("/run/home").unwrap();
        fs::create_dir("/run/home/state/x").unwrap();
        fs::write("/run/home/state/x/y", "z").unwrap();
        fs::rename("/run/home/state/x/y", "/run/home/state/z").unwrap();
        cofferdam::daemon::control::listen(Path::new("/run/home/control/control.sock")).unwrap();
        drop(Lock::take().unwrap());
    });
}

/// With these arguments none does any harm, and each gets further than a check of what the caller may do.
const CALLS: [(&str, libc::c_long, [i64; 5]); 44] = [
    ("ptrace", libc::SYS_ptrace, [16, 999_999, 0, 0, 0]),
    (
        "process_vm_readv",
        libc::SYS_process_vm_readv,
        [999_999, 0, 0, 0, 0],
    ),
    (
        "process_vm_writev",
        libc::SYS_process_vm_writev,
        [999_999, 0, 0, 0, 0],
    ),
    ("kcmp", libc::SYS_kcmp, [999_999, 999_999, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0, 0, 0, 0, 0]),
    ("umount2", libc::SYS_umount2, [0, 0, 0, 0, 0]),
    ("move_mount", libc::SYS_move_mount, [-1, 0, -1, 0, 0]),
    ("fsopen", libc::SYS_fsopen, [0, 0, 0, 0, 0]),
    ("open_tree", libc::SYS_open_tree, [-1, 0, 0, 0, 0]),
    ("pivot_root", libc::SYS_pivot_root, [0, 0, 0, 0, 0]),
    ("chroot", libc::SYS_chroot, [0, 0, 0, 0, 0]),
    ("init_module", libc::SYS_init_module, [0, 0, 0, 0, 0]),
    ("finit_module", libc::SYS_finit_module, [-1, 0, 0, 0, 0]),
    ("delete_module", libc::SYS_delete_module, [0, 0, 0, 0, 0]),
    ("bpf", libc::SYS_bpf, [999, 0, 0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [0, -3, 0, 0, 0]),
    ("add_key", libc::SYS_add_key, [0, 0, 0, 0, 0]),
    ("request_key", libc::SYS_request_key, [0, 0, 0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [0xffff, 0, 0, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0, 0, 0, 0, 0]),
    ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0]),
    ("unshare", libc::SYS_unshare, [0, 0, 0, 0, 0]),
    ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0]),
    ("setuid", libc::SYS_setuid, [0, 0, 0, 0, 0]),
    ("setresuid", libc::SYS_setresuid, [-1, -1, -1, 0, 0]),
    ("setgroups", libc::SYS_setgroups, [0, 0, 0, 0, 0]),
    ("capset", libc::SYS_capset, [0, 0, 0, 0, 0]),
    ("fchownat", libc::SYS_fchownat, [-1, 0, 0, 0, 0]),
    ("mknodat", libc::SYS_mknodat, [-1, 0, 0, 0, 0]),
    ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]),
    ("swapon", libc::SYS_swapon, [0, 0, 0, 0, 0]),
    ("reboot", libc::SYS_reboot, [0, 0, 0, 0, 0]),
    ("sethostname", libc::SYS_sethostname, [0, -1, 0, 0, 0]),
    ("settimeofday", libc::SYS_settimeofday, [0, 0, 0, 0, 0]),
    ("clock_settime", libc::SYS_clock_settime, [0, 0, 0, 0, 0]),
    ("acct", libc::SYS_acct, [1, 0, 0, 0, 0]),
    (
        "fanotify_init",
        libc::SYS_fanotify_init,
        [0xffff_ffff, 0, 0, 0, 0],
    ),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0]),
    ("syslog", libc::SYS_syslog, [10, 0, 0, 0, 0]),
    // The child goes on behind it, and says 0, too.
    (
        "clone",
        libc::SYS_clone,
        [libc::CLONE_NEWUTS as i64 | 17, 0, 0, 0, 0],
    ),
    ("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 99_999, 0, 0, 0]),
];

/// What each call says: 0, or its error. By a program that was started, so that what is started is held to it, too.
fn said() -> BTreeMap<&'static str, i32> {
    let script = "my $r = syscall($ARGV[0]+0, map { $_+0 } @ARGV[1..5]); print $r == -1 ? $!+0 : 0";
    let call = |number: libc::c_long, arguments: &[i64]| -> i32 {
        let output = Command::new("perl")
            .args(["-e", script, &number.to_string()])
            .args(arguments.iter().map(i64::to_string))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.parse()
            .unwrap_or_else(|_| panic!("{number}: {text} {:?}", output.stderr))
    };
    CALLS
        .iter()
        .map(|(name, number, arguments)| (*name, call(*number, arguments)))
        .collect()
}

#[test]
fn what_no_daemon_calls_is_refused_by_seccomp_alone() {
    netns::run("what_no_daemon_calls_is_refused_by_seccomp_alone", || {
        let mut needs = needs(&home());
        // Everything else is permitted: all capabilities stay.
        needs.capabilities = caps::read(None, caps::CapSet::Permitted)
            .unwrap()
            .into_iter()
            .collect();
        let before = said();
        for (name, error) in &before {
            assert!(*error != libc::EPERM, "{name}: refused before, too");
        }
        let means = Means {
            landlock: false,
            seccomp: true,
        };
        assert_eq!(confine(&needs, means).unwrap(), Vec::<String>::new());
        for (name, error) in said() {
            println!("{name}: {} before", Errno::from_raw(before[name]));
            assert_eq!(error, libc::EPERM, "{name}");
        }
        // And nothing of it without.
        assert!(TcpListener::bind("127.0.0.1:0").is_ok());
        sh("test -r /etc/shadow && echo x > /etc/written");
    });
}

#[test]
fn landlock_alone_leaves_system_calls_as_they_are() {
    netns::run("landlock_alone_leaves_system_calls_as_they_are", || {
        let needs = needs(&home());
        let means = Means {
            landlock: true,
            seccomp: false,
        };
        assert_eq!(confine(&needs, means).unwrap(), Vec::<String>::new());
        assert!(fs::write("/etc/x", "x").is_err());
        assert!(
            opened(
                AddressFamily::Netlink,
                SockType::Raw,
                Some(SockProtocol::NetlinkGeneric)
            )
            .is_ok()
        );
        what_is_needed_works();
    });
}

/// A unit for systemd leaves no more than is needed, and forbids the call that changes capabilities.
#[test]
fn what_a_service_manager_took_before_is_not_asked_for() {
    netns::run("what_a_service_manager_took_before_is_not_asked_for", || {
        let needs = needs(&home());
        let neither = Means {
            landlock: false,
            seccomp: false,
        };
        let forbidden = failing(libc::SYS_capset, libc::EPERM);
        // Where there is more to give up, it cannot be done.
        let forbids = forbidden.clone();
        let wide = needs.clone();
        let failed = std::thread::spawn(move || {
            apply_filter(&forbids).unwrap();
            confine(&wide, neither)
        });
        assert!(failed.join().unwrap().is_err());
        confine(&needs, neither).unwrap();
        apply_filter(&forbidden).unwrap();
        assert_eq!(confine(&needs, Means::default()).unwrap(), Vec::<String>::new());
        what_is_needed_works();
    });
}

/// Kernels without the one or the other, as far as this process can see.
#[test]
fn what_the_kernel_lacks_is_said_and_the_rest_is_done() {
    netns::run("what_the_kernel_lacks_is_said_and_the_rest_is_done", || {
        let needs = needs(&home());
        let lacking = |call: libc::c_long| -> (Vec<String>, String) {
            let needs = needs.clone();
            let limited = std::thread::spawn(move || {
                apply_filter(&failing(call, libc::ENOSYS)).unwrap();
                let said = confine(&needs, Means::default()).unwrap();
                (said, fs::read_to_string("/proc/thread-self/status").unwrap())
            });
            limited.join().unwrap()
        };
        let (said, status) = lacking(libc::SYS_landlock_create_ruleset);
        assert!(
            said.len() == 1 && said[0].contains("no Landlock") && said[0].contains("5.13"),
            "{said:?}"
        );
        assert!(status.contains("Seccomp_filters:\t3"), "{status}");
        let (said, status) = lacking(libc::SYS_seccomp);
        assert!(said.len() == 1 && said[0].contains("no seccomp"), "{said:?}");
        assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    });
}

/// A filter under which this call fails.
fn failing(call: libc::c_long, error: i32) -> BpfProgram {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(error.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}

/// The daemon's user owns the directory, and root's commands take the lock.
#[test]
fn root_follows_no_link_in_the_daemons_directory() {
    netns::run("root_follows_no_link_in_the_daemons_directory", || {
        fs::create_dir("/run/cofferdam").unwrap();
        std::os::unix::fs::symlink("/run/nologin", "/run/cofferdam/lock").unwrap();
        Lock::take().unwrap_err();
        assert!(!Path::new("/run/nologin").exists());
        fs::remove_file("/run/cofferdam/lock").unwrap();
        drop(Lock::take().unwrap());
        assert!(Path::new("/run/cofferdam/lock").is_file());
    });
}
