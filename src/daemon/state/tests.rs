//! What is kept, damaged and read again.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn good(text: &str) -> Good {
    let files = vec![
        SourceFile {
            path: "/etc/p/a.yaml".to_owned(),
            bytes: text.into(),
        },
        SourceFile {
            path: "/etc/p/b.yaml".to_owned(),
            bytes: b"cofferdam: 1\nsegment: b\n".into(),
        },
    ];
    Good {
        loaded: policy::load(&files).unwrap(),
        files,
        origin: Origin::Directory("/etc/p".to_owned()),
        accepted: "2026-11-27T00:00:00Z".parse().unwrap(),
    }
}

fn one() -> Good {
    good("cofferdam: 1\nsegment: a\nservices: { web: { select: { name: web } } }\n")
}

fn two() -> Good {
    good("cofferdam: 1\nsegment: a\n")
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(&folder.path().join("state"));
    (folder, store)
}

#[test]
fn what_was_kept_last_is_read() {
    let (_folder, store) = store();
    assert_eq!(store.last_good().unwrap(), None);
    for good in [one(), two(), one()] {
        store.keep(&good).unwrap();
        assert_eq!(store.last_good().unwrap(), Some(good));
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(store.path()), 0o700);
    assert_eq!(mode(&store.path().join("a")), 0o700);
    assert_eq!(mode(&store.path().join("a/0000.yaml")), 0o600);
    assert_eq!(mode(&store.path().join(MANIFEST)), 0o600);
}

#[test]
fn the_same_again_keeps_its_time() {
    let (_folder, store) = store();
    store.keep(&one()).unwrap();
    let later = Good {
        accepted: "2027-01-01T00:00:00Z".parse().unwrap(),
        ..one()
    };
    store.keep(&later).unwrap();
    assert_eq!(store.last_good().unwrap(), Some(one()));
    // Its twin: where it was damaged meanwhile, it is written.
    std::fs::write(store.path().join("a/0001.yaml"), "cofferdam: 1\n").unwrap();
    store.keep(&later).unwrap();
    assert_eq!(store.last_good().unwrap(), Some(later));
}

#[test]
fn a_crash_between_two_writes_leaves_the_old_one() {
    let (_folder, store) = store();
    store.keep(&one()).unwrap();
    // The new files are there, the manifest's draft is half written.
    store.write_slot(Slot::B, &two().files).unwrap();
    std::fs::write(store.path().join("last-good.json.draft"), "{\"format\":1,").unwrap();
    assert_eq!(store.last_good().unwrap(), Some(one()));
    // And half of the files only.
    std::fs::create_dir(store.path().join("draft")).unwrap();
    std::fs::write(store.path().join("draft/0000.yaml"), "cofferdam").unwrap();
    assert_eq!(store.last_good().unwrap(), Some(one()));
    store.keep(&two()).unwrap();
    assert_eq!(store.last_good().unwrap(), Some(two()));
}

