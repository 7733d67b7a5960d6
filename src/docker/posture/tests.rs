use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;

fn inspected(change: impl FnOnce(&mut Value)) -> Option<Posture> {
    let mut answer = json!({
        "Id": "a1", "Image": "sha256:ab", "AppArmorProfile": "", "Config": { "User": "1000", "Image": "app" },
        "HostConfig": {
            "Privileged": false, "ReadonlyRootfs": true, "CapAdd": null, "CapDrop": ["ALL"], "PidMode": "", "IpcMode": "private",
            "UTSMode": "", "UsernsMode": "", "SecurityOpt": null, "Devices": [], "MaskedPaths": ["/proc/kcore"], "PortBindings": {}
        },
        "Mounts": []
    });
    change(&mut answer);
    let volumes = BoundVolumes::from([("bound".to_owned(), "/var/run".to_owned())]);
    read(answer, &volumes, &[PathBuf::from("/run/docker.sock")])
}

#[test]
fn an_inspection_tells_the_confinement() {
    let plain = inspected(|_| {}).unwrap();
    let expected = Posture {
        capabilities: Capabilities::new(&[], &["ALL".to_owned()]),
        user: "1000".into(),
        image: "sha256:ab".into(),
        ..Posture::default()
    };
    assert_eq!(plain, expected);
    let loose = inspected(|answer| {
        let host = &mut answer["HostConfig"];
        for mode in ["PidMode", "IpcMode", "UTSMode", "UsernsMode"] {
            host[mode] = "host".into();
        }
        host["SecurityOpt"] = json!(["apparmor=unconfined", "label=disable"]);
        host["MaskedPaths"] = json!([]);
        host["Devices"] = json!([{ "PathOnHost": "/dev/sda", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm" }]);
        host["PortBindings"] = json!({ "80/tcp": [{ "HostIp": "", "HostPort": "8080" }] });
        answer["Mounts"] = json!([
            { "Type": "bind", "Source": "/srv", "Destination": "/a", "RW": false },
            { "Type": "bind", "Source": "/srv", "Destination": "/b", "RW": true },
            { "Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data", "Destination": "/c", "RW": true },
            { "Type": "volume", "Name": "bound", "Source": "/var/lib/docker/volumes/bound/_data", "Destination": "/d", "RW": true },
            { "Type": "tmpfs", "Source": "", "Destination": "/e", "RW": true },
        ]);
    })
    .unwrap();
    assert_eq!(
        loose.host_namespaces,
        BTreeSet::from([HostNamespace::Pid, HostNamespace::Ipc, HostNamespace::Uts])
    );
    assert!(loose.keeps_host_users && loose.security.apparmor_off && loose.security.selinux_off);
    assert!(loose.security.system_paths_open && loose.devices.contains("/dev/sda"));
    assert_eq!(loose.ports.len(), 2, "both families");
    assert_eq!(
        loose.paths,
        BTreeMap::from([
            ("/srv".to_owned(), Access::Write),
            ("/var/run".to_owned(), Access::Write)
        ])
    );
    assert_eq!(loose.sockets, BTreeSet::from(["/var/run".to_owned()]));
}

#[test]
fn what_is_not_understood_is_not_taken_for_nothing() {
    for (path, wrong) in [
        ("/HostConfig", json!(null)),
        ("/HostConfig/Privileged", json!("no")),
        ("/HostConfig/CapAdd", json!("ALL")),
        ("/HostConfig/ReadonlyRootfs", json!(null)),
        ("/HostConfig/SecurityOpt", json!([1])),
        ("/Config", json!([])),
        ("/HostConfig", json!([true, false])),
        ("/Mounts", json!([["bind", "", "/etc", false]])),
        ("/Mounts", json!([{ "Type": "bind", "Source": "/etc" }])),
    ] {
        let read = inspected(|answer| *answer.pointer_mut(path).unwrap() = wrong);
        assert_eq!(read, None, "{path}");
    }
}

#[test]
fn the_process_tells_what_the_api_does_not() {
    let process = |arguments: &[&str], file: Value| Process {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        file: Some(file),
    };
    let proxy = |arguments: &[&str], file| process(arguments, file).is_on("userland-proxy", true);
    assert_eq!(proxy(&["-H", "fd://"], Value::Null), Some(true));
    assert_eq!(proxy(&["--userland-proxy=false"], Value::Null), Some(false));
    assert_eq!(proxy(&["--userland-proxy"], Value::Null), Some(true));
    assert_eq!(
        proxy(&["--userland-proxy-path", "/x"], json!({"userland-proxy": false})),
        Some(false)
    );
    assert_eq!(proxy(&[], json!({"userland-proxy": "no"})), None);
    // Of a file that cannot be read nothing is known; an argument wins all the same.
    let out_of_reach = |arguments: &[&str]| Process {
        file: None,
        ..process(arguments, Value::Null)
    };
    assert_eq!(out_of_reach(&[]).is_on("userland-proxy", true), None);
    let off = out_of_reach(&["--userland-proxy=false"]);
    assert_eq!(off.is_on("userland-proxy", true), Some(false));
    let arguments = ["--config-file", "/a", "--config-file=/b"].map(str::to_owned);
    assert_eq!(argument(&arguments, "config-file"), Some("/b"));
    assert_eq!(argument(&arguments, "config"), None);
    // This process is no engine.
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(Process::read(own).is_none());
}
