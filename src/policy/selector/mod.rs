//! Selectors: which containers a service consists of.
//!
//! In: the fields of a selector as text. Out: a [`Selector`] that can match, or why it cannot.

mod image;
mod labels;
mod pattern;

use std::collections::BTreeSet;

use self::image::ImagePattern;
use self::labels::{Requirement, Test};
use self::pattern::{Pattern, is_wild};
use super::Subject;
use super::fault::Code;

/// The labels that Docker Compose gives its containers.
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// A condition on a container; every part that is present must hold, and at least one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// `labels`, and `compose` as the labels that Compose gives.
    labels: BTreeSet<Requirement>,
    name: Option<Pattern>,
    image: Option<ImagePattern>,
}

impl Selector {
    /// Whether the container belongs.
    pub fn matches(&self, subject: Subject<'_>) -> bool {
        self.labels
            .iter()
            .all(|requirement| requirement.holds(subject.labels))
            && self
                .name
                .as_ref()
                .is_none_or(|pattern| pattern.matches(subject.name))
            && self
                .image
                .as_ref()
                .is_none_or(|pattern| pattern.matches(subject.image))
    }

    /// Whether every container that `self` matches is certain to be matched by `other`; a `false` may be wrong.
    pub fn implies(&self, other: &Self) -> bool {
        let labels = other
            .labels
            .iter()
            .all(|theirs| self.labels.iter().any(|mine| mine.implies(theirs)));
        labels
            && other
                .name
                .as_ref()
                .is_none_or(|theirs| self.name.as_ref().is_some_and(|mine| mine.implies(theirs)))
            && (other.image.is_none() || other.image == self.image)
    }

    /// Conditions that fix one value exactly. A selector that [`Self::implies`] another has all of the other's.
    pub(super) fn exact(&self) -> impl Iterator<Item = (Part<'_>, &str)> {
        let labels = self
            .labels
            .iter()
            .filter_map(|requirement| match &requirement.test {
                Test::In(values) if values.len() == 1 => values
                    .first()
                    .map(|value| (Part::Label(&requirement.key), value.as_str())),
                _ => None,
            });
        let name = self
            .name
            .iter()
            .map(Pattern::as_str)
            .filter(|name| !is_wild(name));
        let image = self.image.iter().map(ImagePattern::as_str);
        labels
            .chain(name.map(|name| (Part::Name, name)))
            .chain(image.map(|image| (Part::Image, image)))
    }
}

/// What an exact condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part<'a> {
    Label(&'a str),
    Name,
    /// The pattern's text, wild or not: implication needs the same.
    Image,
}

/// What makes a part of a selector, or the whole of it, unusable.
#[derive(Debug)]
pub(super) struct Unusable {
    /// [`Code::BadSelector`] or [`Code::NeverMatches`].
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Unusable {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }
}

/// Gathers the parts of a selector.
#[derive(Debug, Default)]
pub(super) struct Builder {
    labels: BTreeSet<Requirement>,
    name: Option<Pattern>,
    image: Option<ImagePattern>,
}

impl Builder {
    /// `compose: project/service`, with `*` and `?` in both.
    ///
    /// # Errors
    /// A text without exactly one `/`, or with characters that Compose does not allow.
    pub(super) fn compose(&mut self, text: &str) -> Result<(), Unusable> {
        let parts = text
            .split_once('/')
            .filter(|(project, service)| !project.is_empty() && !service.is_empty());
        let Some((project, service)) = parts else {
            let mut unusable = Unusable::new(
                Code::BadSelector,
                format!("`{text}` is not a compose selector: it is `project/service`"),
            );
            if !text.contains('/') && !text.is_empty() {
                unusable.help = Some(format!(
                    "did you mean `{text}/*` (every service of the project) or `*/{text}` (the service in any project)?"
                ));
            }
            return Err(unusable);
        };
        let project_may = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let service_may = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let read = |text: &str, what: &str, label: &str, may: &dyn Fn(char) -> bool| {
            compose_part(text, what, label, may).map_err(|message| {
                let mut unusable = Unusable::new(Code::NeverMatches, message);
                let lower = project.to_ascii_lowercase();
                if lower != project && lower.chars().all(|c| project_may(c) || is_wild_char(c)) {
                    unusable.help = Some(format!("did you mean `{lower}/{service}`?"));
                }
                unusable
            })
        };
        let project = read(project, "project", COMPOSE_PROJECT, &project_may)?;
        let service = read(service, "service", COMPOSE_SERVICE, &service_may)?;
        self.labels.extend([project, service]);
        Ok(())
    }

