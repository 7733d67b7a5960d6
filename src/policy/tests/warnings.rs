//! What a reviewer would ask, and what he would not.

use super::*;

const HEAD: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  db: { select: { name: db } }\nexternals: { office: { cidrs: [203.0.113.0/24] } }\n";

/// The warnings of a policy with these lines, the first of which is line 7, as `CFD100 8:5`.
fn warned(lines: &str) -> Vec<String> {
    let files = [file("a.yaml", format!("{HEAD}{lines}"))];
    let reviewed = review(&files, Vec::new(), "2026-06-01T00:00:00Z".parse().unwrap());
    assert!(reviewed.loaded.is_ok(), "{:?}", reviewed.loaded);
    assert_eq!(
        reviewed.warnings.render(&files, Colour::Plain).is_empty(),
        reviewed.warnings.is_empty()
    );
    let warnings = reviewed.warnings.iter();
    warnings
        .map(|it| format!("{} {}:{}", it.code, it.location.line, it.location.column))
        .collect()
}

fn edges(edges: &[&str]) -> Vec<String> {
    let lines: String = edges.iter().map(|edge| format!("  - {{ {edge} }}\n")).collect();
    warned(&format!("allow:\n{lines}"))
}

#[test]
fn an_edge_that_another_covers() {
    let web = "from: web, to: db, ports";
    let covered = |first: &str, second: &str| edges(&[first, second]);
    let none: [&str; 0] = [];
    assert_eq!(
        covered(&format!("{web}: [80]"), &format!("{web}: [80]")),
        ["CFD100 9:5"]
    );
    assert_eq!(
        covered(&format!("{web}: [80]"), &format!("{web}: [79-81]")),
        ["CFD100 8:5"]
    );
    assert_eq!(
        covered(&format!("{web}: [80, icmp]"), &format!("{web}: any")),
        ["CFD100 8:5"]
    );
    assert_eq!(covered(&format!("{web}: [80]"), &format!("{web}: [81]")), none);
    assert_eq!(
        covered(&format!("{web}: [80]"), &format!("{web}: [80/udp]")),
        none
    );
    assert_eq!(
        covered(&format!("{web}: [80]"), "from: db, to: web, ports: [80]"),
        none
    );
    let until = |time: &str| format!("{web}: [80], until: {time}T00:00:00Z");
    assert_eq!(
        covered(&until("2027-01-01"), &format!("{web}: [80]")),
        ["CFD100 8:5"]
    );
    assert_eq!(
        covered(&format!("{web}: [80-81]"), &until("2027-01-01")),
        ["CFD100 9:5"]
    );
    assert_eq!(
        covered(&until("2027-01-02"), &until("2027-01-01")),
        ["CFD100 9:5"]
    );
    assert_eq!(
        covered(
            &until("2027-01-01"),
            &format!("{web}: [80], until: 2026-01-01T00:00:00Z")
        ),
        ["CFD104 9:46"]
    );
    // A list is covered only when each of its edges is.
    let list = "from: [web, db], to: db, ports: [80]";
    assert_eq!(covered(list, &format!("{web}: [80]")), ["CFD100 9:5"]);
    assert_eq!(covered(list, &format!("{web}: [80-81]")), none);
    assert_eq!(
        covered(list, "from: \"*\", to: db, ports: [80-81]"),
        ["CFD100 8:5"]
    );
}

#[test]
fn a_service_without_an_edge() {
    assert_eq!(warned(""), ["CFD101 4:3", "CFD101 5:3"]);
    assert_eq!(edges(&["from: web, to: web, ports: [80]"]), ["CFD101 5:3"]);
    assert_eq!(
        edges(&["from: office, to: \"*\", ports: [80]"]),
        Vec::<String>::new()
    );
}

#[test]
fn any_where_the_tests_name_ports() {
    let tested = |ports: &str, tests: &str| {
        warned(&format!(
            "allow:\n  - {{ from: web, to: db, ports: {ports} }}\ntests:\n{tests}"
        ))
    };
    let none: [&str; 0] = [];
    assert_eq!(
        tested("any", "  reachable: [\"web -> db:80\"]\n"),
        ["CFD102 8:33"]
    );
    assert_eq!(
        tested(
            "[22, any]",
            "  reachable: [\"web -> db:80\", \"web -> db:81-82\"]\n"
        ),
        ["CFD102 8:38"]
    );
    assert_eq!(
        tested("any", "  reachable: [\"web -> db:80\", \"web -> db:any\"]\n"),
        none
    );
    assert_eq!(tested("any", "  unreachable: [\"db -> web:80\"]\n"), none);
    assert_eq!(tested("tcp", "  reachable: [\"web -> db:80\"]\n"), none);
}

#[test]
fn wide_externals_past_ends_and_databases_open_to_the_world() {
    let external = |cidr: &str| {
        let edge = "allow: [{ from: [web, db], to: office, ports: [443] }]\n";
        let files = [file(
            "a.yaml",
            format!("{HEAD}{edge}").replace("203.0.113.0/24", cidr),
        )];
        let reviewed = review(&files, Vec::new(), Timestamp::UNIX_EPOCH);
        let codes: Vec<Code> = reviewed.warnings.iter().map(|it| it.code).collect();
        codes
    };
    assert_eq!(external("10.0.0.0/8"), []);
    assert_eq!(external("10.0.0.0/7"), [Code::WideExternal]);
    assert_eq!(external("\"2001::/16\""), []);
    assert_eq!(external("\"2000::/15\""), [Code::WideExternal]);
    let none: [&str; 0] = [];
    let both = "from: \"*\", to: office, ports: [1]";
    assert_eq!(
        edges(&[both, "from: world, to: web, ports: [443, 5432]"]),
        ["CFD105 9:42"]
    );
    assert_eq!(
        edges(&[both, "from: world, to: web, ports: [5000-6000]"]),
        ["CFD105 9:37"]
    );
    assert_eq!(
        edges(&[both, "from: world, to: web, ports: any"]),
        ["CFD105 9:36"]
    );
    assert_eq!(edges(&[both, "from: world, to: web, ports: [5432/udp]"]), none);
    assert_eq!(edges(&[both, "from: office, to: web, ports: [5432]"]), none);
    assert_eq!(edges(&[both, "from: web, to: world, ports: [5432]"]), none);
    assert_eq!(
        edges(&[both, "from: web, to: db, ports: [1], until: 2026-06-01T00:00:00Z"]),
        ["CFD104 9:45"]
    );
    assert_eq!(
        edges(&[both, "from: web, to: db, ports: [1], until: 2026-06-01T00:00:01Z"]),
        none
    );
}

/// With faults the policy is incomplete: only what an entry says by itself is asked about.
#[test]
fn beside_faults_only_what_is_certain_is_asked() {
    let text = format!(
        "{HEAD}allow:\n  - {{ from: world, to: web, ports: [5432] }}\n  - {{ from: wbe, to: db, ports: [1] }}\n"
    );
    let reviewed = review(&[file("a.yaml", text)], Vec::new(), Timestamp::UNIX_EPOCH);
    let codes: Vec<Code> = reviewed.warnings.iter().map(|it| it.code).collect();
    assert_eq!(codes, [Code::WorldToDatabase]);
    let faults: Vec<Code> = reviewed.loaded.unwrap_err().iter().map(|it| it.code).collect();
    assert_eq!(faults, [Code::UnknownName]);
}
