//! The policy format as a JSON Schema, for editors and code hosts. The parser does not use it: `tests/schema.rs` holds both
//! against each other. Where a schema cannot say what the parser knows (names that exist, who owns an edge), it says less.
#![expect(dead_code, reason = "the types are described, never made")]

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

/// The schema (JSON Schema 2020-12) of a policy file.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with_transform(NeverNull);
    settings
        .into_generator()
        .into_root_schema_for::<PolicyFile>()
        .to_value()
}

/// What may be left out may not be `null`: a field without a value is a mistake.
#[derive(Debug, Clone)]
struct NeverNull;

impl Transform for NeverNull {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        let Some(Value::Array(choices)) = schema.get_mut("anyOf") else {
            return;
        };
        choices.retain(|choice| *choice != json!({ "type": "null" }));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                // The field's own description, not that of its type.
                if schema.get(&key).is_none() {
                    schema.insert(key, value);
                }
            }
        }
    }
}

macro_rules! name {
    () => {
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    };
}
macro_rules! port {
    () => {
        "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
    };
}
macro_rules! ports {
    () => {
        concat!(
            "(any|icmp(/(echo-request|destination-unreachable|time-exceeded|parameter-problem|timestamp-request))?|tcp|udp|sctp|",
            port!(),
            "(-",
            port!(),
            ")?(/(tcp|udp|sctp))?)"
        )
    };
}

const NAME: &str = concat!("^", name!(), "$");
const END: &str = concat!("^(\\*|", name!(), "(/", name!(), ")?)$");
const PORTS: &str = concat!("^", ports!(), "$");
const TEST: &str = concat!(
    "^\\s*",
    name!(),
    "(/",
    name!(),
    ")?\\s*->\\s*",
    name!(),
    "(/",
    name!(),
    ")?\\s*:\\s*",
    ports!(),
    "\\s*$"
);
const TIME: &str = concat!(
    "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.,][0-9]+)?)?",
    "([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)$"
);

/// What names of services and externals must be, beside `world` and `host`, which have a meaning of their own.
fn declared() -> Value {
    json!({ "pattern": NAME, "not": { "enum": ["world", "host"] } })
}

/// A Cofferdam policy file
///
/// Which services there are and who may open what to whom. Everything that no edge permits is closed, in both directions.
/// Files of one segment add up.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    title = "Cofferdam policy",
    example = json!({
        "cofferdam": 1,
        "segment": "shop",
        "services": { "web": { "select": { "compose": "shop/web" } }, "db": { "select": { "compose": "shop/db" } } },
        "allow": [{ "from": "web", "to": "db", "ports": [5432] }],
        "tests": { "reachable": ["web -> db:5432"] }
    })
)]
struct PolicyFile {
    /// The format's version: always 1.
    #[schemars(extend("const" = 1))]
    cofferdam: u8,
    /// Whose file this is: the team or application.
    segment: Name,
    /// What happens to a connection that no edge permits, for every service of the segment that does not say otherwise.
    mode: Option<Mode>,
    /// Sets of containers by name.
    #[schemars(extend("propertyNames" = declared()))]
    services: Option<BTreeMap<String, Service>>,
    /// Sets of addresses outside this host by name.
    #[schemars(extend("propertyNames" = declared()))]
    externals: Option<BTreeMap<String, External>>,
    /// The edges: who may open what to whom.
    #[schemars(length(min = 1))]
    allow: Option<Vec<Edge>>,
    /// What must hold of the policy: `cofferdam test` checks it offline.
    tests: Option<Tests>,
}

/// 1 to 63 lower-case letters, digits and inner hyphens.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = NAME, "examples" = ["shop"]))]
struct Name(String);

/// What happens to a connection that no edge permits.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Mode {
    /// It is dropped.
    Enforce,
    /// It passes and is reported, where every managed end is in audit.
    Audit,
}

/// A set of containers.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, example = json!({ "select": { "compose": "shop/web" } }))]
struct Service {
    /// One selector, or a list of which any may match.
    select: OneOrMany<Selector>,
    /// The service's own mode; otherwise it has the segment's.
    mode: Option<Mode>,
}

