//! The policy files of a commit, read from git's objects: nothing is checked out, no link is followed.

use crate::daemon::source::Sources;
use crate::daemon::state::{MAX_BYTES, MAX_FILES};
use crate::policy::{Code, Fault, MAX_FILE_BYTES, SourceFile};
use crate::settings::git::GitPath;

use super::command::{Bounds, Git, GitError};

/// What a listing may have: paths and their objects.
const MAX_LISTING: usize = 32 << 20;

/// One entry of a tree.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    object: String,
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File { bytes: usize },
    Link,
    Submodule,
    Other,
}

/// Reads the files below `path` as `daemon::source` reads a directory, but every link is a fault.
///
/// # Errors
/// When the mirror cannot be read.
pub(super) async fn read(git: &Git, commit: &str, path: &GitPath) -> Result<Sources, GitError> {
    let mut arguments = vec!["ls-tree", "-r", "-z", "-l", "--full-tree", commit];
    if !path.as_str().is_empty() {
        arguments.extend(["--", path.as_str()]);
    }
    let bounds = Bounds {
        limit: MAX_LISTING,
        ..Bounds::LOOK
    };
    let listing = git.run(&arguments, b"", bounds).await?;
    let mut sources = Sources::default();
    let mut wanted = Vec::new();
    for entry in entries(&listing).ok_or_else(|| unreadable("ls-tree"))? {
        if is_hidden(&entry.path, path) {
            continue;
        }
        let mut fault = |code, message: String, help: &str| {
            let mut fault = Fault::of_file(code, &entry.path, message);
            fault.help(help);
            sources.faults.push(fault);
        };
        let is_policy = entry.path.ends_with(".yaml") || entry.path.ends_with(".yml");
        match entry.kind {
            Kind::Link => fault(
                Code::Link,
                "this is a symbolic link, which is not followed in a repository".to_owned(),
                "put the file itself into the directory",
            ),
            Kind::Submodule => fault(
                Code::Link,
                "this is a submodule, which is not read".to_owned(),
                "put the files themselves into the directory",
            ),
            Kind::File { bytes } if is_policy && bytes > MAX_FILE_BYTES => fault(
                Code::TooLarge,
                format!("the file is larger than {} MiB", MAX_FILE_BYTES >> 20),
                "split it: files of the same segment add up",
            ),
            Kind::File { bytes } if is_policy => wanted.push((entry, bytes)),
            Kind::File { .. } => {}
            Kind::Other if is_policy => fault(
                Code::Link,
                "this is not a regular file".to_owned(),
                "put the file itself into the directory",
            ),
            Kind::Other => {}
        }
    }
    let bytes: usize = wanted.iter().map(|(_, bytes)| bytes).sum();
    let place = if path.as_str().is_empty() {
        "."
    } else {
        path.as_str()
    };
    if bytes > MAX_BYTES || wanted.len() > MAX_FILES {
        let message = format!(
            "the policy has {bytes} bytes in {} files: {} MiB in {MAX_FILES} files are the most",
            wanted.len(),
            MAX_BYTES >> 20
        );
        sources
            .faults
            .push(Fault::of_file(Code::TooLarge, place, message));
        return Ok(sources);
    }
    if wanted.is_empty() && sources.faults.is_empty() {
        let message = "the directory holds no policy: no `*.yaml` or `*.yml` file";
        sources.faults.push(Fault::of_file(Code::NoFiles, place, message));
        return Ok(sources);
    }
    sources.files = contents(git, &wanted).await?;
    sources.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

async fn contents(git: &Git, wanted: &[(Entry, usize)]) -> Result<Vec<SourceFile>, GitError> {
    let input: String = wanted
        .iter()
        .map(|(entry, _)| format!("{}\n", entry.object))
        .collect();
    let bounds = Bounds {
        // Besides the bytes each has one line of at most 128.
        limit: wanted.iter().map(|(_, bytes)| bytes + 128).sum(),
        ..Bounds::LOOK
    };
    let answer = git
        .run(&["cat-file", "--batch"], input.as_bytes(), bounds)
        .await?;
    let mut rest = answer.as_slice();
    let mut files = Vec::new();
    for (entry, bytes) in wanted {
        let content = object(&mut rest, &entry.object, *bytes).ok_or_else(|| unreadable("cat-file"))?;
        files.push(SourceFile {
            path: entry.path.clone(),
            bytes: content.to_owned(),
        });
    }
    Ok(files)
}

/// The next object of `cat-file --batch`: `OBJECT blob BYTES`, a line's end, the bytes, a line's end.
fn object<'a>(rest: &mut &'a [u8], name: &str, bytes: usize) -> Option<&'a [u8]> {
    let head = format!("{name} blob {bytes}\n");
    let after = rest.strip_prefix(head.as_bytes())?;
    let (content, after) = after.split_at_checked(bytes)?;
    *rest = after.strip_prefix(b"\n")?;
    Some(content)
}