/// Each of these is refused, and what is accepted next takes its place.
#[test]
fn what_was_changed_or_is_not_ours_is_never_used() {
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 9] = [
        ("another revision", |path| {
            std::fs::write(path.join("a/0000.yaml"), "cofferdam: 1\nsegment: a\n").unwrap();
        }),
        ("cannot read", |path| {
            std::fs::remove_file(path.join("a/0001.yaml")).unwrap()
        }),
        ("cannot be read", |path| {
            std::fs::write(path.join(MANIFEST), "{").unwrap()
        }),
        ("not a regular file", |path| {
            std::fs::remove_file(path.join("a/0001.yaml")).unwrap();
            std::fs::create_dir(path.join("a/0001.yaml")).unwrap();
        }),
        ("cannot read", |path| {
            std::fs::rename(path.join("a/0001.yaml"), path.join("elsewhere")).unwrap();
            symlink(path.join("elsewhere"), path.join("a/0001.yaml")).unwrap();
        }),
        ("not a directory", |path| {
            std::fs::rename(path.join("a"), path.join("elsewhere")).unwrap();
            symlink(path.join("elsewhere"), path.join("a")).unwrap();
        }),
        ("may write", |path| {
            let others = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(path.join("a/0000.yaml"), others).unwrap();
        }),
        ("faults with this version", |path| {
            std::fs::write(path.join("a/0000.yaml"), "cofferdam: 9\n").unwrap();
            let text = std::fs::read_to_string(path.join(MANIFEST)).unwrap();
            let mut files = one().files;
            files[0].bytes = "cofferdam: 9\n".into();
            let text = text.replace(one().revision().as_str(), policy::revision(&files).as_str());
            std::fs::write(path.join(MANIFEST), text).unwrap();
        }),
        ("another version wrote it", |path| {
            let text = std::fs::read_to_string(path.join(MANIFEST)).unwrap();
            std::fs::write(path.join(MANIFEST), text.replace("\"format\":1", "\"format\":2")).unwrap();
        }),
    ];
    for (said, damage) in damage {
        let (_folder, store) = store();
        store.keep(&one()).unwrap();
        damage(store.path());
        let error = store.last_good().unwrap_err().to_string();
        assert!(error.contains(said), "{error} does not say: {said}");
        store.keep(&two()).unwrap();
        assert_eq!(store.last_good().unwrap(), Some(two()), "{said}");
    }
}

#[test]
fn files_of_somebody_else_are_never_used() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can give files away: run the tests as root"
    );
    for given in ["", "a", "a/0000.yaml", MANIFEST] {
        let (_folder, store) = store();
        store.keep(&one()).unwrap();
        let path = store.path().join(given);
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        let error = store.last_good().unwrap_err().to_string();
        assert!(error.contains("belongs to user 65534"), "{given}: {error}");
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        assert_eq!(store.last_good().unwrap(), Some(one()));
    }
}

#[test]
fn what_is_too_large_is_not_kept_and_what_was_stays() {
    let (_folder, store) = store();
    store.keep(&one()).unwrap();
    let mut large = two();
    let file = SourceFile {
        path: "c.yaml".to_owned(),
        bytes: vec![b'#'; MAX_FILE_BYTES],
    };
    large
        .files
        .extend(std::iter::repeat_n(file, MAX_BYTES / MAX_FILE_BYTES));
    assert!(matches!(store.keep(&large), Err(StateError::TooLarge { .. })));
    assert_eq!(store.last_good().unwrap(), Some(one()));
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let store = Store::new(&folder.path().join("file/state"));
    assert!(store.keep(&one()).is_err());
}

/// As the versions before there was a number wrote it, and as a later one might.
#[test]
fn an_older_directory_is_taken_over_and_a_newer_one_is_left_alone() {
    let (_folder, store) = store();
    store.require_known().unwrap();
    store.keep(&one()).unwrap();
    let number = store.path().join(FORMAT_FILE);
    assert_eq!(std::fs::read_to_string(&number).unwrap(), "1\n");
    std::fs::remove_file(&number).unwrap();
    assert_eq!(store.last_good().unwrap(), Some(one()));
    store.keep_audit(&AuditSince::default()).unwrap();
    assert_eq!(std::fs::read_to_string(&number).unwrap(), "1\n");

    std::fs::write(&number, "2\n").unwrap();
    let newer = |result: Result<(), StateError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StateError::Newer { found: 2, .. }), "{error}");
        assert!(error.to_string().contains("has format 2"), "{error}");
    };
    let before = std::fs::read(store.path().join(MANIFEST)).unwrap();
    newer(store.require_known());
    newer(store.last_good().map(drop));
    newer(store.audit().map(drop));
    newer(store.keep(&two()));
    newer(store.keep_audit(&AuditSince::default()));
    assert_eq!(std::fs::read(store.path().join(MANIFEST)).unwrap(), before);

    // Nonsense is damage: the daemon starts, says so, and keeps nothing there.
    std::fs::write(&number, "many\n").unwrap();
    store.require_known().unwrap();
    let error = store.keep(&two()).unwrap_err();
    assert!(error.to_string().contains("is not a number"), "{error}");
}