/// Which containers: all of its keys must hold.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    extend("minProperties" = 1),
    example = json!({ "compose": "shop/web" }),
    example = json!({ "image": "postgres:*", "labels": { "tier": "data" } })
)]
struct Selector {
    /// Docker Compose's project and service; both parts may have wild cards.
    #[schemars(extend("pattern" = "^[^/]+/[^/]+$", "examples" = ["shop/web", "shop-*/cache"]))]
    compose: Option<String>,
    /// Labels with exactly these values, or Kubernetes' label selectors as text.
    labels: Option<Labels>,
    /// The container's name; `*` stands for any characters, `?` for one.
    #[schemars(extend("minLength" = 1, "examples" = ["shop-worker-*"]))]
    name: Option<String>,
    /// The image as the container was created with; without a tag it is `:latest`.
    #[schemars(extend("minLength" = 1, "examples" = ["postgres:*"]))]
    image: Option<String>,
}

/// Conditions on labels.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Labels {
    /// Labels with exactly these values.
    #[schemars(extend("minProperties" = 1, "examples" = [{ "app": "api" }]))]
    Exact(BTreeMap<String, String>),
    /// `a=b`, `a!=b`, `a in (x, y)`, `a notin (x, y)`, `a`, `!a`; a comma means and.
    #[schemars(extend("pattern" = "\\S", "examples" = ["metrics in (on, true), !internal"]))]
    Grammar(String),
}

/// Addresses outside this host.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    example = json!({ "cidrs": ["203.0.113.0/24", "2001:db8:77::/48"], "except": ["203.0.113.66/32"] })
)]
struct External {
    /// Address ranges.
    cidrs: OneOrMany<Cidr>,
    /// Ranges that are taken out of them.
    except: Option<OneOrMany<Cidr>>,
}

/// An address and a prefix length, without bits set behind the prefix.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = "^\\s*[0-9A-Fa-f:.]+/[0-9]{1,3}\\s*$", "examples" = ["203.0.113.0/24", "2001:db8:77::/48"]))]
struct Cidr(String);

/// A right to open connections, in one direction. At least one end is a service.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    example = json!({ "from": "web", "to": "api", "ports": [8080, "9000-9010/tcp", "53/udp"] }),
    example = json!({ "from": ["api", "worker"], "to": "db", "ports": [5433], "until": "2026-12-01T00:00:00Z", "why": "migration, OPS-12" })
)]
struct Edge {
    /// Who opens: one end or a list of ends.
    from: OneOrMany<End>,
    /// Who is called: one end or a list of ends. An edge into a service stands in that service's segment.
    to: OneOrMany<End>,
    /// The container's ports; an empty list is an error.
    ports: OneOrMany<Ports>,
    /// The edge ends at this moment (RFC 3339), open connections included.
    #[schemars(extend("format" = "date-time", "pattern" = TIME, "examples" = ["2026-12-01T00:00:00Z"]))]
    until: Option<String>,
    /// A reason, for people.
    why: Option<String>,
}

/// A service or external of this segment, `segment/service`, `world`, `host`, or `*` for every service of this segment.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = END, "examples" = ["web", "ops/prometheus", "world", "host", "*"]))]
struct End(String);

/// What an edge opens.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Ports {
    /// A TCP port.
    Number(#[schemars(range(min = 1, max = 65535))] u16),
    /// `53/udp`, `9000-9010/tcp`, `udp` for all of a protocol's ports, `icmp`, `icmp/echo-request`, `any`.
    #[schemars(extend("pattern" = PORTS, "examples" = ["53/udp", "9000-9010/tcp", "icmp/echo-request", "any"]))]
    Text(String),
}

/// What must hold of the policy.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    example = json!({ "reachable": ["web -> api:8080"], "unreachable": ["web -> db:5432", "db -> world:any"] })
)]
struct Tests {
    /// All of this is permitted.
    #[schemars(length(min = 1))]
    reachable: Option<Vec<Test>>,
    /// None of this is permitted.
    #[schemars(length(min = 1))]
    unreachable: Option<Vec<Test>>,
}

/// `from -> to:port`.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = TEST, "examples" = ["web -> api:8080", "world -> web:443", "web -> api:53/udp"]))]
struct Test(String);

/// One, or a list that is not empty.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum OneOrMany<T> {
    One(T),
    Many(#[schemars(length(min = 1))] Vec<T>),
}