    /// One entry of `labels` as a map.
    ///
    /// # Errors
    /// A key that no label can have.
    pub(super) fn label(&mut self, key: &str, value: &str) -> Result<(), Unusable> {
        labels::check_key(key).map_err(|message| Unusable::new(Code::NeverMatches, message))?;
        self.labels.insert(Requirement::equals(key, value));
        Ok(())
    }

    /// `labels` in the grammar of Kubernetes.
    ///
    /// # Errors
    /// A text outside the grammar.
    pub(super) fn label_selector(&mut self, text: &str) -> Result<(), Unusable> {
        let requirements = labels::parse(text).map_err(|message| {
            let mut unusable = Unusable::new(Code::BadSelector, format!("not a label selector: {message}"));
            unusable.help = Some(
                "the forms are `a=b`, `a!=b`, `a in (x, y)`, `a notin (x, y)`, `a` and `!a`, with commas between them"
                    .to_owned(),
            );
            unusable
        })?;
        self.labels.extend(requirements);
        Ok(())
    }

    /// `name: shop-worker-*`.
    ///
    /// # Errors
    /// A pattern that no container's name can match.
    pub(super) fn name(&mut self, text: &str) -> Result<(), Unusable> {
        let never = |message: String| Unusable::new(Code::NeverMatches, message);
        if let Some(rest) = text.strip_prefix('/') {
            let mut unusable = never("a container's name has no `/`".to_owned());
            unusable.help = Some(format!("did you mean `{rest}`?"));
            return Err(unusable);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-*?".contains(c);
        if let Some(wrong) = text.chars().find(|&c| !allowed(c)) {
            let mut unusable = never(format!("a container's name cannot contain {wrong:?}"));
            unusable.help = Some("only `*` and `?` stand for other characters".to_owned());
            return Err(unusable);
        }
        if text.starts_with(['_', '.', '-']) {
            return Err(never(
                "a container's name begins with a letter or a digit".to_owned(),
            ));
        }
        if text.len() < 2 && text != "*" {
            return Err(never("a container's name has at least two characters".to_owned()));
        }
        let pattern = Pattern::new(text).map_err(|message| Unusable::new(Code::BadSelector, message))?;
        self.name = Some(pattern);
        Ok(())
    }

    /// `image: postgres:*`.
    ///
    /// # Errors
    /// A pattern that no image reference can match.
    pub(super) fn image(&mut self, text: &str) -> Result<(), Unusable> {
        let pattern = ImagePattern::new(text).map_err(|message| {
            let mut unusable = Unusable::new(Code::NeverMatches, message);
            let lower = text.to_ascii_lowercase();
            if lower != text && ImagePattern::new(&lower).is_ok() {
                unusable.help = Some(format!("did you mean `{lower}`?"));
            }
            unusable
        })?;
        self.image = Some(pattern);
        Ok(())
    }

    /// The selector, if some container could match it; `None` when it has no part.
    ///
    /// # Errors
    /// Requirements that contradict each other.
    pub(super) fn build(self) -> Result<Option<Selector>, Unusable> {
        if let Some(texts) = labels::contradiction(&self.labels) {
            let message = format!("no container can match this selector: {texts} contradict each other");
            let mut unusable = Unusable::new(Code::NeverMatches, message);
            unusable.help = Some("keys are ANDed; a list of selectors is ORed".to_owned());
            return Err(unusable);
        }
        let empty = self.labels.is_empty() && self.name.is_none() && self.image.is_none();
        Ok((!empty).then_some(Selector {
            labels: self.labels,
            name: self.name,
            image: self.image,
        }))
    }
}

/// One half of `project/service` as a requirement on the label that Compose gives.
fn compose_part(
    text: &str,
    what: &str,
    label: &str,
    may: &dyn Fn(char) -> bool,
) -> Result<Requirement, String> {
    if let Some(wrong) = text.chars().find(|&c| !may(c) && !is_wild_char(c)) {
        return Err(format!("a Compose {what}'s name cannot contain {wrong:?}"));
    }
    if !is_wild(text) {
        return Ok(Requirement::equals(label, text));
    }
    Ok(Requirement {
        key: label.to_owned(),
        test: Test::Like(Pattern::new(text)?),
    })
}

fn is_wild_char(c: char) -> bool {
    c == '*' || c == '?'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(build: impl FnOnce(&mut Builder)) -> Selector {
        let mut builder = Builder::default();
        build(&mut builder);
        builder.build().unwrap().unwrap()
    }

    #[test]
    fn parts_are_anded() {
        let selector = built(|builder| {
            builder.compose("sh?p/w*").unwrap();
            builder.name("shop-web-*").unwrap();
            builder.image("nginx:*").unwrap();
        });
        let labels = [(COMPOSE_PROJECT, "shop"), (COMPOSE_SERVICE, "web")];
        let labels = labels.map(|(key, value)| (key.into(), value.into()));
        let labels = labels.into_iter().collect();
        let subject = Subject {
            name: "shop-web-1",
            image: "nginx",
            labels: &labels,
        };
        assert!(selector.matches(subject));
        assert!(!selector.matches(Subject {
            name: "web",
            ..subject
        }));
        assert!(!selector.matches(Subject {
            image: "caddy",
            ..subject
        }));
        let labels = Default::default();
        assert!(!selector.matches(Subject {
            labels: &labels,
            ..subject
        }));
    }

    #[test]
    fn one_selector_may_lie_within_another() {
        let web = built(|builder| builder.compose("shop/web").unwrap());
        let shop = built(|builder| builder.compose("shop/*").unwrap());
        let tagged = built(|builder| {
            builder.compose("shop/web").unwrap();
            builder.label_selector("tier in (a, b)").unwrap();
        });
        let other = built(|builder| builder.name("web").unwrap());
        let wild = built(|builder| builder.name("w*").unwrap());
        assert!(other.implies(&wild) && !wild.implies(&other));
        assert!(web.implies(&shop) && tagged.implies(&web) && tagged.implies(&shop) && web.implies(&web));
        assert!(!shop.implies(&web) && !web.implies(&tagged) && !web.implies(&other) && !other.implies(&web));
    }

    #[test]
    fn what_cannot_match_is_refused() {
        let refused = |result: Result<(), Unusable>| result.unwrap_err().code;
        let builder = Builder::default;
        assert_eq!(refused(builder().compose("shop")), Code::BadSelector);
        assert_eq!(refused(builder().compose("shop/")), Code::BadSelector);
        assert_eq!(refused(builder().compose("Shop/web")), Code::NeverMatches);
        let help = builder().compose("Shop/web").unwrap_err().help;
        assert_eq!(help.as_deref(), Some("did you mean `shop/web`?"));
        assert_eq!(refused(builder().compose("shop/web/1")), Code::NeverMatches);
        assert_eq!(refused(builder().name("/web")), Code::NeverMatches);
        assert_eq!(refused(builder().name("web[0-9]")), Code::NeverMatches);
        assert_eq!(refused(builder().name("a")), Code::NeverMatches);
        assert_eq!(refused(builder().name("")), Code::NeverMatches);
        assert_eq!(refused(builder().label("a b", "")), Code::NeverMatches);
        assert_eq!(refused(builder().image("a b")), Code::NeverMatches);
        let mut both = builder();
        both.compose("shop/web").unwrap();
        both.label(COMPOSE_SERVICE, "api").unwrap();
        assert_eq!(both.build().unwrap_err().code, Code::NeverMatches);
        assert!(builder().build().unwrap().is_none());
    }
}