/// The entries of `ls-tree -z -l`: `MODE TYPE OBJECT BYTES`, a tab, the path, a zero.
fn entries(listing: &[u8]) -> Option<Vec<Entry>> {
    let lines = listing.split(|byte| *byte == 0).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let text = String::from_utf8_lossy(line);
            let (head, path) = text.split_once('\t')?;
            let mut words = head.split_ascii_whitespace();
            let (mode, kind, object, bytes) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let kind = match (mode, kind) {
                ("120000", _) => Kind::Link,
                ("160000", _) | (_, "commit") => Kind::Submodule,
                (mode, "blob") if mode.starts_with("100") => Kind::File {
                    bytes: bytes.parse().ok()?,
                },
                _ => Kind::Other,
            };
            Some(Entry {
                kind,
                object: object.to_owned(),
                // Whoever pushed it chose the name, and terminals obey control characters.
                path: path.replace(char::is_control, "\u{fffd}"),
            })
        })
        .collect()
}

/// Names that begin with a dot are left out, as in a directory; what `path` itself names never is.
fn is_hidden(entry: &str, path: &GitPath) -> bool {
    let below = entry.strip_prefix(path.as_str()).unwrap_or(entry);
    below.split('/').any(|part| part.starts_with('.'))
}

fn unreadable(command: &str) -> GitError {
    GitError::Unreadable {
        command: command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_read() {
        let listing = b"100644 blob aa      12\tpolicies/shop.yaml\x00120000 blob bb       4\tpolicies/link.yaml\x00160000 commit cc       -\tpolicies/other\x00";
        let entries = entries(listing).unwrap();
        let kinds: Vec<Kind> = entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::File { bytes: 12 }, Kind::Link, Kind::Submodule]);
        assert_eq!(
            (entries[0].object.as_str(), entries[0].path.as_str()),
            ("aa", "policies/shop.yaml")
        );
        assert_eq!(super::entries(b"100644 blob aa\tx\0"), None);
    }

    #[test]
    fn only_the_bytes_that_were_asked_for_are_taken() {
        let mut rest = b"aa blob 3\nabc\nbb blob 0\n\n".as_slice();
        assert_eq!(object(&mut rest, "aa", 3), Some(b"abc".as_slice()));
        assert_eq!(object(&mut rest, "bb", 0), Some(b"".as_slice()));
        assert_eq!(object(&mut b"aa missing\n".as_slice(), "aa", 3), None);
        assert_eq!(object(&mut b"aa blob 9\nabc\n".as_slice(), "aa", 3), None);
        assert_eq!(object(&mut b"aa blob 3\nab".as_slice(), "aa", 3), None);
    }

    #[test]
    fn hidden_names_are_left_out_below_the_path() {
        let path: GitPath = ".ops/policies".parse().unwrap();
        assert!(!is_hidden(".ops/policies/shop.yaml", &path));
        assert!(is_hidden(".ops/policies/.drafts/shop.yaml", &path));
        assert!(is_hidden(".github/x.yaml", &".".parse().unwrap()));
    }
}
